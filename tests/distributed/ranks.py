"""Real processes for tests: ranks that meet over gloo, and recipes as users start them."""

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

import warm

ROOT = Path(__file__).parents[2]


def run_ranks(world_size: int, work: Callable[[int, Path], None], folder: Path) -> None:
    """Call `work(rank, folder)` in `world_size` processes that form a gloo group; if one fails, all are ended."""
    (folder / "work").write_bytes(pickle.dumps(work))
    command = [sys.executable, "-c", "from ranks import be_a_rank; be_a_rank()", str(folder), str(world_size)]
    with tempfile.TemporaryFile("w+") as said:
        ranks = [
            warm.Popen([*command, str(rank)], env=environment(PYTHONPATH=os.pathsep.join(sys.path)), stderr=said)
            for rank in range(world_size)
        ]
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            time.sleep(0.01)
        for rank in ranks:
            rank.kill()
            rank.wait()
        said.seek(0)
        assert [rank.returncode for rank in ranks] == [0] * world_size, said.read()[-4000:]


def be_a_rank() -> None:
    folder, world_size, rank = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    try:
        pickle.loads((folder / "work").read_bytes())(rank, folder)
    finally:
        dist.destroy_process_group()


def environment(**more: str) -> dict[str, str]:
    """The environment of a recipe under test: one thread, no hub."""
    return {**os.environ, **warm.QUIET, **more}


def python(*arguments: str, ranks: int = 1) -> list[str]:
    """A command that runs a recipe with this interpreter, under torchrun for several ranks."""
    if ranks == 1:
        return [sys.executable, *arguments]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--standalone"]
    return [sys.executable, *launcher, *arguments]


# Of processes that do not start warm, and so each with an order of its own for what is in a set.
COLD = {"PYTHONHASHSEED": "random"}


def run_recipe(
    *arguments: str, ranks: int = 1, check: bool = True, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run a recipe to its end; its error output is shown if it fails and `check` is on."""
    result = warm.run(python(*arguments, ranks=ranks), cwd=ROOT, env=environment(**variables))
    assert not check or result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result
