"""FSDP2 (fully_shard): parameters, gradients and optimizer state are sharded; parameters are gathered by layer."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from nestling.backends.agreement import agree_on_chunks
from nestling.backends.plain import Plain
from nestling.backends.sizes import StateFractions
from nestling.batches.packing import AnyChunk
from nestling.checkpoint.state import OPTIMIZER, restore_tensors, save_optimizer, trainable_tensors
from nestling.distributed.ranks import rank_and_world
from nestling.models.token_model import TokenModel

FULL_STATE = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_RANK_ZERO = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class Fsdp(Plain):
    """As `Plain`, for a model that is sharded.

    Args:
        model: The model, sharded in place.
        optimizer: The optimizer of its sharded parameters.
        full_gradients: Whether ranks keep full (unsharded) gradients and reduce them once, in the last backward pass of
            a step. Otherwise, for lack of memory, they reduce them in the backward pass of each chunk.
    """

    name = "FSDP2"
    sharded = True
    independent = False

    def __init__(self, model: TokenModel, optimizer: Optimizer, *, full_gradients: bool) -> None:
        super().__init__(model, optimizer)
        self.full_gradients = full_gradients
        self.ranks = rank_and_world()[1]

    @property
    def state_fractions(self) -> StateFractions:
        return fsdp_fractions(self.ranks, full_gradients=self.full_gradients)

    def agree_on_chunks(self, chunks: Sequence[AnyChunk], kept: int) -> tuple[Sequence[AnyChunk], int]:
        return agree_on_chunks(chunks, kept)

    def computing(self) -> AbstractContextManager[object]:
        return self.model.computing(cache=False)  # the cache would hold a full copy of the sharded weights

    def forward(self, chunk: AnyChunk, *, last_backward: bool) -> Tensor:
        output: Tensor = self.wrapped(chunk)
        return output

    def backward(self, output: Tensor, gradient: Tensor, *, last: bool) -> None:
        sharded = cast(Any, self.wrapped)
        sharded.set_requires_gradient_sync(last or not self.full_gradients)
        sharded.set_is_last_backward(last)
        torch.autograd.backward(output, gradient)

    def tensors(self) -> dict[str, Tensor]:
        on_rank_zero = rank_and_world()[0] == 0
        tensors: dict[str, Tensor] = {}
        for name, tensor in trainable_tensors(self.model).items():
            gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if on_rank_zero:
                tensors[name] = gathered.cpu()
        return tensors

    def save_optimizer(self, folder: Path) -> None:
        state = get_optimizer_state_dict(self.wrapped, self.optimizer, options=FULL_STATE)
        if rank_and_world()[0] == 0:
            save_optimizer(folder, cast(dict[str, object], state))

    def restore(self, folder: Path, *, optimizer: bool = True) -> None:
        restore_tensors(folder, self.model)
        if optimizer:
            rank = rank_and_world()[0]
            path = folder / OPTIMIZER
            state = torch.load(path, map_location="cpu", weights_only=True) if rank == 0 else {}
            set_optimizer_state_dict(self.wrapped, self.optimizer, state, options=FROM_RANK_ZERO)


def fsdp_fractions(ranks: int, *, full_gradients: bool) -> StateFractions:
    """The fraction of a model's state that one rank holds."""
    shard = 1 / ranks
    return StateFractions(shard, shard + full_gradients, 2 * shard)
