"""What TIES and DARE do element by element: which changes are kept, and which of them agree.

Shapes: k models, n elements of a piece of a tensor, d a model's change in float32, w_i its weight.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LOW_BITS = 16
HIGHS, LOWS = 2**15, 2**LOW_BITS  # a magnitude in float32 has 31 bits


@dataclass(frozen=True)
class MagnitudeThreshold:
    """Which elements have the largest magnitudes.

    Args:
        bits: Of the smallest that is kept; elements above it are kept all.
        equal: How many with exactly these bits are kept, the first of the tensor.
    """

    bits: int
    equal: int


def kept_count(elements: int, density: float) -> int:
    """Of so many elements; at least one, as in mergekit."""
    return max(1, int(density * elements))


def magnitude_bits(change: Tensor) -> Tensor:
    """[n] int32 in the order of |d|."""
    return change.view(torch.int32) & 0x7FFFFFFF


def high_counts(bits: Tensor) -> Tensor:
    """[HIGHS]: how many elements share each pattern of upper bits."""
    return torch.bincount(bits >> LOW_BITS, minlength=HIGHS)


def low_counts(bits: Tensor, high: int) -> Tensor:
    """[LOWS]: the same of the lower bits, among elements with `high` above them."""
    return torch.bincount(bits[bits >> LOW_BITS == high] & (LOWS - 1), minlength=LOWS)


def largest(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the `wanted`-th element from the top, and how many of its elements are wanted."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, wanted))
    before = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, wanted - before


def total(counts: Iterable[Tensor]) -> Tensor:
    """The sum of one or more."""
    each = iter(counts)
    found = next(each).clone()
    for more in each:
        found += more
    return found


def above_threshold(bits: Tensor, threshold: MagnitudeThreshold, equal_before: int) -> Tensor:
    """[n] bool; `equal_before` elements with the cut's bits come earlier in the tensor."""
    equal = bits == threshold.bits
    return (bits > threshold.bits) | (equal & (equal.cumsum(0) + equal_before <= threshold.equal))


def kept_by_chance(name: str, model: int, start: int, stop: int, *, density: float, seed: int) -> Tensor:
    """[stop - start] bool, each True with probability `density`.

    An element's value depends on the seed, the model's place, the tensor's name and the element's place in it alone.

    Args:
        start: A multiple of 8, as many numbers as a step of the generator gives.
    """
    assert start % 8 == 0, start
    key = hashlib.blake2b(f"{seed}\0{model}\0{name}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"), counter=start // 8))
    kept: Tensor = torch.from_numpy(generator.random(stop - start, dtype=np.float32)) < density
    return kept


def added(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum(w d), [n] float64."""
    found = torch.zeros(len(changes[0]), dtype=torch.float64)
    for change, weight in zip(changes, weights, strict=True):
        found += weight * change.double()
    return found


def agreed(changes: Sequence[Tensor], weights: Sequence[float], *, mean: bool) -> Tensor:
    """sum(w d) over those whose w d has the sign of the sum over all, [n] float64; https://arxiv.org/abs/2306.01708.

    A sum of exactly 0 counts as positive, as in mergekit.

    Args:
        mean: Divide by the weights of those.
    """
    positive = added(changes, weights) >= 0
    found = torch.zeros(len(positive), dtype=torch.float64)
    divisor = torch.zeros_like(found)
    for change, weight in zip(changes, weights, strict=True):
        moved = weight * change.double()
        agrees = torch.where(positive, moved > 0, moved < 0)
        found += torch.where(agrees, moved, 0)
        divisor += weight * agrees.double()  # by a bool, a number would be rounded to float32
    return found / torch.where(divisor == 0, 1, divisor) if mean else found
