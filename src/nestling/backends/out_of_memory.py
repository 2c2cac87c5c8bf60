"""Out-of-memory errors on one of several ranks: the rank finishes the step without computing, so that all can save."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from nestling.backends.agreement import one_token_chunk
from nestling.backends.backend import Backend
from nestling.batches.packing import AnyChunk


class OutOfMemoryGuard:
    """The forward and backward passes of one step of an independent backend, with out-of-memory errors caught.

    Once this rank has run out of memory, its forward passes return zeros and its backward passes do nothing but
    synchronise, so that other ranks do not wait forever. The gradients of all ranks are invalid then, and must be
    discarded. An error in the last backward pass, in which ranks are already reducing gradients, is raised.

    Args:
        backend: The backend.

    Attributes:
        ran_out: Whether this rank has run out of memory.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.ranks = backend.ranks
        self.ran_out = False

    def agree_on_chunks(self, chunks: Sequence[AnyChunk], kept: int) -> tuple[Sequence[AnyChunk], int]:
        self._token = one_token_chunk(chunks[0])
        return self.backend.agree_on_chunks(chunks, kept)

    def computing(self) -> AbstractContextManager[object]:
        return self.backend.computing()

    def accumulation(self) -> AbstractContextManager[None]:
        return self.backend.accumulation()

    def forward(self, chunk: AnyChunk, *, last_backward: bool) -> Tensor:
        if not self.ran_out:
            try:
                return self.backend.forward(chunk, last_backward=last_backward)
            except torch.OutOfMemoryError:
                self.ran_out = True
        model = self.backend.model
        return torch.zeros(len(chunk.lengths), model.width, device=model.device)

    def backward(self, output: Tensor, gradient: Tensor, *, last: bool) -> None:
        if self.ran_out:
            if last:
                self._synchronise()
            return
        try:
            self.backend.backward(output, gradient, last=last)
        except torch.OutOfMemoryError:
            if last:
                raise
            self.ran_out = True

    def _synchronise(self) -> None:
        """Take part in the reduction of gradients, with zeros."""
        output = self.backend.forward(self._token, last_backward=True)
        self.backend.backward(output, torch.zeros_like(output), last=True)
