"""The run of a pipeline: the status of each step, and running the steps that are not done."""

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nestling.config import require
from nestling.pipeline.digests import Digests
from nestling.pipeline.running import run_command
from nestling.pipeline.step import Step
from nestling.pipeline.step_record import Inputs, StepRecord, inputs_of
from nestling.processes import ends_within

State = Literal["done", "new", "changed", "unfinished", "waits", "left out"]

# How long a step, whose pipeline was killed, may take to save and end before the pipeline starts it again.
ENDING_SECONDS = 60


@dataclass(frozen=True)
class StepStatus:
    """Whether a step has to be run.

    Args:
        state: done; new; changed since it was started; unfinished (killed or failed); waits for an earlier step; or
            left out, because the dev set did not choose its model.
        reason: Description.
    """

    state: State
    reason: str = ""

    def __str__(self) -> str:
        return self.state + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class Pipeline:
    """The folder of a pipeline and its steps.

    Args:
        folder: Folder of the run; each step has a folder in steps/.
        steps: The steps in order.
        digests: Digests of the inputs.
    """

    folder: Path
    steps: Sequence[Step]
    digests: Digests

    @classmethod
    def open(cls, folder: Path, steps: Sequence[Step]) -> "Pipeline":
        """The pipeline in a folder, with its cache of digests."""
        return cls(folder, steps, Digests(folder / "steps" / "digests.json"))

    def folder_of(self, step: Step) -> Path:
        """The folder of a step."""
        return self.folder / "steps" / step.name

    def record_of(self, step: Step) -> StepRecord | None:
        """The record of a step; None if it was never started."""
        return StepRecord.read(self.folder_of(step) / "step.json")

    def require_done(self, steps: Sequence[Step]) -> None:
        """Raise ValueError unless all steps are done."""
        for step in steps:
            record_of = self.record_of(step)
            complete = record_of is not None and record_of.done and all(path.exists() for path in step.writes)
            require(
                complete or step.left_out is not None, f"{step.name} has not been run in {self.folder}; run it before"
            )

    def statuses(self, steps: Sequence[Step]) -> Iterator[tuple[Step, StepStatus]]:
        """Yield the steps with their status before the run; a step whose inputs are not written yet waits."""
        pending: list[Step] = []
        for step in steps:
            before = [each.name for each in pending if any(is_output_of(path, each) for path in step.reads)]
            status = StepStatus("waits", f"for {', '.join(before)}") if before else self.status_of(step)[0]
            if status.state not in ("done", "left out"):
                pending.append(step)
            yield step, status

    def status_of(self, step: Step) -> tuple[StepStatus, Inputs]:
        """Status and current inputs of a step whose inputs exist."""
        for path in step.reads:
            below = self.folder in path.parents
            require(
                not below or path.exists(),
                f"{step.name}: {path} is missing; remove the folder of the step that writes it",
            )
        inputs, record_of = inputs_of(step, self.folder, self.digests), self.record_of(step)
        if step.left_out is not None:
            return StepStatus("left out", step.left_out), inputs
        if record_of is None:
            return StepStatus("new"), inputs
        differences = record_of.inputs.differences(inputs)
        if differences:
            others = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
            return StepStatus("changed", "; ".join(differences[:3]) + others), inputs
        if not record_of.done:
            return StepStatus("unfinished", "resumes" if step.resumes else "starts again"), inputs
        gone = [str(path) for path in step.writes if not path.exists()]
        return (StepStatus("changed", f"{gone[0]} is gone") if gone else StepStatus("done")), inputs

    def run_steps(self, steps: Sequence[Step]) -> list[tuple[Step, StepStatus, float]]:
        """Run the steps that are not done; returns each step with its status before and its duration in seconds.

        Raises:
            ValueError: A step failed.
            StoppedError: A signal stopped a step.
        """
        done = []
        for number, step in enumerate(steps, start=1):
            status, inputs = self.status_of(step)
            self.digests.save()
            show(f"\n[{number}/{len(steps)}] {step.name}: {status}")
            seconds = 0.0
            if status.state == "left out":
                self.withdraw(step)
            elif status.state != "done":
                self.prepare_folder(step, status, inputs)
                show(f"$ {step}")
                seconds = self.run_step(step, inputs)
            done.append((step, status, seconds))
        return done

    def prepare_folder(self, step: Step, status: StepStatus, inputs: Inputs) -> None:
        """Prepare the folder of a step: partial outputs are removed; trainings and finished outputs are moved aside.

        The folder of a step that brings its outputs up to date stays as it is, and answers that were paid for stay
        where they are those to the current inputs.
        """
        folder, record = self.folder_of(step), self.record_of(step)
        outside = [path for path in step.writes if folder not in path.parents and path.exists()]
        if record is None:
            self.prepare_new_folder(step, outside)
            return
        if record.process is not None and not ends_within(record.process, ENDING_SECONDS):
            raise ValueError(
                f"{step.name}: process {record.process[0]} of an earlier run is still running; end it first"
            )
        if step.updates:
            return
        if status.state == "unfinished" and step.resumes:
            for path in step.writes:
                if path.is_file():  # it is complete, and the script would refuse to overwrite it
                    path.unlink()
        elif record.done or step.resumes:
            aside = self.move_aside(step, outside)
            if step.journal is not None and record.inputs.same_but(inputs, step.free):
                self.take_over(aside / step.journal.name, step.journal)
        else:
            for path in outside:  # before the record, which tells that they are of this step
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            shutil.rmtree(folder)
            folder.mkdir()

    def prepare_new_folder(self, step: Step, outside: Sequence[Path]) -> None:
        """Create the folder of a step that was never started. Raises ValueError if one of its outputs exists."""
        folder = self.folder_of(step)
        for path in outside:
            raise ValueError(
                f"{step.name}: {path} exists already, and no earlier run of the step wrote it; move it away"
            )
        if folder.exists() and any(folder.iterdir()):  # written by a command that the user ran
            self.move_aside(step, [])
        folder.mkdir(exist_ok=True)

    def withdraw(self, step: Step) -> None:
        """Move the outputs of an earlier run aside of a step that is left out now."""
        if self.record_of(step) is not None:
            self.move_aside(step, [path for path in step.writes if path.exists()])

    def take_over(self, earlier: Path, journal: Path) -> None:
        """Copy the journal of an earlier run of a step, if it has left one."""
        if earlier.is_file():
            shutil.copy2(earlier, journal)
            show(f"  the answers in {journal} are used again")

    def move_aside(self, step: Step, outside: Sequence[Path]) -> Path:
        """Move the folder of a step, and its outputs elsewhere, to replaced/; returns the new place."""
        folder, aside = self.folder_of(step), free_name(self.folder / "replaced" / step.name)
        aside.parent.mkdir(exist_ok=True)
        for path in outside:
            path.rename(folder / path.name)
        folder.rename(aside)
        folder.mkdir()
        show(f"  its earlier outputs are in {aside}")
        return aside

    def run_step(self, step: Step, inputs: Inputs) -> float:
        """Run a step and record it; returns its duration in seconds."""
        path = self.folder_of(step) / "step.json"
        record_of, begun = StepRecord(inputs, done=False), time.monotonic()
        record_of.write(path)
        try:
            log = self.folder_of(step) / "log.txt"
            run_command(step.command, log, lambda process: replace(record_of, process=process).write(path))
        except ValueError as error:
            raise ValueError(f"{step.name}: {error}\nits command was:\n  {step}") from None
        missing = [str(each) for each in step.writes if not each.exists()]
        require(
            not missing,
            f"{step.name} ended successfully but did not write {', '.join(missing)}; its command was:\n  {step}",
        )
        seconds = time.monotonic() - begun
        replace(record_of, done=True, seconds=seconds).write(path)
        return seconds


def select_steps(steps: Sequence[Step], only: str | None, first: str | None) -> tuple[list[Step], list[Step]]:
    """(steps that are skipped before the selected ones, selected steps).

    Args:
        steps: All steps.
        only: A step or section to run alone.
        first: A step or section to start with.

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


def is_output_of(path: Path, step: Step) -> bool:
    """Whether a path is an output of a step, or in one."""
    return any(path == each or each in path.parents for each in step.writes)


def free_name(path: Path) -> Path:
    """The path with the first unused number as its suffix."""
    number = 1
    while (found := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return found


def show(text: str) -> None:
    """Print a line on stdout at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
