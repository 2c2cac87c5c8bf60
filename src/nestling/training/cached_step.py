"""The two-pass step (GradCache, https://arxiv.org/abs/2101.06983): any batch in the memory of a chunk, exactly.

A contrastive loss needs all embeddings of the batch at once, but not all activations:

1. Encode every chunk without a graph, but for the last ones, whose graphs fit in memory and are kept.
2. Compute the loss on the embeddings, and its gradient with respect to them. All communication of the loss is here.
3. Go through the chunks in reverse: backward through the graphs that were kept, then encode each other chunk again,
   under the random state that it had, and go backward through it. Ranks synchronise gradients with the last one.

Chunks are differentiated in the same order whatever was kept, so that the gradient does not depend on how many were.

Shapes: n texts of this rank, D dimensions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.backends import Backend, ForwardBackward, guard_out_of_memory
from nestling.batches.packing import AnyChunk, TokenBatch


@dataclass(frozen=True)
class ActivationBudget:
    """How many graphs may be kept.

    Args:
        memory: Bytes for them; infinite keeps all of them, 0 none.
        position: Bytes of a graph for each position of its chunk.
    """

    memory: float
    position: float

    def __str__(self) -> str:
        return f"{self.memory / 1e9:.2f} GB for graphs between the passes, {self.position / 1e3:.1f} kB a position"

    def kept(self, chunks: Sequence[AnyChunk]) -> int:
        """How many chunks, counted from the last, keep their graphs."""
        spent, kept = 0.0, 0
        for chunk in reversed(chunks):
            spent += self.position * chunk.positions
            if spent > self.memory:
                break
            kept += 1
        return kept


def cached_backward(
    backend: ForwardBackward, batch: TokenBatch, loss_of: Callable[[Tensor], Tensor], budget: ActivationBudget
) -> Tensor:
    """Add the gradient of the loss to the parameters' gradients; the loss of this rank, detached.

    Args:
        backend: The model, and how its ranks synchronise.
        batch: This rank's texts.
        loss_of: From raw embeddings [n, D], in the order of the texts, to this rank's share of the loss of the global
            batch; may communicate. The shares of all ranks sum to the loss.
        budget: What may be kept between the passes.
    """
    chunks, kept = backend.agree_on_chunks(batch.chunks, budget.kept(batch.chunks))
    first_kept = len(chunks) - kept
    with torch.no_grad(), backend.computing():
        encoded, states = _encode_without_graphs(backend, chunks[:first_kept])
    # A context of its own: casts that were made without gradients stay behind.
    with backend.computing():
        graphs = [backend.forward(chunks[i], last=i == 0) for i in range(first_kept, len(chunks))]
        # Rows of chunks beyond the batch's own come last, and no position points there.
        leaves = torch.cat([*encoded, *(each.detach() for each in graphs)])[batch.position].requires_grad_()
        loss = loss_of(leaves)
        # Backends take the mean of the ranks' gradients, and the gradient is the sum of the shares'.
        (loss * backend.ranks).backward()
        gradients = _by_chunk(leaves, batch, chunks)
        with backend.accumulation():
            for i in reversed(range(len(chunks))):
                again = graphs.pop() if graphs else _encode_again(backend, chunks[i], states[i], last=i == 0)
                backend.backward(again, gradients.pop(), last=i == 0)
                del again  # and its graph, before the next one is made
    return loss.detach()


@dataclass
class CachedStep:
    """`cached_backward` with an answer to a full device.

    One process repeats the step with smaller chunks. Several cannot repeat it together, but where they are independent
    they end it together, so that the run can save what it has learned before.

    Args:
        backend: As there.
        budget: As there.
        say: Takes a line for the log.
        halvings: How often chunks have been halved; every later batch is halved as often.
        ran_out: Whether memory ended on this rank, one of several, in the last step: its gradients are to be discarded
            on all ranks.
    """

    backend: Backend
    budget: ActivationBudget
    say: Callable[[str], None]
    halvings: int = 0
    ran_out: bool = False

    def __call__(self, batch: TokenBatch, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """As `cached_backward`.

        Raises:
            ValueError: Memory ran out where neither helps.
        """
        return self._several_ranks(batch, loss_of) if self.backend.ranks > 1 else self._one_rank(batch, loss_of)

    def _several_ranks(self, batch: TokenBatch, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        def run(passes: ForwardBackward) -> Tensor:
            return cached_backward(passes, batch, loss_of, self.budget)

        loss, self.ran_out = guard_out_of_memory(self.backend, run, batch.chunks, ", or with a lower graph_memory")
        return loss

    def _one_rank(self, batch: TokenBatch, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        state = RandomState.now(self.backend.model.device)
        for _ in range(self.halvings):
            batch = batch.halved()
        loss = self._try(batch, loss_of)
        while loss is None:
            self.backend.zero_grad()
            state.set()
            self.halvings += 1
            batch = batch.halved()
            most = max(chunk.positions for chunk in batch.chunks)
            self.say(f"out of memory; the step is repeated in chunks of at most {most} positions")
            loss = self._try(batch, loss_of)
        return loss

    def _try(self, batch: TokenBatch, loss_of: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The loss; None when memory ran out and half of the chunks may help."""
        try:
            return cached_backward(self.backend, batch, loss_of, self.budget)
        except torch.OutOfMemoryError as error:
            if all(len(chunk.lengths) == 1 for chunk in batch.chunks):
                most = max(chunk.positions for chunk in batch.chunks)
                raise ValueError(
                    f"out of memory with a single text of {most} tokens; lower the maximum lengths, or set "
                    "checkpoint_length below them"
                ) from error
            return None


