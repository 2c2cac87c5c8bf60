"""The spread-out regulariser, which keeps unrelated embeddings far from each other.

Shapes: n texts, D dimensions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nestling.losses.matryoshka import normalize_prefix, weighted_dims
from nestling.losses.numerics import loss_dtype


def spread_out(embeddings: Tensor, *, dims: Sequence[int], dim_weights: Sequence[float] | None = None) -> Tensor:
    """The mean of the squared cosines of all pairs of different rows (https://arxiv.org/abs/1708.06320, second moment).

    L = 1 / (n (n - 1)) sum over i != j of cos(x_i, x_j)^2, as in EmbeddingGemma (https://arxiv.org/abs/2509.20354).

    Args:
        embeddings: [n, D] embeddings, not normalised, in any dtype.
        dims: Matryoshka dimensions.
        dim_weights: w_p, aligned with `dims`; default 1 each.

    Returns:
        Scalar, float32 or float64: the weighted sum over `dims`; 0 for one row.

    Raises:
        ValueError: dims or dim_weights are invalid.
    """
    pairs = max(1, len(embeddings) * (len(embeddings) - 1))
    loss = embeddings.new_zeros((), dtype=loss_dtype(embeddings))
    with torch.autocast(embeddings.device.type, enabled=False):
        for dim, dim_weight in weighted_dims(dims, dim_weights, embeddings.shape[1]):
            x = normalize_prefix(embeddings, dim)
            # Both have the sum of all squared cosines as that of their squares; the smaller one is made.
            gram = x @ x.T if len(x) < dim else x.T @ x
            with_themselves = x.square().sum(dim=1).square().sum()
            loss = loss + dim_weight * (gram.square().sum() - with_themselves) / pairs
    return loss
