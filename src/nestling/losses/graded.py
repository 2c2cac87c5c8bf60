"""The losses of graded pairs of texts.

Shapes: B pairs, D dimensions.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nestling.losses.matryoshka import normalize_prefix, weighted_dims
from nestling.losses.numerics import check_temperature, loss_dtype


def cosent(
    left: Tensor,
    right: Tensor,
    scores: Tensor,
    *,
    temperature: float,
    dims: Sequence[int],
    dim_weights: Sequence[float] | None = None,
) -> Tensor:
    """CoSENT (https://kexue.fm/archives/8847): the cosines of pairs are to be in the order of their labels.

    L = log(1 + sum over (i, j) with scores_i > scores_j of e^{(cos_j - cos_i)/tau})

    Args:
        left: [B, D] embeddings, not normalised, in any dtype.
        right: [B, D] embeddings, aligned with `left`.
        scores: [B] labels; only their order matters.
        temperature: tau.
        dims: Matryoshka dimensions.
        dim_weights: w_p, aligned with `dims`; default 1 each.

    Returns:
        Scalar, float32 or float64: the sum over `dims`; 0 if all labels are equal.

    Raises:
        ValueError: temperature, dims or dim_weights are invalid.
    """
    check_temperature(temperature)

    def order(a: Tensor, b: Tensor) -> Tensor:
        return disorder((a * b).sum(dim=1) / temperature, scores)

    return sum_over_dims(order, left, right, scores, dims, dim_weights)


def angle(
    left: Tensor,
    right: Tensor,
    scores: Tensor,
    *,
    temperature: float,
    dims: Sequence[int],
    dim_weights: Sequence[float] | None = None,
) -> Tensor:
    """AnglE (https://arxiv.org/abs/2309.12871): as `cosent`, with |cos + sin| in place of the cosine.

    Coordinates i and i + D/2 of an embedding of length 1 are the real and the imaginary part of a complex number; an
    odd D is padded with 0. sin is the sum over them of im(a) re(b) - re(a) im(b).
    """
    check_temperature(temperature)

    def order(a: Tensor, b: Tensor) -> Tensor:
        (re_a, im_a), (re_b, im_b) = (F.pad(each, (0, each.shape[1] % 2)).chunk(2, dim=1) for each in (a, b))
        sines = (im_a * re_b - re_a * im_b).sum(dim=1)
        return disorder(((a * b).sum(dim=1) + sines).abs() / temperature, scores)

    return sum_over_dims(order, left, right, scores, dims, dim_weights)


def cosine_similarity(
    left: Tensor,
    right: Tensor,
    scores: Tensor,
    *,
    dims: Sequence[int],
    dim_weights: Sequence[float] | None = None,
) -> Tensor:
    """The mean squared difference of the cosines and the labels, which are from -1 to 1; arguments as of `cosent`."""

    def difference(a: Tensor, b: Tensor) -> Tensor:
        return ((a * b).sum(dim=1) - scores).square().mean()

    return sum_over_dims(difference, left, right, scores, dims, dim_weights)


def disorder(similarities: Tensor, scores: Tensor) -> Tensor:
    """log(1 + sum over (i, j) with scores_i > scores_j of e^{s_j - s_i}), from [B] and [B]."""
    inversions = (similarities - similarities[:, None])[scores[:, None] > scores]  # s_j - s_i where i is above j
    return torch.logsumexp(F.pad(inversions, (1, 0)), dim=0)


def sum_over_dims(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    left: Tensor,
    right: Tensor,
    scores: Tensor,
    dims: Sequence[int],
    dim_weights: Sequence[float] | None,
) -> Tensor:
    """The weighted sum over `dims` of a loss of the normalised prefixes of both sides."""
    assert left.shape == right.shape and scores.shape == left.shape[:1], (left.shape, right.shape, scores.shape)
    loss = left.new_zeros((), dtype=loss_dtype(left))
    with torch.autocast(left.device.type, enabled=False):
        for dim, dim_weight in weighted_dims(dims, dim_weights, left.shape[1]):
            loss = loss + dim_weight * loss_of(normalize_prefix(left, dim), normalize_prefix(right, dim))
    return loss
