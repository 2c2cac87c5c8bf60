"""FSDP2 (fully_shard): parameters, gradients and optimizer state in shards, parameters gathered layer by layer."""

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

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_RANK_ZERO = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class Fsdp(Plain):
    """Gradients are reduced in the last backward pass of a step, or in each where whole ones do not fit.

    Args:
        model: The model, sharded in place.
        optimizer: Over its shards.
        whole_gradients: Whether the gradients of all trained parameters fit in a rank's memory.
    """

    name = "FSDP2"
    sharded = True
    independent = False

    def __init__(self, model: TokenModel, optimizer: Optimizer, *, whole_gradients: bool) -> None:
        super().__init__(model, optimizer)
        self.whole_gradients = whole_gradients
        self.ranks = rank_and_world()[1]

    @property
    def state_fractions(self) -> StateFractions:
        return fsdp_fractions(self.ranks, whole_gradients=self.whole_gradients)

    def agree(self, chunks: Sequence[AnyChunk], kept: int) -> tuple[Sequence[AnyChunk], int]:
        return agree_on_chunks(chunks, kept)

    def computing(self) -> AbstractContextManager[object]:
        return self.model.computing(cache=False)  # which would keep a whole copy of the sharded weights

    def encode(self, chunk: AnyChunk, *, last: bool) -> Tensor:
        encoded: Tensor = self.wrapped(chunk)
        return encoded

    def backward(self, encoded: Tensor, gradient: Tensor, *, last: bool) -> None:
        sharded = cast(Any, self.wrapped)
        sharded.set_requires_gradient_sync(last or not self.whole_gradients)
        sharded.set_is_last_backward(last)
        torch.autograd.backward(encoded, gradient)

    def tensors(self) -> dict[str, Tensor]:
        keep = rank_and_world()[0] == 0
        whole: dict[str, Tensor] = {}
        for name, tensor in trainable_tensors(self.model).items():
            gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if keep:
                whole[name] = gathered.cpu()
        return whole

    def save_optimizer(self, folder: Path) -> None:
        state = get_optimizer_state_dict(self.wrapped, self.optimizer, options=WHOLE)
        if rank_and_world()[0] == 0:
            save_optimizer(folder, cast(dict[str, object], state))

    def restore(self, folder: Path, *, optimizer: bool = True) -> None:
        restore_tensors(folder, self.model)
        if optimizer:
            rank = rank_and_world()[0]
            path = folder / OPTIMIZER
            state = torch.load(path, map_location="cpu", weights_only=True) if rank == 0 else {}
            set_optimizer_state_dict(self.wrapped, self.optimizer, state, options=FROM_RANK_ZERO)


def fsdp_fractions(ranks: int, *, whole_gradients: bool) -> StateFractions:
    """What one of so many ranks holds."""
    part = 1 / ranks
    return StateFractions(part, part + whole_gradients, 2 * part)
