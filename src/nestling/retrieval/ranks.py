"""Work split over the ranks of torch.distributed; with a single process everything here does nothing.

Evaluation must not hang, whatever the sizes: every rank makes the same calls in the same order with tensors of the same
shape, also a rank that has no document at all. Sums over ranks of tensors that hold a rank's own part and zeros
elsewhere replace every gather, so no size is ever exchanged.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from nestling.distributed import rank_and_world


def share(count: int) -> slice:
    """The contiguous part of `count` items that this rank works on; may be empty."""
    rank, _ = rank_and_world()
    each = largest_share(count)
    return slice(min(rank * each, count), min((rank + 1) * each, count))


def largest_share(count: int) -> int:
    """Items in the largest share of `count` items, the same on every rank."""
    return -(-count // rank_and_world()[1])


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
