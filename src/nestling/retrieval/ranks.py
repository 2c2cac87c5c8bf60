"""Work split over the ranks of torch.distributed; with a single process everything here does nothing.

Evaluation must not hang, whatever the sizes: every rank makes the same calls in the same order with tensors of the same
shape, also a rank that has no document at all. Sums over ranks of tensors that hold a rank's own part and zeros
elsewhere replace every gather, so no size is exchanged, but for models whose forward is itself such a call: `largest`
says how many of them every rank has to make.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from nestling.distributed.ranks import rank_and_world
from nestling.models.encoding import EncodingStats


def rows_of_rank(count: int) -> range:
    """Which of `count` items this rank works on, maybe none: every W-th, since neighbours are often of one length."""
    rank, world = rank_and_world()
    return range(rank, count, world)


def largest(count: int, device: torch.device) -> int:
    """The largest of the numbers that the ranks have; needs all ranks. `device` as in `reduce_sum`."""
    return int(reduce_max(torch.tensor([count]), device))


def reduce_sum(values: Tensor, device: torch.device) -> Tensor:
    """Sum of same-shaped tensors over all ranks, on the device and with the dtype of `values`; needs all ranks.

    `device` is where the process group communicates: a GPU for NCCL, the CPU for gloo.
    """
    return _all_reduce(values, dist.ReduceOp.SUM, device)


def reduce_max(values: Tensor, device: torch.device) -> Tensor:
    """Elementwise maximum of same-shaped tensors over all ranks; otherwise as `reduce_sum`."""
    return _all_reduce(values, dist.ReduceOp.MAX, device)


def _all_reduce(values: Tensor, operation: dist.ReduceOp.RedOpType, device: torch.device) -> Tensor:
    if rank_and_world()[1] == 1:
        return values
    reduced = values.to(device, copy=True)
    dist.all_reduce(reduced, operation)
    return reduced.to(values.device)


def sum_stats(tally: EncodingStats, device: torch.device) -> EncodingStats:
    """The counts of all ranks together."""
    counts = torch.tensor([tally.texts, tally.truncated, tally.encoded, tally.tokens, tally.positions])
    return EncodingStats(*reduce_sum(counts, device).tolist())
