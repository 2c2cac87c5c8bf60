"""What ranks tell each other: embeddings with their gradient, and small facts to agree on."""

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

# torch 2.13 renamed both; the older names warn there, and the newer are missing in 2.11.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def rank_and_world() -> tuple[int, int]:
    """This process and how many there are; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def launched_with(plugin: str) -> bool:
    """Whether `accelerate launch` was asked for DEEPSPEED or FSDP."""
    return os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() in ("1", "true")


def require_launch(world_size: int, backend: str) -> None:
    """Refuse to train otherwise than the launcher was asked to: alone, or without sharding; both happen in silence.

    Args:
        world_size: Processes of the group.
        backend: Accelerate's name of what they form, DEEPSPEED or FSDP for instance.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != world_size:
        raise ValueError(
            f"the launcher started {launched} processes, but they form a group of {world_size}; on a CPU launch with "
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N, or torchrun with --cpu true"
        )
    for plugin in ("DEEPSPEED", "FSDP"):
        if launched_with(plugin) and backend != plugin:
            raise ValueError(
                f"the launcher was asked for {plugin}, but Accelerate gives {backend}; "
                + (
                    "FSDP needs GPUs"
                    if plugin == "FSDP"
                    else "ACCELERATE_USE_CPU=true excludes DeepSpeed, --cpu true does not"
                )
            )


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Concatenate the ranks' rows, with gradient: [counts[rank], D] on each rank -> [sum(counts), D] on all.

    `counts` is known to every rank beforehand. The backward pass sums what the ranks make of a row and hands each rank
    its own (a reduce-scatter). Data parallel training then takes the mean over W ranks, so a loss whose rows weigh
    their share of the global batch has to be multiplied by W: that happens in `nestling.cached`, once.
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


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Sum each of some numbers over all ranks, in one collective; float64."""
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


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
