"""What a step was done with, in step.json of its folder, and what is different now."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nestling import __version__
from nestling.files import replace_text
from nestling.pipeline.digests import Digests
from nestling.pipeline.step import Step

ABSENT = "(absent)"


@dataclass(frozen=True)
class Inputs:
    """All that decides what a step gives.

    Args:
        nestling: Version of the package.
        program: Launcher and script.
        settings: All of its script, by dotted key.
        files: Digest of each file and folder that it reads.
    """

    nestling: str
    program: list[str]
    settings: dict[str, object]
    files: dict[str, str]

    def differences(self, now: "Inputs") -> list[str]:
        """What is different now, in words, the largest cause first."""
        both = self.files.keys() & now.files.keys()
        found = [f"{name} is different" for name in changed(self.files, now.files) if name in both]
        found += [
            f"{name} is {now.settings.get(name, ABSENT)}, was {self.settings.get(name, ABSENT)}"
            for name in changed(self.settings, now.settings)
        ]
        if not found and self.files != now.files:
            found = [f"{name} was not there" for name in now.files.keys() - both]
            found += [f"{name} is not there" for name in self.files.keys() - both]
        if self.program != now.program:
            found.append(f"it is started by {' '.join(now.program)}, was by {' '.join(self.program)}")
        if self.nestling != now.nestling:
            found.append(f"nestling is {now.nestling}, was {self.nestling}")
        return found


@dataclass(frozen=True)
class Record:
    """A step that was started.

    Args:
        inputs: What it was started with.
        done: Whether it ended well.
        process: Id of the process that was started, and when that was, in seconds since 1970.
        seconds: How long it took.
    """

    inputs: Inputs
    done: bool
    process: tuple[int, float] | None = None
    seconds: float | None = None

    @classmethod
    def read(cls, path: Path) -> "Record | None":
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        process = content["process"]
        inputs = Inputs(**content["inputs"])
        return cls(inputs, content["done"], tuple(process) if process else None, content["seconds"])

    def write(self, path: Path) -> None:
        replace_text(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def inputs_of(step: Step, folder: Path, digests: Digests) -> Inputs:
    """What a step would be done with now; paths in the pipeline's folder are named from there, so that it can move."""
    read = {local(str(path), folder): digests.of(path) for path in step.reads}
    settings = {key: local(value, folder) if isinstance(value, str) else value for key, value in step.settings.items()}
    return Inputs(__version__, started_by(step), settings, {path: digest for path, digest in read.items() if digest})


def started_by(step: Step) -> list[str]:
    """Launcher and script, that by folder and name alone: from elsewhere a command names it by its whole path."""
    *launcher, script = step.program[1:]
    return [*launcher, "/".join(Path(script).parts[-2:])]


def local(text: str, folder: Path) -> str:
    return "RUN" + text.removeprefix(str(folder)) if text.startswith(f"{folder}/") else text


def changed(then: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    return [name for name in {**then, **now} if then.get(name, ABSENT) != now.get(name, ABSENT)]
