"""The step of a loss that is a sum over chunks: each chunk runs forward and backward, the last synchronises gradients.

Shapes: n prompts of a chunk, C numbers that the model gives for a prompt.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from nestling.backends.backend import ForwardBackward
from nestling.batches.packing import AnyChunk


class AccumulatedPasses:
    """The passes of one step, used as a context: for each chunk in order `forward`, its loss, and `backward`.

    At the end of the block ranks of a sharded model with fewer chunks than others run the forwards that are missing.

    Args:
        backend: The model, and how its ranks synchronise.
        chunks: This rank's prompts, on the model's device.

    Attributes:
        loss: Sum of the chunks' losses, a detached scalar.
    """

    def __init__(self, backend: ForwardBackward, chunks: Sequence[AnyChunk]) -> None:
        self.backend = backend
        self._own = len(chunks)
        self.chunks, _ = backend.agree_on_chunks(chunks, 0)
        self.loss = torch.zeros((), device=chunks[0].input_ids.device)
        self._number = 0

    @property
    def _last(self) -> bool:
        return self._number + 1 == len(self.chunks)

    def forward(self, chunk: AnyChunk) -> Tensor:
        """What the model gives for the prompts of the next chunk, [n, C], a leaf that the loss is differentiated to."""
        self._output = self.backend.forward(chunk, last_backward=self._last)
        self._leaf = self._output.detach().requires_grad_()
        return self._leaf

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the chunk's loss to the parameters' gradients.

        Args:
            loss: Scalar, the chunk's part of the loss of the global batch: the parts of all chunks of all ranks sum
                to the loss.
        """
        # Backends average gradients over the ranks, and the gradient of the loss is the sum over its parts.
        (loss * self.backend.ranks).backward()
        self.loss += loss.detach()
        self._finish_chunk()

    def _finish_chunk(self) -> None:
        gradient = torch.zeros_like(self._leaf) if self._leaf.grad is None else self._leaf.grad
        self.backend.backward(self._output, gradient, last=self._last)
        del self._output, self._leaf  # frees the activations before the next chunk allocates its own
        self._number += 1

    def __enter__(self) -> Self:
        with ExitStack() as contexts:
            contexts.enter_context(self.backend.computing())
            contexts.enter_context(self.backend.accumulation())
            self._contexts = contexts.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.__dict__.pop("_output", None)  # the caller's variable outlives the block: activations must not
            self.__dict__.pop("_leaf", None)
            self._contexts.__exit__(kind, error, trace)
            return
        with self._contexts:
            assert self._number == self._own, "every chunk needs its forward and backward"
            for chunk in self.chunks[self._own :]:
                self.forward(chunk)
                self._finish_chunk()


def accumulated_backward(
    backend: ForwardBackward, chunks: Sequence[AnyChunk], loss_of: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Add the gradient of a loss to the parameters' gradients; the loss of this rank, a detached scalar.

    Args:
        backend: The model, and how its ranks synchronise.
        chunks: This rank's prompts, on the model's device.
        loss_of: From the number of a chunk and what the model gives for it, [n, C], to its part of the loss of the
            global batch. The parts of all chunks of all ranks sum to the loss.
    """
    with AccumulatedPasses(backend, chunks) as passes:
        for i, chunk in enumerate(chunks):
            passes.backward(loss_of(i, passes.forward(chunk)))
    return passes.loss
