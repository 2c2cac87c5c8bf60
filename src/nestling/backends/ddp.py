"""DistributedDataParallel: whole models, gradients reduced in the last backward pass of a step."""

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
    """As one process, but that `backward` of the last chunk reduces all gradients, in buckets, while it runs.

    Args:
        model: The model.
        optimizer: Over its trained parameters.
        wrapped: The model in DDP.
    """

    name = "DDP"

    def __init__(self, model: TokenModel, optimizer: Optimizer, wrapped: DistributedDataParallel) -> None:
        super().__init__(model, optimizer)
        self.wrapped = self.ddp = wrapped
        self.ranks = rank_and_world()[1]

    def encode(self, chunk: AnyChunk, *, last: bool) -> Tensor:
        # A forward that were to synchronise would make the reducer count the backward passes that come before its own.
        with self.ddp.no_sync():
            encoded: Tensor = self.wrapped(chunk, in_place=not last)
            return encoded

    def backward(self, encoded: Tensor, gradient: Tensor, *, last: bool) -> None:
        with Accelerator.trigger_sync_in_backward(self.ddp) if last else nullcontext():
            torch.autograd.backward(encoded, gradient)
