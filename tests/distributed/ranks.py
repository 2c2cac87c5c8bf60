"""Real processes for tests: ranks that meet over gloo, and recipes as users start them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ROOT = Path(__file__).parents[2]


def run_ranks(world_size: int, work: Callable[[int, Path], None], folder: Path) -> None:
    """Call `work(rank, folder)` in `world_size` processes that form a gloo group."""
    mp.spawn(_rank, (world_size, work, folder), nprocs=world_size)  # type: ignore[no-untyped-call]


def _rank(rank: int, world_size: int, work: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    try:
        work(rank, folder)
    finally:
        dist.destroy_process_group()


def environment(**more: str) -> dict[str, str]:
    """The environment of a recipe under test: one thread, no hub."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **quiet, **more}


def python(*arguments: str, ranks: int = 1) -> list[str]:
    """A command that runs a recipe with this interpreter, under torchrun for several ranks."""
    if ranks == 1:
        return [sys.executable, *arguments]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--standalone"]
    return [sys.executable, *launcher, *arguments]


def run_recipe(*arguments: str, ranks: int = 1, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a recipe to its end; its error output is shown if it fails and `check` is on."""
    result = subprocess.run(
        python(*arguments, ranks=ranks), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=280
    )
    assert not check or result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result
