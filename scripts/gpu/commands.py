"""Recipes and scripts as processes: forks of this one, which has imported their libraries."""

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

from scripts.gpu.child import last_line, redirect
from scripts.gpu.place import ROOT

Poll = Callable[[], int | None]


def run(words: Sequence[object], log: Path, *, memory_fraction: float | None = None) -> None:
    """Run a script to its end.

    Args:
        words: Its path below the repository, and its arguments.
        log: File that what it says is added to.
        memory_fraction: Of the GPU's memory that it may use; all by default.

    Raises:
        RuntimeError: It failed.
    """
    process = get_context("fork").Process(target=be_script, args=(list(map(str, words)), log, memory_fraction))
    process.start()
    process.join()
    if process.exitcode:
        raise failure(words[0], process.exitcode, log)


def stop_and_resume(words: Sequence[object], run_folder: Path, log: Path) -> None:
    """Send SIGTERM to a recipe after three steps, then resume it to its end."""
    process = get_context("fork").Process(target=be_script, args=(list(map(str, words)), log, None))
    process.start()
    try:
        wait_for_steps(run_folder / "metrics.jsonl", 3, lambda: process.exitcode)
    except TimeoutError as error:
        raise failure(words[0], process.exitcode, log) from error
    if process.pid is not None:
        os.kill(process.pid, signal.SIGTERM)
    process.join()
    if process.exitcode != 128 + signal.SIGTERM:
        raise failure(words[0], process.exitcode, log)
    run([*words, "--resume=true"], log)


def wait_for_steps(metrics: Path, steps: int, status: Poll, seconds: float = 100.0) -> None:
    """Wait until the metrics of a run have some lines of steps.

    Raises:
        TimeoutError: The run ended before, or it takes longer.
    """
    ends = time.monotonic() + seconds
    while not metrics.exists() or metrics.read_text(encoding="utf-8").count('"loss"') < steps:
        if status() is not None or time.monotonic() > ends:
            raise TimeoutError(f"no {steps} steps in {metrics}")
        time.sleep(0.005)


def be_script(words: list[str], log: Path, memory_fraction: float | None) -> None:
    """In a process of its own: run a script as Python would."""
    redirect(log)
    os.chdir(ROOT)
    if memory_fraction is not None:
        import torch

        torch.cuda.set_per_process_memory_fraction(memory_fraction)
    sys.argv = words
    sys.path.insert(0, str((ROOT / words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


def failure(script: object, status: int | None, log: Path) -> RuntimeError:
    """What is raised for a script that did not end as it should."""
    return RuntimeError(f"{script} ended with {status}: {last_line(log)}; see {log.name}")
