"""When a device runs out of memory: one process repeats the step in smaller chunks, several ranks end it together."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

from nestling.backends import Backend, ForwardBackward, OutOfMemoryGuard
from nestling.batches.packing import AnyChunk
from nestling.training.random_state import RandomState

Batch = TypeVar("Batch")


class OutOfMemoryRetry(Generic[Batch]):
    """Repeats a step of one process in smaller chunks when its device runs out of memory.

    Several ranks cannot repeat a step together. Where they are independent they end it together instead, with
    gradients that are to be discarded, so that the run can save what it has learned before; elsewhere they fail.

    Args:
        backend: The model, and how its ranks synchronise.
        chunks_of: The chunks of a batch.
        rechunk: The batch with the token budget of its chunks halved so many times, 0 for the batch itself.
        chunk_tokens: The token budget of a chunk before it is halved.
        say: Takes a line for the log.
        save: Saves the steps before this one, where one process can take it in no chunks; gives the checkpoint.
        otherwise: What else would help, for the errors.

    Attributes:
        halvings: How often chunks have been halved so far; every later batch is halved as often.
        ran_out: Whether the last step ran out of memory on this rank, one of several.
    """

    def __init__(
        self,
        backend: Backend,
        chunks_of: Callable[[Batch], Sequence[AnyChunk]],
        rechunk: Callable[[Batch, int], Batch],
        *,
        chunk_tokens: int,
        say: Callable[[str], None],
        save: Callable[[], Path],
        otherwise: str = "",
    ) -> None:
        self.backend = backend
        self.chunks_of = chunks_of
        self.rechunk = rechunk
        self.chunk_tokens = chunk_tokens
        self.say = say
        self.save = save
        self.otherwise = otherwise
        self.halvings = 0
        self.ran_out = False

    def attempts(self, batch: Batch) -> "Iterator[Attempt[Batch]]":
        """Contexts to take the step in, one after the other until the step is done: usually one.

        Raises:
            ValueError: Memory ran out, and neither smaller chunks nor ending the step together helps.
        """
        one_process = self.backend.ranks == 1  # several ranks never repeat a step: there is no state to go back to
        state = RandomState.now(self.backend.model.device) if one_process else None
        current = self.rechunk(batch, self.halvings)
        while True:
            attempt = Attempt(self, current)
            yield attempt
            if not attempt.failed:
                return
            assert state is not None
            self.backend.zero_grad()
            state.set()
            current = self._smaller(batch, current)
            self.say(
                f"out of memory; the step is repeated in chunks of at most {self.largest_chunk(current)} positions"
            )

    def _smaller(self, batch: Batch, current: Batch) -> Batch:
        """The batch in more chunks than it is in now, halved as often as that takes."""
        while self.chunk_tokens >> self.halvings > 1:
            self.halvings += 1
            smaller = self.rechunk(batch, self.halvings)
            if len(self.chunks_of(smaller)) > len(self.chunks_of(current)):
                return smaller
        saved = self.save()
        raise ValueError(
            f"out of memory with a chunk of {self.largest_chunk(current)} positions, which cannot be split further; "
            f"saved {saved}; continue with --resume true and a --gradient_checkpointing_length below the maximum "
            f"lengths{self.otherwise}, or start a run with lower maximum lengths or fewer negatives"
        )

    def largest_chunk(self, batch: Batch) -> int:
        """Positions of the largest chunk of a batch."""
        return max(chunk.positions for chunk in self.chunks_of(batch))


class Attempt(Generic[Batch]):
    """The context of one attempt at a step; an out-of-memory error ends it without being raised where a retry can help.

    Attributes:
        batch: The batch, in chunks that are to fit.
        backend: What the step runs on.
        failed: Whether memory ran out, so that the step has to be taken again.
    """

    def __init__(self, retry: OutOfMemoryRetry[Batch], batch: Batch) -> None:
        self.retry = retry
        self.batch = batch
        self.several = retry.backend.ranks > 1
        self.guard = OutOfMemoryGuard(retry.backend) if self.several and retry.backend.independent else None
        self.backend: ForwardBackward = self.guard or retry.backend
        self.failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.retry.ran_out = self.guard is not None and self.guard.ran_out
        if not isinstance(error, torch.OutOfMemoryError):
            return False
        if self.several:
            largest = self.retry.largest_chunk(self.batch)
            raise ValueError(
                f"a rank ran out of memory with chunks of up to {largest} positions; resume with --chunk_tokens "
                f"{max(1, largest // 2)}{self.retry.otherwise}"
            ) from error
        self.failed = True
        return True
