"""Retention: embeddings of texts stay where they were before training, as in learning without forgetting
(Li and Hoiem 2016, https://arxiv.org/abs/1606.09282), here on texts that are of no domain.

Shapes: n texts, D dimensions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nestling.losses.matryoshka import normalize_prefix, weighted_dims
from nestling.losses.numerics import loss_dtype


def retention(
    embeddings: Tensor,
    before: Tensor,
    weight: Tensor,
    *,
    dims: Sequence[int],
    dim_weights: Sequence[float] | None = None,
) -> Tensor:
    """The squared distance of each normalised embedding from what it was, at every dimension: 2 - 2 cos.

    Args:
        embeddings: [n, D] embeddings, not normalised, in any dtype.
        before: [n, D] embeddings of the same texts by the model before training, not normalised.
        weight: [n] weight of each text in the loss; 1 / n each for the mean.
        dims: Matryoshka dimensions.
        dim_weights: w_p, aligned with `dims`; default 1 each.

    Returns:
        Scalar, float32 or float64: the weighted sum over texts and over `dims`.

    Raises:
        ValueError: dims or dim_weights are invalid.
    """
    dtype = loss_dtype(embeddings)
    loss = embeddings.new_zeros((), dtype=dtype)
    with torch.autocast(embeddings.device.type, enabled=False):
        for dim, dim_weight in weighted_dims(dims, dim_weights, embeddings.shape[1]):
            cosines = (normalize_prefix(embeddings, dim) * normalize_prefix(before, dim).to(dtype)).sum(dim=1)
            loss = loss + dim_weight * (weight * (2 - 2 * cosines)).sum()
    return loss
