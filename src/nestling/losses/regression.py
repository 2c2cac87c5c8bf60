"""Regression on a teacher's embeddings through a linear projection, which is fitted before training and stays.

Fitting it first, to the embeddings of the model before training, leaves the model what only it can learn; a projection
that begins at random drags it away from what it knows (Kumar et al. 2022, https://arxiv.org/abs/2202.10054).

Shapes: n texts, D dimensions, T of the teacher; projection d, [d, T], belongs to the first d coordinates.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nestling.losses.matryoshka import normalize_prefix, weighted_dims
from nestling.losses.numerics import loss_dtype

# Of the mean of the diagonal, added to it: a batch of texts may have fewer directions than the embedding.
RIDGE = 1e-3
Projections = Mapping[int, Tensor]


def regression(
    embeddings: Tensor,
    teacher: Tensor,
    projections: Projections,
    weight: Tensor,
    *,
    dims: Sequence[int],
    dim_weights: Sequence[float] | None = None,
) -> Tensor:
    """The squared distance of the normalised projection of each embedding from its teacher's:

    |normalize(W_d^T normalize(x[:d])) - t|^2 = 2 - 2 cos, so that it is the squared error and the cosine loss in one.

    Args:
        embeddings: [n, D] embeddings, not normalised, in any dtype.
        teacher: [n, T] normalised embeddings of the same texts by the teacher.
        projections: W_d, [d, T] float32 or float64 for each of `dims`; constants.
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
            projected = normalize_prefix(embeddings, dim) @ projections[dim].to(embeddings.device, dtype)  # [n, T]
            cosines = F.cosine_similarity(projected, teacher.to(dtype), dim=1)
            loss = loss + dim_weight * (weight * (2 - 2 * cosines)).sum()
    return loss


class LeastSquares:
    """The projections with the least squared error, from sums over texts.

    Args:
        dims: Matryoshka dimensions.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        self.dims = list(dims)
        self._sums: dict[int, Tensor] = {}

    def add(self, embeddings: Tensor, teacher: Tensor, weight: float) -> None:
        """Add texts: [n, D] embeddings, not normalised, and [n, T] by the teacher, each with a weight in the error."""
        embeddings, target = embeddings.double(), teacher.double()
        for dim in self.dims:
            x = normalize_prefix(embeddings, dim)
            products = weight * x.T @ torch.cat([x, target], dim=1)  # [d, d + T]
            self._sums[dim] = self._sums[dim] + products if dim in self._sums else products

    def sums(self) -> list[Tensor]:
        """[d, d + T] float64 of each dimension on the CPU, which ranks add up before they solve."""
        return [self._sums[dim] for dim in self.dims]

    def solve(self, sums: Sequence[Tensor]) -> dict[int, Tensor]:
        """The projections, [d, T] float32 of each dimension: (X^T X + ridge)^-1 X^T Y."""
        found = {}
        for dim, products in zip(self.dims, sums, strict=True):
            gram, cross = products[:, :dim], products[:, dim:]
            ridge = RIDGE * gram.diagonal().mean() * torch.eye(dim, dtype=gram.dtype)
            found[dim] = torch.linalg.solve(gram + ridge, cross).float()
        return found
