"""Trainings killed by SIGKILL: nothing of them runs on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ranks import ROOT, environment, python, run_recipe

import warm
from nestling.processes import Process, identify, still_runs
from recipes.runs import arguments, wait_for_step
from recipes.test_rerank import arguments as rerank_arguments

# How often each is tried: once by default, and many times.
TIMES = [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


def start(command: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    """A training that starts cold: a warm one has a further process, which starts others."""
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=said, stderr=said)


def require_end(processes: list[Process], seconds: float) -> None:
    """Fail unless all of some identified processes end in time."""
    deadline = time.monotonic() + seconds
    while any(map(still_runs, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
        require_end(started, seconds=5)


KILLED_BEFORE_THE_REPORT = """
import os, signal, sys
from launches import recipe
from nestling.config import EmbedConfig, RerankConfig, parse_config
name = sys.argv[1]
module = recipe(name)
module.write_run_report = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = sys.argv[1:]
module.main(parse_config({"embed": EmbedConfig, "rerank": RerankConfig}[name], None))
"""


@pytest.mark.parametrize("name", ["embed", "rerank"])
def test_a_run_killed_between_its_model_and_its_report_gets_that_from_the_same_command(
    name: str, bert: Path, qwen3_base: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    if name == "embed":
        _, *flags = arguments(bert, data, run, max_steps=2, resume="true")
    else:
        _, *flags = rerank_arguments(qwen3_base, data, run, max_steps=2, resume="true")
    killed = warm.run(
        [sys.executable, "-c", KILLED_BEFORE_THE_REPORT, name, *flags],
        cwd=ROOT,
        env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (run / "final" / "model.safetensors").exists()
    assert not (run / "report.html").exists()
    steps = (run / "metrics.jsonl").read_bytes()
    result = run_recipe(f"train/{name}.py", *flags)
    assert f"{run} is complete" in result.stdout
    assert "Gradient norm" in (run / "report.html").read_text()
    assert (run / "metrics.jsonl").read_bytes() == steps
    (run / "report.html").write_text("as it is")
    run_recipe(f"train/{name}.py", *flags)
    assert (run / "report.html").read_text() == "as it is"


@pytest.mark.slow
def test_ranks_whose_launcher_is_killed_save_and_end(bert: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = {"max_steps": 5000, "save_steps": 5000, "dataloader_num_workers": 1}
    process = start(python(*arguments(bert, data, run, **more), ranks=2), tmp_path)
    wait_for_step(run, 2, process)
    started = [identify(each.pid) for each in psutil.Process(process.pid).children(recursive=True)]
    process.kill()
    process.wait()
    require_end(started, seconds=20)
    (saved,) = (run / "checkpoints").iterdir()
    assert (saved / "model.safetensors").exists()
