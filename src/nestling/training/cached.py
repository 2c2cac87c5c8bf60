"""The two-pass step (GradCache, https://arxiv.org/abs/2101.06983): any batch in the memory of a chunk, exactly.

A contrastive loss needs all embeddings of the batch at once, but not all activations:

1. Forward: encode every chunk without activations, except for the last ones, whose activations fit in memory and are
   kept.
2. Loss: computed on the embeddings, and differentiated with respect to them. All communication of the loss is here.
3. Backward: go through the chunks in reverse order, through the activations that were kept; every other chunk is first
   encoded again, under the random state of its first forward. Ranks synchronise gradients with the last chunk; ZeRO and
   FSDP2 with each, where full gradients do not fit.

Chunks are differentiated in the same order whatever was kept, so that the gradient does not depend on how many were.

Shapes: n texts of this rank, B texts of a chunk, D dimensions.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from nestling.backends.backend import ForwardBackward
from nestling.batches.packing import AnyChunk, TokenBatch
from nestling.training.random_state import RandomState, RandomStates


@dataclass(frozen=True)
class ActivationBudget:
    """How much memory the activations kept between the two passes may take.

    Args:
        memory: Bytes for them; infinite keeps all of them, 0 none.
        position: Bytes of activations for each position of a chunk.
        present: Bytes that there is room for at the moment, which other processes may have taken; None for no such
            limit. Gradients do not depend on how many activations are kept.
    """

    memory: float
    position: float
    present: Callable[[], float] | None = None

    def __str__(self) -> str:
        return f"{self.memory / 1e9:.2f} GB kept between the two passes, {self.position / 1e3:.1f} kB a position"

    def kept(self, chunks: Sequence[AnyChunk]) -> int:
        """How many chunks, counted from the last, keep their activations."""
        memory = self.memory if self.present is None else min(self.memory, self.present())
        spent, kept = 0.0, 0
        for chunk in reversed(chunks):
            spent += self.position * chunk.positions
            if spent > memory:
                break
            kept += 1
        return kept


class CachedPasses:
    """The two passes of one step, used as a context around `forward`, the loss, and `backward`.

    Args:
        backend: The model, and how its ranks synchronise.
        budget: Which activations are kept between the passes.

    Attributes:
        loss: This rank's part of the loss, a detached scalar, once `backward` has been called.
    """

    def __init__(self, backend: ForwardBackward, budget: ActivationBudget) -> None:
        self.backend = backend
        self.budget = budget
        self._contexts = ExitStack()
        self._kept: list[Tensor] = []

    def forward(self, batch: TokenBatch) -> Tensor:
        """Raw embeddings [n, D] of this rank's texts, in their order, a leaf that the loss is differentiated to."""
        self._batch = batch
        self._chunks, kept = self.backend.agree_on_chunks(batch.chunks, self.budget.kept(batch.chunks))
        first_kept = len(self._chunks) - kept
        with torch.no_grad(), self.backend.computing():
            encoded = self._encode_without_activations(first_kept)
        # A new context: autocast caches the weights that it casts to bfloat16, and those cached under no_grad have no
        # gradient. The second pass must cast them again.
        self._contexts.enter_context(self.backend.computing())
        self._kept = [
            self.backend.forward(self._chunks[i], last_backward=i == 0) for i in range(first_kept, len(self._chunks))
        ]
        # Rows of the chunks that sharded backends add come last, and no position of the batch points to them.
        rows = torch.cat([*encoded, *(each.detach() for each in self._kept)])
        self._leaves = rows[batch.position].requires_grad_()
        return self._leaves

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the loss to the parameters' gradients.

        Args:
            loss: Scalar, this rank's part of the loss of the global batch: the parts of all ranks sum to the loss.
        """
        # Backends average gradients over the ranks, and the gradient of the loss is the sum over its parts.
        (loss * self.backend.ranks).backward()
        self.loss = loss.detach()
        gradients = self._gradients_by_chunk()
        with self.backend.accumulation():
            for i in reversed(range(len(self._chunks))):
                encoded = self._kept.pop() if self._kept else self._encode_again(i)
                self.backend.backward(encoded, gradients.pop(), last=i == 0)
                del encoded  # frees its activations before the next chunk allocates its own

    def _encode_without_activations(self, count: int) -> list[Tensor]:
        """Embeddings of the first `count` chunks in one tensor, or no tensor; keeps the random state of each chunk.

        Embeddings are copied into one tensor: thousands of small ones, allocated between the large tensors of the
        forwards, would leave gaps in the allocator's memory that the next forward's do not fit into.
        """
        chunks = self._chunks[:count]
        self._states = RandomStates(count)
        rows, encoded = sum(len(chunk.lengths) for chunk in chunks), None
        start = 0
        for i, chunk in enumerate(chunks):
            self._states.keep(i, RandomState.now(chunk.input_ids.device))
            part = self.backend.forward(chunk, last_backward=i == 0)
            if encoded is None:
                encoded = part.new_empty(rows, part.shape[1])
            encoded[start : start + len(part)] = part
            start += len(part)
            del part
        return [] if encoded is None else [encoded]

    def _encode_again(self, i: int) -> Tensor:
        with self._states[i].restored():
            return self.backend.forward(self._chunks[i], last_backward=i == 0)

    def _gradients_by_chunk(self) -> list[Tensor]:
        """The gradient [B, D] of each chunk's embeddings; zeros for chunks that a sharded backend added."""
        gradient = self._leaves.grad
        assert gradient is not None
        ordered = torch.empty_like(gradient)
        ordered[self._batch.position] = gradient
        parts = list(ordered.split([len(chunk.lengths) for chunk in self._batch.chunks]))
        return parts + [ordered.new_zeros(len(each.lengths), ordered.shape[1]) for each in self._chunks[len(parts) :]]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._contexts.__exit__(kind, error, trace)
        # The caller's variable outlives the block: what is kept must not.
        self._kept = []
        for name in ("_leaves", "_batch", "_chunks", "_states"):
            self.__dict__.pop(name, None)


def cached_backward(
    backend: ForwardBackward, batch: TokenBatch, loss_of: Callable[[Tensor], Tensor], budget: ActivationBudget
) -> Tensor:
    """Add the gradient of a loss to the parameters' gradients; this rank's part of the loss, a detached scalar.

    Args:
        backend: The model, and how its ranks synchronise.
        batch: This rank's texts.
        loss_of: From raw embeddings [n, D], in the order of the texts, to this rank's part of the loss of the global
            batch; may communicate. The parts of all ranks sum to the loss.
        budget: Which activations are kept between the passes.
    """
    with CachedPasses(backend, budget) as passes:
        loss = loss_of(passes.forward(batch))
        passes.backward(loss)
    return loss.detach()
