"""DistributedDataParallel: every rank holds the full model; gradients are reduced in a step's last backward pass."""

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from nestling.backends.plain import Plain
from nestling.batches.packing import AnyChunk
from nestling.distributed.ranks import rank_and_world
from nestling.models.token_model import TokenModel


class Ddp(Plain):
    """As `Plain`, but the backward pass of the last chunk also reduces all gradients, in buckets while it runs.

    Args:
        model: The model.
        optimizer: The optimizer of its trained parameters.
        wrapped: The model wrapped in DistributedDataParallel.
        moments: Size of its moments, as a multiple of the trained parameters' size.
    """

    name = "DDP"

    def __init__(
        self, model: TokenModel, optimizer: Optimizer, wrapped: DistributedDataParallel, moments: float
    ) -> None:
        super().__init__(model, optimizer, moments)
        self.wrapped = self.ddp = wrapped
        self.ranks = rank_and_world()[1]

    def forward(self, chunk: AnyChunk, *, last_backward: bool) -> Tensor:
        # Forward passes must not prepare the reducer, which would then count the backward passes of other chunks. The
        # last chunk's backward pass synchronises by `trigger_sync_in_backward`.
        with self.ddp.no_sync():
            output: Tensor = self.wrapped(chunk, in_place=not last_backward)
            return output

    def backward(self, output: Tensor, gradient: Tensor, *, last: bool) -> None:
        with Accelerator.trigger_sync_in_backward(self.ddp) if last else nullcontext():
            torch.autograd.backward(output, gradient)
