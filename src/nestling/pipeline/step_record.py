"""The record of a step in step.json of its folder: its inputs and whether it has finished."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nestling import __version__
from nestling.files import replace_text
from nestling.pipeline.digests import Digests
from nestling.pipeline.step import WALKED, Step
from nestling.processes import Process
from nestling.run_files import reading

ABSENT = "(absent)"


@dataclass(frozen=True)
class Inputs:
    """Everything that the output of a step depends on.

    Args:
        nestling: Version of the package.
        program: Launcher and script.
        settings: Dotted key -> value of all settings of the script.
        files: File or folder that the step reads -> digest of its content.
    """

    nestling: str
    program: list[str]
    settings: dict[str, object]
    files: dict[str, str]

    def differences(self, current: "Inputs") -> list[str]:
        """Descriptions of the differences to the current inputs, the most important first."""
        both = self.files.keys() & current.files.keys()
        found = [f"{name} is different" for name in changed(self.files, current.files) if name in both]
        found += [
            f"{name} is {current.settings.get(name, ABSENT)}, was {self.settings.get(name, ABSENT)}"
            for name in changed(self.settings, current.settings)
        ]
        if not found and self.files != current.files:
            found = [f"{name} was not there" for name in current.files.keys() - both]
            found += [f"{name} is not there" for name in self.files.keys() - both]
        if self.program != current.program:
            found.append(f"it is started by {' '.join(current.program)}, was by {' '.join(self.program)}")
        if self.nestling != current.nestling:
            found.append(f"nestling is {current.nestling}, was {self.nestling}")
        return found

    def same_but(self, current: "Inputs", free: Sequence[str]) -> bool:
        """Whether only settings differ from the current inputs, of these only some, and files that these name."""
        differing = changed(self.settings, current.settings)
        others = [name for name in differing if not any(name == each or name.startswith(f"{each}.") for each in free)]
        named = [each.settings.get(name) for each in (self, current) for name in free]
        files = [name for name in changed(self.files, current.files) if name not in named]
        same_program = (self.nestling, self.program) == (current.nestling, current.program)
        return same_program and not others and not files


@dataclass(frozen=True)
class StepRecord:
    """Record of a step that was started.

    Args:
        inputs: Inputs of the step.
        done: Whether it has finished successfully.
        process: Its process.
        seconds: Duration.
    """

    inputs: Inputs
    done: bool
    process: Process | None = None
    seconds: float | None = None

    @classmethod
    def read(cls, path: Path) -> "StepRecord | None":
        """Read a record; None if there is no file."""
        if not path.is_file():
            return None
        with reading(path, "remove it, and the step runs again"):
            content = json.loads(path.read_text(encoding="utf-8"))
            process = content["process"]
            inputs = Inputs(**content["inputs"])
            return cls(inputs, content["done"], tuple(process) if process else None, content["seconds"])

    def write(self, path: Path) -> None:
        """Write the record as JSON, atomically."""
        replace_text(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def inputs_of(step: Step, folder: Path, digests: Digests) -> Inputs:
    """The current inputs of a step; paths in the folder of the pipeline are relative to it, so that it can be moved."""
    walked = Path(str(step.settings.get(WALKED, os.devnull)))
    read = {relative_to_run(str(path), folder): digests.digest_of(path, links=path != walked) for path in step.reads}
    settings = {
        key: relative_to_run(value, folder) if isinstance(value, str) else value for key, value in step.settings.items()
    }
    return Inputs(
        __version__, launcher_and_script(step), settings, {path: digest for path, digest in read.items() if digest}
    )


def launcher_and_script(step: Step) -> list[str]:
    """Launcher and script; the script by its last folder and name, which do not depend on the working directory."""
    *launcher, script = step.program[1:]
    return [*launcher, "/".join(Path(script).parts[-2:])]


def relative_to_run(text: str, folder: Path) -> str:
    """A path in the folder of the pipeline, written as RUN/…; any other text is unchanged."""
    return "RUN" + text.removeprefix(str(folder)) if text.startswith(f"{folder}/") else text


def changed(earlier: Mapping[str, object], current: Mapping[str, object]) -> list[str]:
    """The keys with different values."""
    return [name for name in {**earlier, **current} if earlier.get(name, ABSENT) != current.get(name, ABSENT)]
