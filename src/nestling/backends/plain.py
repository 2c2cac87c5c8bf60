"""The backend of a single process, from which DDP and FSDP2 inherit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nestling.backends.optimizer import clip_gradients, set_learning_rate
from nestling.backends.sizes import StateFractions
from nestling.batches.packing import AnyChunk
from nestling.checkpoint.state import load_optimizer, restore_tensors, save_optimizer, trainable_tensors
from nestling.distributed.ranks import rank_and_world
from nestling.models.token_model import TokenModel


class Plain:
    """A model and a torch optimizer in one process; nothing is synchronised.

    Args:
        model: The model.
        optimizer: The optimizer of its trained parameters.
        moments: Size of its moments, as a multiple of the trained parameters' size.
    """

    name = "one process"
    ranks = 1
    sharded = False
    independent = True

    def __init__(self, model: TokenModel, optimizer: Optimizer, moments: float = 2.0) -> None:
        self.model = model
        self.wrapped: nn.Module = model
        self.optimizer = optimizer
        self.moments = moments

    @property
    def state_fractions(self) -> StateFractions:
        return StateFractions(optimizer=self.moments)

    def agree_on_chunks(self, chunks: Sequence[AnyChunk], kept: int) -> tuple[Sequence[AnyChunk], int]:
        return chunks, kept

    def computing(self) -> AbstractContextManager[object]:
        return self.model.computing()

    def forward(self, chunk: AnyChunk, *, last_backward: bool) -> Tensor:
        output: Tensor = self.model(chunk, in_place=True)
        return output

    @contextmanager
    def accumulation(self) -> Iterator[None]:
        yield

    def backward(self, output: Tensor, gradient: Tensor, *, last: bool) -> None:
        torch.autograd.backward(output, gradient)

    def update(self, learning_rate: float, max_norm: float, accepts: Callable[[float], bool]) -> float:
        set_learning_rate(self.optimizer, learning_rate)
        norm = clip_gradients(self.model.parameters(), max_norm)
        if accepts(norm):
            self.optimizer.step()
        self.zero_grad()
        return norm

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        return trainable_tensors(self.model)

    def save_optimizer(self, folder: Path) -> None:
        if rank_and_world()[0] == 0:
            save_optimizer(folder, self.optimizer.state_dict())

    def restore(self, folder: Path, *, optimizer: bool = True) -> None:
        restore_tensors(folder, self.model)
        if optimizer:
            load_optimizer(folder, self.optimizer)
