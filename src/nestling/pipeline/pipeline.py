"""The run of a pipeline: which steps are done, and those that are not, one after the other."""

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nestling.config import require
from nestling.pipeline.digests import Digests
from nestling.pipeline.records import Inputs, Record, inputs_of
from nestling.pipeline.running import run_command, still_runs
from nestling.pipeline.step import Step

State = Literal["done", "new", "changed", "unfinished", "waits"]


@dataclass(frozen=True)
class Verdict:
    """Whether a step is to be done.

    Args:
        state: done, new, changed since it was started, killed half-way (unfinished), or behind a step that comes first.
        why: In words.
    """

    state: State
    why: str = ""

    def __str__(self) -> str:
        return self.state + (f": {self.why}" if self.why else "")


@dataclass(frozen=True)
class Pipeline:
    """The folder of a pipeline and its steps.

    Args:
        folder: Of the run; each step has a folder below steps/.
        steps: In order.
        digests: Of what they read.
    """

    folder: Path
    steps: Sequence[Step]
    digests: Digests

    @classmethod
    def open(cls, folder: Path, steps: Sequence[Step]) -> "Pipeline":
        return cls(folder, steps, Digests(folder / "steps" / "digests.json"))

    def place(self, step: Step) -> Path:
        return self.folder / "steps" / step.name

    def record(self, step: Step) -> Record | None:
        return Record.read(self.place(step) / "step.json")

    def require_done(self, steps: Sequence[Step]) -> None:
        """Raise ValueError unless steps that are left out have been done."""
        for step in steps:
            record = self.record(step)
            there = record is not None and record.done and all(path.exists() for path in step.writes)
            require(there, f"{step.name} has not been done in {self.folder}; do it before")

    def verdicts(self, steps: Sequence[Step]) -> Iterator[tuple[Step, Verdict]]:
        """What would be done, as far as it can be said before."""
        pending: list[Step] = []
        for step in steps:
            before = [each.name for each in pending if any(depends(path, each) for path in step.reads)]
            verdict = Verdict("waits", f"for {', '.join(before)}") if before else self.judge(step)[0]
            if verdict.state != "done":
                pending.append(step)
            yield step, verdict

    def judge(self, step: Step) -> tuple[Verdict, Inputs]:
        """Whether a step whose inputs are there is to be done."""
        for path in step.reads:
            below = self.folder in path.parents
            require(not below or path.exists(), f"{step.name}: {path} is not there; remove the folder of its step")
        inputs, record = inputs_of(step, self.folder, self.digests), self.record(step)
        if record is None:
            return Verdict("new"), inputs
        differences = record.inputs.differences(inputs)
        if differences:
            more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
            return Verdict("changed", "; ".join(differences[:3]) + more), inputs
        if not record.done:
            return Verdict("unfinished", "goes on where it was" if step.resumes else "begins again"), inputs
        gone = [str(path) for path in step.writes if not path.exists()]
        return (Verdict("changed", f"{gone[0]} is gone") if gone else Verdict("done")), inputs

    def carry_out(self, steps: Sequence[Step]) -> list[tuple[Step, Verdict, float]]:
        """Do what is to be done; gives each step with what was found and the seconds that it took.

        Raises:
            ValueError: A step failed.
            StoppedError: A signal ended one.
        """
        done = []
        for number, step in enumerate(steps, start=1):
            verdict, inputs = self.judge(step)
            self.digests.save()
            say(f"\n[{number}/{len(steps)}] {step.name}: {verdict}")
            seconds = 0.0
            if verdict.state != "done":
                self.clear(step, verdict)
                say(f"$ {step}")
                seconds = self.start(step, inputs)
            done.append((step, verdict, seconds))
        return done

    def clear(self, step: Step, verdict: Verdict) -> None:
        """Make room: what a step left half-way is removed; a training, and all that is finished, is moved aside."""
        place, record = self.place(step), self.record(step)
        outside = [path for path in step.writes if place not in path.parents and path.exists()]
        if record is None:
            for path in outside:
                raise ValueError(f"{step.name}: {path} exists already, and is of no earlier start; move it away")
            if place.exists() and any(place.iterdir()):  # of a command that was given by hand
                self.move_aside(step, [])
            place.mkdir(exist_ok=True)
            return
        if record.process is not None and still_runs(record.process):
            raise ValueError(f"{step.name}: process {record.process[0]} of an earlier start still runs; end it first")
        if verdict.state == "unfinished" and step.resumes:
            for path in step.writes:
                if path.is_file():  # complete, which its script would refuse to write again
                    path.unlink()
        elif record.done or step.resumes:
            self.move_aside(step, outside)
        else:
            for path in outside:  # first, as the record says whose they are
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            shutil.rmtree(place)
            place.mkdir()

    def move_aside(self, step: Step, outside: Sequence[Path]) -> None:
        place, aside = self.place(step), free_name(self.folder / "replaced" / step.name)
        aside.parent.mkdir(exist_ok=True)
        for path in outside:
            path.rename(place / path.name)
        place.rename(aside)
        place.mkdir()
        say(f"  what it left before is in {aside}")

    def start(self, step: Step, inputs: Inputs) -> float:
        """Run a step and record it; gives its seconds."""
        path = self.place(step) / "step.json"
        record, begun = Record(inputs, done=False), time.monotonic()
        record.write(path)
        try:
            log = self.place(step) / "log.txt"
            run_command(step.command, log, lambda process: replace(record, process=process).write(path))
        except ValueError as error:
            raise ValueError(f"{step.name}: {error}\nits command was:\n  {step}") from None
        missing = [str(each) for each in step.writes if not each.exists()]
        require(not missing, f"{step.name} ended well and left no {', '.join(missing)}; its command was:\n  {step}")
        seconds = time.monotonic() - begun
        replace(record, done=True, seconds=seconds).write(path)
        return seconds


def choose(steps: Sequence[Step], only: str | None, first: str | None) -> tuple[list[Step], list[Step]]:
    """The steps that are left out before those to be done, and those.

    Args:
        steps: All.
        only: A step or section to do alone.
        first: One to begin with.

    Raises:
        ValueError: There is no such step.
    """
    name = only or first
    if name is None:
        return [], list(steps)
    numbers = [number for number, step in enumerate(steps) if name in (step.name, step.section)]
    names = ", ".join(step.name for step in steps)
    require(bool(numbers), f"no step is called {name}; this pipeline has {names}")
    end = numbers[-1] + 1 if only else len(steps)
    return list(steps[: numbers[0]]), list(steps[numbers[0] : end])


def depends(path: Path, step: Step) -> bool:
    """Whether a path is, or lies in, what a step writes."""
    return any(path == each or each in path.parents for each in step.writes)


def free_name(path: Path) -> Path:
    """The path with the first number that is free."""
    number = 1
    while (found := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return found


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
