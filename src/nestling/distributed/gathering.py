"""Gathering embeddings over ranks, with gradient."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

# torch 2.13 renamed both: there the older names warn, and 2.11 does not have the newer ones.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Concatenate the rows of all ranks, with gradient: [counts[rank], D] on each rank -> [sum(counts), D] on all.

    The backward pass sums the gradients that the ranks have for a row and returns to each rank those of its own rows (a
    reduce-scatter). Data-parallel training then averages over W ranks, so that a loss that is a sum over ranks must be
    multiplied by W; this happens once, in `nestling.training.cached`.

    Args:
        rows: [counts[rank], D] of this rank.
        counts: Number of rows of each rank; the same on all ranks.
    """
    return rows if len(counts) == 1 else _GatherRows.apply(rows, list(counts))


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts  # type: ignore[attr-defined]
        max_count = max(counts)
        padded = rows.new_zeros(max_count, rows.shape[1])
        padded[: len(rows)] = rows
        gathered = rows.new_empty(len(counts) * max_count, rows.shape[1])
        all_gather(gathered, padded)
        return torch.cat([gathered[i * max_count : i * max_count + count] for i, count in enumerate(counts)])

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        counts: list[int] = ctx.counts  # type: ignore[attr-defined]
        max_count = max(counts)
        padded = gradient.new_zeros(len(counts) * max_count, gradient.shape[1])
        start = 0
        for i, count in enumerate(counts):
            padded[i * max_count : i * max_count + count] = gradient[start : start + count]
            start += count
        own = gradient.new_empty(max_count, gradient.shape[1])
        reduce_scatter(own, padded)
        return own[: counts[dist.get_rank()]], None


def gather_batch(queries: Tensor, documents: Tensor, document_counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Gather the queries and documents of the global batch, [Q, D] and [N, D], with gradient, in one collective.

    Args:
        queries: [Q/W, D] of this rank.
        documents: [document_counts[rank], D] of this rank.
        document_counts: [W] number of documents of each rank.
    """
    queries_per_rank = len(queries)
    gathered = gather_rows(torch.cat([queries, documents]), [queries_per_rank + count for count in document_counts])
    parts = gathered.split([size for count in document_counts for size in (queries_per_rank, count)])
    return torch.cat(parts[0::2]), torch.cat(parts[1::2])
