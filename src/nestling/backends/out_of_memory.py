"""A rank that ran out of memory stays with the others to the end of the step, so that all can save and leave."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from nestling.backends.agreement import one_token
from nestling.backends.backend import Backend
from nestling.batches.packing import AnyChunk


class OutOfMemoryGuard:
    """The passes of one step of an independent backend, which go on with zeros once memory has ended.

    The embeddings of this rank and the gradients of all ranks are worth nothing then. Memory that ends in the last
    backward pass, in which ranks are already adding up gradients, is an error still.

    Args:
        backend: Whose passes these are.

    Attributes:
        ran_out: Whether memory has ended.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.ranks = backend.ranks
        self.ran_out = False

    def agree(self, chunks: Sequence[AnyChunk], kept: int) -> tuple[Sequence[AnyChunk], int]:
        self._token = one_token(chunks[0])
        return self.backend.agree(chunks, kept)

    def computing(self) -> AbstractContextManager[object]:
        return self.backend.computing()

    def accumulation(self) -> AbstractContextManager[None]:
        return self.backend.accumulation()

    def encode(self, chunk: AnyChunk, *, last: bool) -> Tensor:
        if not self.ran_out:
            try:
                return self.backend.encode(chunk, last=last)
            except torch.OutOfMemoryError:
                self.ran_out = True
        model = self.backend.model
        return torch.zeros(len(chunk.lengths), model.width, device=model.device)

    def backward(self, encoded: Tensor, gradient: Tensor, *, last: bool) -> None:
        if self.ran_out:
            if last:
                self._synchronise()
            return
        try:
            self.backend.backward(encoded, gradient, last=last)
        except torch.OutOfMemoryError:
            if last:
                raise
            self.ran_out = True

    def _synchronise(self) -> None:
        encoded = self.backend.encode(self._token, last=True)
        self.backend.backward(encoded, torch.zeros_like(encoded), last=True)
