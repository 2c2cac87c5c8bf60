"""Running checks: each in a process of its own, within its time and that of the whole."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import psutil

from scripts.gpu.child import NOT_RUN, last_line, run_check
from scripts.gpu.place import Place
from scripts.gpu.plan import SIDE_BY_SIDE, Check

Verdict = Literal["PASS", "FAIL", "SKIP", "NOT RUN"]

# The slow imports of checks, recipes and scripts: a process imports them once, and every check is a fork of it.
LIBRARIES = (
    "accelerate",
    "datasets",
    "matplotlib.pyplot",
    "peft",
    "pyarrow.parquet",
    "sentence_transformers",
    "torch.utils.data",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen3.modeling_qwen3",
)


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Args:
        name: Of the check.
        verdict: FAIL also for one that took too long; SKIP for one that this machine cannot run; NOT RUN for lack of
            time.
        seconds: That it took.
        note: Why it did not pass.
        rows: Its figures, those of a check that failed too.
    """

    name: str
    verdict: Verdict
    seconds: float = 0.0
    note: str = ""
    rows: list[dict[str, object]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.verdict:7}  {self.seconds:5.1f} s  {self.name}{': ' * bool(self.note)}{self.note}"


@dataclass
class Runner:
    """Runs checks.

    Args:
        output: Folder of logs and figures.
        work: Folder of what checks share.
        ends: When the time of all is over, by `time.monotonic`.
        gpu: Whether there is a GPU.
        fork: Whether processes are forks of one that has imported the libraries, or import them themselves.
    """

    output: Path
    work: Path
    ends: float
    gpu: bool = False
    fork: bool = True

    def run_all(self, checks: Sequence[Check], say: Callable[[Outcome], None]) -> Iterator[Outcome]:
        """Outcomes of checks, each told as soon as it is known; stage after stage."""
        for stage, members in groupby(checks, lambda each: each.stage):
            side_by_side = min(4, os.cpu_count() or 1) if stage in SIDE_BY_SIDE else 1
            with ThreadPoolExecutor(side_by_side) as threads:
                for future in [threads.submit(self._told, check, say) for check in members]:
                    yield future.result()

    def _told(self, check: Check, say: Callable[[Outcome], None]) -> Outcome:
        outcome = self.run(check)
        say(outcome)
        return outcome

    def run(self, check: Check) -> Outcome:
        """Run a check, unless it needs a GPU that is not there, or more time than is left."""
        if not (self.gpu or check.cpu):
            return Outcome(check.name, "SKIP", note="not run: no GPU")
        left = self.ends - time.monotonic()
        if left < check.seconds:
            why = f"{max(left, 0):.0f} s are left, and it may take {check.seconds} s"
            return Outcome(check.name, "NOT RUN", note=why)
        log, rows = (self.output / "logs" / f"{check.slug}{suffix}" for suffix in (".txt", ".jsonl"))
        place = Place(self.gpu, self.work, rows)
        start = get_context("forkserver").Process if self.fork else get_context("spawn").Process
        process = start(target=run_check, args=(check.function, place, log))
        started = time.monotonic()
        process.start()
        process.join(check.seconds)
        seconds = time.monotonic() - started
        too_long = process.is_alive()
        end(process.pid)
        process.join()
        found = read_rows(rows)
        if too_long:
            return Outcome(check.name, "FAIL", seconds, f"took longer than {check.seconds} s; see {log}", found)
        return Outcome(check.name, *verdict_of(process.exitcode or 0, seconds, log), found)


def end(pid: int | None) -> None:
    """End a check's process, what it has started, and what of that has outlived it."""
    with suppress(psutil.NoSuchProcess):
        for each in psutil.Process(pid).children(recursive=True):  # launchers give ranks sessions of their own
            with suppress(psutil.NoSuchProcess):
                each.kill()
    with suppress(ProcessLookupError):
        os.killpg(pid or 0, signal.SIGKILL)


def verdict_of(status: int, seconds: float, log: Path) -> tuple[Verdict, float, str]:
    """What an exit status means, the seconds, and what there is to say about it."""
    if status == 0:
        return "PASS", seconds, ""
    if status == NOT_RUN:
        return "SKIP", seconds, last_line(log)
    if status < 0:
        return "FAIL", seconds, f"ended by {signal.Signals(-status).name}: {last_line(log)}"
    return "FAIL", seconds, last_line(log)


def read_rows(path: Path) -> list[dict[str, object]]:
    """The figures that a check has written."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