def _encode_without_graphs(backend: ForwardBackward, chunks: Sequence[AnyChunk]) -> tuple[list[Tensor], "RandomStates"]:
    """Embeddings of some chunks in one tensor, if there are any, and the random state before each chunk.

    Each is copied to where there is room for all: thousands of small tensors, made between the large ones of the
    forwards and kept, would leave the allocator with gaps that the next forward's do not fit into.
    """
    states = RandomStates(len(chunks))
    rows, everything = sum(len(chunk.lengths) for chunk in chunks), None
    start = 0
    for i, chunk in enumerate(chunks):
        states.keep(i, RandomState.now(chunk.input_ids.device))
        encoded = backend.forward(chunk, last=i == 0)
        if everything is None:
            everything = encoded.new_empty(rows, encoded.shape[1])
        everything[start : start + len(encoded)] = encoded
        start += len(encoded)
        del encoded
    return [] if everything is None else [everything], states


def _encode_again(backend: ForwardBackward, chunk: AnyChunk, state: "RandomState", *, last: bool) -> Tensor:
    with state.restored():
        return backend.forward(chunk, last=last)


def _by_chunk(leaves: Tensor, batch: TokenBatch, chunks: Sequence[AnyChunk]) -> list[Tensor]:
    """The gradient [B, D] of each chunk's embeddings; zeros for the chunks beyond the batch's own."""
    assert leaves.grad is not None
    ordered = torch.empty_like(leaves.grad)
    ordered[batch.position] = leaves.grad
    parts = list(ordered.split([len(chunk.lengths) for chunk in batch.chunks]))
    return parts + [ordered.new_zeros(len(chunk.lengths), ordered.shape[1]) for chunk in chunks[len(parts) :]]


@dataclass(frozen=True)
class RandomState:
    """The generators that dropout draws from.

    Args:
        device: Where the model computes.
        cpu: State of the CPU's generator.
        own: State of the device's generator; None on the CPU.
    """

    device: torch.device
    cpu: Tensor
    own: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "RandomState":
        own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        return cls(device, torch.get_rng_state(), own)

    def set(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.own is not None:
            torch.get_device_module(self.device).set_rng_state(self.own, self.device)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, random numbers are those that followed this state; afterwards those that followed the present one."""
        present = RandomState.now(self.device)
        self.set()
        try:
            yield
        finally:
            present.set()


class RandomStates:
    """Several states, in one tensor for each generator.

    Args:
        count: How many there will be.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.rooms: list[Tensor] = []

    def keep(self, i: int, state: RandomState) -> None:
        own = [state.cpu] if state.own is None else [state.cpu, state.own]
        if not self.rooms:
            self.device = state.device
            self.rooms = [each.new_empty(self.count, len(each)) for each in own]
        for room, each in zip(self.rooms, own, strict=True):
            room[i] = each

    def __getitem__(self, i: int) -> RandomState:
        # Copies: torch reads a state from where its storage begins.
        cpu, *own = (room[i].clone() for room in self.rooms)
        return RandomState(self.device, cpu, own[0] if own else None)
