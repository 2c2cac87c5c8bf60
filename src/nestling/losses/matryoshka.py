"""Matryoshka dimensions (https://arxiv.org/abs/2205.13147): the prefixes of an embedding that are trained.

Every loss of embeddings sums over them: sum_p w_p L(normalize(e[:d_p])), with w_p = 1 by default.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nestling.losses.numerics import loss_dtype

# Norms are clamped to this minimum: an embedding of zeros has cosine 0 with everything and gets a finite gradient.
NORM_FLOOR = 1e-6


def weighted_dims(dims: Sequence[int], dim_weights: Sequence[float] | None, width: int) -> list[tuple[int, float]]:
    """The dimensions in ascending order, each with its weight; ValueError unless they fit embeddings of `width`."""
    if not dims or min(dims) < 1 or max(dims) > width or len(set(dims)) < len(dims):
        raise ValueError(f"dims are {list(dims)}; expected at least one, each once, from 1 to the embedding's {width}")
    if dim_weights is not None and len(dim_weights) != len(dims):
        raise ValueError(f"{len(dim_weights)} dim_weights for {len(dims)} dims; expected one weight for each dimension")
    return sorted(zip(dims, dim_weights if dim_weights is not None else [1.0] * len(dims), strict=True))


def normalize_prefix(embeddings: Tensor, dim: int) -> Tensor:
    """The first `dim` coordinates, normalised to length 1, float32 or float64: [n, D] to [n, dim]."""
    prefix = embeddings[:, :dim].to(loss_dtype(embeddings))
    norm: Tensor = torch.linalg.vector_norm(prefix, dim=1, keepdim=True)
    return prefix / norm.clamp_min(NORM_FLOOR)
