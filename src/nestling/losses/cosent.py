"""The loss of graded pairs of texts.

Shapes: B pairs, D dimensions.
"""

from collections.abc import Sequence

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
    assert left.shape == right.shape and scores.shape == left.shape[:1], (left.shape, right.shape, scores.shape)
    loss = left.new_zeros((), dtype=loss_dtype(left))
    with torch.autocast(left.device.type, enabled=False):
        for dim, dim_weight in weighted_dims(dims, dim_weights, left.shape[1]):
            cosines = (normalize_prefix(left, dim) * normalize_prefix(right, dim)).sum(dim=1) / temperature  # [B]
            inversions = (cosines - cosines[:, None])[scores[:, None] > scores]  # cos_j - cos_i where i is above j
            loss = loss + dim_weight * torch.logsumexp(F.pad(inversions, (1, 0)), dim=0)
    return loss
