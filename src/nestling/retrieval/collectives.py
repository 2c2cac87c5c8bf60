"""Splitting work over the processes of torch.distributed, and reductions; with one process, reductions do nothing.

Evaluation must not deadlock, whatever the sizes. Every rank therefore makes the same calls in the same order with
tensors of the same shape, also a rank that has no document at all. To gather, each rank fills its own part of a tensor
of zeros and the tensors are summed, so no sizes need to be exchanged. Only models whose forward is itself a collective
need to know how many forwards every rank has to run: `largest_over_ranks`.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from nestling.distributed.ranks import rank_and_world
from nestling.models.encoding import EncodingStats


def indices_of_rank(count: int) -> range:
    """Indices of the items, of `count`, that this rank works on; may be empty.

    Every `world`-th item, since neighbours in a file are often of similar length and the ranks should have equal work.
    """
    rank, world = rank_and_world()
    return range(rank, count, world)


def largest_over_ranks(count: int, device: torch.device) -> int:
    """The largest `count` of all ranks; all of them must call it. `device` as in `reduce_sum`."""
    return int(reduce_max(torch.tensor([count]), device))


def reduce_sum(values: Tensor, device: torch.device) -> Tensor:
    """Sum `values` over all ranks, which must all call it with the same shape; device and dtype are those of `values`.

    `device` is where the process group communicates: a GPU for NCCL, the CPU for gloo.
    """
    return _all_reduce(values, dist.ReduceOp.SUM, device)


def reduce_max(values: Tensor, device: torch.device) -> Tensor:
    """Elementwise maximum of `values` over all ranks; otherwise as `reduce_sum`."""
    return _all_reduce(values, dist.ReduceOp.MAX, device)


def _all_reduce(values: Tensor, operation: dist.ReduceOp.RedOpType, device: torch.device) -> Tensor:
    if rank_and_world()[1] == 1:
        return values
    reduced = values.to(device, copy=True)
    dist.all_reduce(reduced, operation)
    return reduced.to(values.device)


def sum_stats(stats: EncodingStats, device: torch.device) -> EncodingStats:
    """The counts summed over all ranks; the caller sets the seconds."""
    counts = torch.tensor([stats.texts, stats.truncated, stats.encoded, stats.tokens, stats.positions])
    return EncodingStats(*reduce_sum(counts, device).tolist())
