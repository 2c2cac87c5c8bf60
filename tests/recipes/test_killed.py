"""Trainings killed by SIGKILL: nothing of them runs on."""

import subprocess
import time
from pathlib import Path

import psutil
import pytest
from ranks import ROOT, environment, python

from nestling.processes import identify, still_runs
from recipes.runs import arguments, wait_for_step

# How often each is tried: once by default, and many times.
TIMES = [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


def start(command: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    """A training that starts cold: a warm one has a further process, which starts others."""
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=said, stderr=said)


@pytest.mark.parametrize("times", TIMES)
def test_no_process_is_left_of_a_training_with_workers(times: int, bert: Path, data: Path, tmp_path: Path) -> None:
    for i in range(times):
        run = tmp_path / f"run-{i}"
        more = {"max_steps": 5000, "save_steps": 5000, "dataloader_num_workers": 3}
        process = start(python(*arguments(bert, data, run, **more)), tmp_path)
        wait_for_step(run, 2, process)
        started = [identify(each.pid) for each in psutil.Process(process.pid).children(recursive=True)]
        assert len(started) >= 3
        process.kill()
        process.wait()
        deadline = time.monotonic() + 5
        while any(map(still_runs, started)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.slow
def test_ranks_whose_launcher_is_killed_save_and_end(bert: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = {"max_steps": 5000, "save_steps": 5000, "dataloader_num_workers": 1}
    process = start(python(*arguments(bert, data, run, **more), ranks=2), tmp_path)
    wait_for_step(run, 2, process)
    started = [identify(each.pid) for each in psutil.Process(process.pid).children(recursive=True)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(map(still_runs, started)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (saved,) = (run / "checkpoints").iterdir()
    assert (saved / "model.safetensors").exists()
