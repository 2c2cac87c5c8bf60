"""What ranks tell each other: embeddings with their gradient, and small facts to agree on."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

# torch 2.13 renamed both; the older names warn there, and the newer are missing in 2.11.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Concatenate the ranks' rows, with gradient: [counts[rank], D] on each rank -> [sum(counts), D] on all.

    `counts` is known to every rank beforehand. The backward pass sums what the ranks make of a row and hands each rank
    its own (a reduce-scatter). Data parallel training then takes the mean over W ranks, so a loss whose rows weigh
    their share of the global batch has to be multiplied by W: that happens in `nestling.training.cached`, once.
    """
    return rows if len(counts) == 1 else _GatherRows.apply(rows, list(counts))


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts  # type: ignore[attr-defined]
        height = max(counts)
        padded = rows.new_zeros(height, rows.shape[1])
        padded[: len(rows)] = rows
        gathered = rows.new_empty(len(counts) * height, rows.shape[1])
        all_gather(gathered, padded)
        return torch.cat([gathered[i * height : i * height + count] for i, count in enumerate(counts)])

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        counts: list[int] = ctx.counts  # type: ignore[attr-defined]
        height = max(counts)
        padded = gradient.new_zeros(len(counts) * height, gradient.shape[1])
        start = 0
        for i, count in enumerate(counts):
            padded[i * height : i * height + count] = gradient[start : start + count]
            start += count
        own = gradient.new_empty(height, gradient.shape[1])
        reduce_scatter(own, padded)
        return own[: counts[dist.get_rank()]], None


def gather_batch(queries: Tensor, documents: Tensor, document_counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The global batch's queries and documents, [Q, D] and [N, D], with gradient, in one collective.

    Args:
        queries: [Q/W, D] of this rank.
        documents: [document_counts[rank], D] of this rank.
        document_counts: [W] documents of each rank.
    """
    share = len(queries)
    gathered = gather_rows(torch.cat([queries, documents]), [share + count for count in document_counts])
    parts = gathered.split([size for count in document_counts for size in (share, count)])
    return torch.cat(parts[0::2]), torch.cat(parts[1::2])
