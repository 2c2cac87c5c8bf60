"""The step of a reranker, which outlives a full device where it can."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.backends import Backend, ForwardBackward, guard_out_of_memory
from nestling.batches.rerank_batch import ChunkLabels, RerankBatch
from nestling.batches.rerank_collation import RerankCollator
from nestling.training.accumulated_step import accumulated_backward
from nestling.training.cached_step import RandomState


@dataclass
class RerankStep:
    """`accumulated_backward` over a batch, with an answer to a full device.

    One process repeats the step with smaller chunks. Several cannot repeat it together, but where they are independent
    they end it together, so that the run can save what it has learned before.

    Args:
        backend: As there.
        collator: Cuts a batch into chunks anew.
        loss_of: From what the model gives for a chunk, its labels, and the batch, to the chunk's share of the loss.
        say: Takes a line for the log.
        halvings: How often chunks have been halved; every later batch is halved as often.
        ran_out: Whether memory ended on this rank, one of several, in the last step: its gradients are to be discarded
            on all ranks.
    """

    backend: Backend
    collator: RerankCollator
    loss_of: Callable[[Tensor, ChunkLabels, RerankBatch], Tensor]
    say: Callable[[str], None]
    halvings: int = 0
    ran_out: bool = False

    def __call__(self, batch: RerankBatch) -> Tensor:
        """This rank's share of the loss.

        Raises:
            ValueError: Memory ran out where neither helps.
        """
        if self.backend.ranks > 1:
            loss, self.ran_out = guard_out_of_memory(
                self.backend, lambda passes: self._run(passes, batch), batch.chunks
            )
            return loss
        state = RandomState.now(self.backend.model.device)
        if self.halvings:
            batch = self.collator.rechunk(batch, self._size())
        while (found := self._try(batch)) is None:
            self.backend.zero_grad()
            state.set()
            batch = self._smaller(batch)
            self.say(f"out of memory; the step is repeated in chunks of at most {self._size()} positions")
        return found

    def _size(self) -> int:
        return self.collator.chunk_tokens >> self.halvings

    def _try(self, batch: RerankBatch) -> Tensor | None:
        """The loss; None when memory ran out. Outside of the handler, whose traceback holds what the step has made."""
        try:
            return self._run(self.backend, batch)
        except torch.OutOfMemoryError:
            return None

    def _smaller(self, batch: RerankBatch) -> RerankBatch:
        """The batch in more chunks, halved as often as that takes."""
        while self._size() > 1:
            self.halvings += 1
            cut = self.collator.rechunk(batch, self._size())
            if len(cut.chunks) > len(batch.chunks):
                return cut
        raise ValueError(
            f"out of memory with a chunk of {max(chunk.positions for chunk in batch.chunks)} positions, which cannot "
            "be cut; lower the maximum lengths or negatives, or set checkpoint_length below the lengths"
        )

    def _run(self, passes: ForwardBackward, batch: RerankBatch) -> Tensor:
        def loss_of(chunk: int, logits: Tensor) -> Tensor:
            return self.loss_of(logits, batch.labels[chunk], batch)

        return accumulated_backward(passes, batch.chunks, loss_of)
