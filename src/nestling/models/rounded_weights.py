"""Weights as they are written: rounded to a shorter type, in one of two ways.

Training changes many weights by less than half of the distance between two numbers of bfloat16 (1e-4 at a weight of
0.03). Rounding each to the nearest number takes those changes back, all of them in the same direction: of what a short
training has changed, half can be lost. Stochastic rounding keeps them in the mean over many weights, and adds noise
(https://arxiv.org/abs/1502.02551). Which is better depends on the model: docs/serving.md has figures.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
import xxhash
from torch import Tensor

from nestling.models.merged_weights import MergedWeights
from nestling.models.safetensors_writer import Spec

Rounding = Literal["nearest", "stochastic"]

# The integers of the same width, by which numbers of a type are ordered.
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16}

# Values that are rounded at once, which takes some 24 bytes for each.
BLOCK = 2**20


class RoundedWeights(Mapping[str, Tensor]):
    """Weights rounded to a dtype when they are accessed, always alike.

    Args:
        weights: By name; tensors of integers stay as they are.
        dtype: float32, bfloat16 or float16.
        rounding: How; stochastic rounding takes its random numbers from the name of a tensor.
    """

    def __init__(self, weights: MergedWeights, dtype: torch.dtype, rounding: Rounding = "nearest") -> None:
        self.dtype, self.rounding = dtype, rounding
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        name = self._weights.first_name(name)  # tied tensors are rounded alike
        tensor = self._weights[name].detach()
        if not tensor.is_floating_point():
            return tensor
        if self.rounding == "nearest" or self.dtype not in BITS or tensor.dtype == self.dtype:
            return tensor.to(self.dtype)
        return round_stochastically(tensor.cpu().contiguous(), self.dtype, seed=xxhash.xxh32_intdigest(name.encode()))

    def specs(self) -> dict[str, Spec]:
        """Shape and dtype of each tensor."""
        return self._weights.specs(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def round_stochastically(tensor: Tensor, dtype: torch.dtype, *, seed: int) -> Tensor:
    """One of the two numbers beside each value, the nearer with the larger probability, so that the mean is the value.

    Args:
        tensor: Of floating point, contiguous, on the CPU.
        dtype: bfloat16 or float16.
        seed: Of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    rounded = tensor.to(dtype)
    for values, near in zip(tensor.view(-1).split(BLOCK), rounded.view(-1).split(BLOCK), strict=True):
        either = upper_bits(values, generator) if dtype == torch.bfloat16 else one_beside(values, near, generator)
        near.copy_(torch.where(either.isfinite(), either, near))
    return rounded


def upper_bits(values: Tensor, generator: torch.Generator) -> Tensor:
    """One of the two numbers of bfloat16 beside each value, in bfloat16: the upper half of its bits in float32.

    A random number that is added to the lower half carries into the upper one as often as that half is large.
    """
    added = torch.empty(len(values), dtype=torch.int32).random_(2**16, generator=generator)
    return ((values.float().view(torch.int32) + added) & -(2**16)).view(torch.float32).bfloat16()


def one_beside(values: Tensor, near: Tensor, generator: torch.Generator) -> Tensor:
    """One of the two numbers of a type beside each value, given the nearest."""
    error = values.float() - near.float()
    other = neighbour(near, error)
    probability = error / (other.float() - near.float())  # of the other one, at most a half
    return torch.where(torch.rand(len(values), generator=generator) < probability, other, near)


def neighbour(near: Tensor, direction: Tensor) -> Tensor:
    """The number next to each of `near`, above it where `direction` is positive, else below it."""
    bits = near.view(BITS[near.dtype])  # sign and magnitude: one more is the next number away from zero
    away = (direction > 0) == (near > 0)
    smallest = torch.where(direction > 0, 1, 1 - 2**15).to(bits.dtype)
    return torch.where(near == 0, smallest, bits + torch.where(away, 1, -1).to(bits.dtype)).view(near.dtype)
