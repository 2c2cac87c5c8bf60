"""Ranks of a launch whose collectives of training may take two seconds, which wait for rank 0 for four."""

import time
from datetime import timedelta

import torch
import torch.distributed as dist

from nestling.distributed import launch
from nestling.distributed.ranks import on_every_rank, on_rank_zero, rank_zero_first

if __name__ == "__main__":
    launch.COLLECTIVE_TIMEOUT = timedelta(seconds=2)
    rank = launch.start_ranks(cpu=True).process_index
    tensor = torch.ones(1)

    on_rank_zero(lambda: time.sleep(4))
    with rank_zero_first():
        time.sleep(4 * (rank == 0))
    on_every_rank(lambda: time.sleep(4 * (rank == 0)))
    dist.all_reduce(tensor)
    assert tensor.item() == 2

    if rank == 0:
        time.sleep(4)  # as if it hung
    else:
        started = time.monotonic()
        try:
            dist.all_reduce(tensor)
        except RuntimeError:
            print(f"ended after {time.monotonic() - started:.0f} s", flush=True)
