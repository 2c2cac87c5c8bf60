"""Sparse changes of TIES and DARE: which elements of a model's change are kept, and how the kept ones are combined.

Notation: k models, n elements of a slice of a tensor, d a model's change (its values less the base's) in float32, w_i
its weight.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# The magnitude of a float32 is the lower 31 of its bits: 15 upper ones (exponent, start of the mantissa) and 16 lower.
LOWER_BITS = 16
UPPER_BINS, LOWER_BINS = 2**15, 2**LOWER_BITS


@dataclass(frozen=True)
class MagnitudeThreshold:
    """Separates the elements of a tensor that are largest in magnitude from the others.

    Args:
        bits: `magnitude_bits` of the smallest element that is kept. All elements above it are kept.
        equal: How many elements with exactly these bits are kept: the first of the tensor.
    """

    bits: int
    equal: int


def kept_count(elements: int, density: float) -> int:
    """Number of elements that TIES keeps: the fraction `density`, rounded down; at least one, as in mergekit."""
    return max(1, int(density * elements))


def magnitude_bits(change: Tensor) -> Tensor:
    """The bits of |d| as integers, [n] int32; they have the order of |d|."""
    return change.view(torch.int32) & 0x7FFFFFFF


def upper_bit_counts(bits: Tensor) -> Tensor:
    """Histogram of the upper bits, [UPPER_BINS]."""
    return torch.bincount(bits >> LOWER_BITS, minlength=UPPER_BINS)


def lower_bit_counts(bits: Tensor, upper: int) -> Tensor:
    """Histogram of the lower bits of the elements that have these upper bits, [LOWER_BINS]."""
    return torch.bincount(bits[bits >> LOWER_BITS == upper] & (LOWER_BINS - 1), minlength=LOWER_BINS)


def bin_of_largest(counts: Tensor, wanted: int) -> tuple[int, int]:
    """Where the `wanted` largest elements end in a histogram: the last bin, and how many they take of its elements."""
    from_top = counts.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, wanted))
    before = int(from_top[position - 1]) if position else 0
    return len(counts) - 1 - position, wanted - before


def total_counts(histograms: Iterable[Tensor]) -> Tensor:
    """The sum of one or more histograms."""
    remaining = iter(histograms)
    total = next(remaining).clone()
    for counts in remaining:
        total += counts
    return total


def largest_mask(bits: Tensor, threshold: MagnitudeThreshold, equal_before: int) -> Tensor:
    """Which elements of a slice are kept, [n] bool.

    Args:
        bits: Their `magnitude_bits`.
        threshold: Of the whole tensor.
        equal_before: Elements before the slice whose bits are exactly the threshold's.
    """
    equal = bits == threshold.bits
    return (bits > threshold.bits) | (equal & (equal.cumsum(0) + equal_before <= threshold.equal))


def random_mask(name: str, model: int, start: int, stop: int, *, density: float, seed: int) -> Tensor:
    """Which elements of a slice DARE keeps: [stop - start] bool, each True with probability `density`.

    An element's value depends only on the seed, the tensor's name, the model's index and the element's index in the
    tensor, and so not on slices or threads.

    Args:
        name: The tensor's name.
        model: The model's index.
        start: First element; a multiple of 8, which is how many float32 numbers the generator makes in one step.
        stop: Element after the last.
        density: Fraction to keep.
        seed: Seed of the generator.
    """
    assert start % 8 == 0, start
    key = hashlib.blake2b(f"{seed}\0{model}\0{name}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"), counter=start // 8))
    kept: Tensor = torch.from_numpy(generator.random(stop - start, dtype=np.float32)) < density
    return kept


def weighted_sum(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum(w d), [n] float64."""
    total = torch.zeros(len(changes[0]), dtype=torch.float64)
    for change, weight in zip(changes, weights, strict=True):
        total += weight * change.double()
    return total


def disjoint_merge(changes: Sequence[Tensor], weights: Sequence[float], *, mean: bool) -> Tensor:
    """TIES's election of signs and disjoint merge, [n] float64; https://arxiv.org/abs/2306.01708.

    The sign of an element is that of sum(w d) over all models. Then only the w d that have this sign are added up. As
    in mergekit, a sum of exactly 0 counts as positive.

    Args:
        changes: Of each model, [n] float32; 0 where an element is not kept.
        weights: Of each model.
        mean: Divide by the weights of the models that were added up, as TIES does and DARE does not.
    """
    positive = weighted_sum(changes, weights) >= 0
    total = torch.zeros(len(positive), dtype=torch.float64)
    divisor = torch.zeros_like(total)
    for change, weight in zip(changes, weights, strict=True):
        weighted = weight * change.double()
        agrees = torch.where(positive, weighted > 0, weighted < 0)
        total += torch.where(agrees, weighted, 0)
        divisor += weight * agrees.double()  # a Python number times a bool tensor would be float32
    return total / torch.where(divisor == 0, 1, divisor) if mean else total
