"""A step of a pipeline as data: a command, its settings, what it reads and what it writes."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from nestling.config.nested import flat, plain

# Settings that name files or folders, in any section; hub ids and words like bm25 may stand there too.
PATHS = {
    "base",
    "candidates",
    "corpus",
    "data",
    "embedder",
    "eval",
    "first_stage",
    "judge",
    "judgements",
    "model",
    "path",
    "personas",
    "reranker",
    "results",
    "retrievers",
    "run",
    "runs",
    "scorer",
}


@dataclass(frozen=True)
class Step:
    """One command of a pipeline.

    Args:
        name: Of the step and its folder.
        section: The section of the configuration that asks for it.
        program: What is started: the interpreter, the launcher and the script, one word each.
        arguments: The flags behind it.
        settings: All settings of its script, by dotted key.
        reads: Files and folders that it reads; what is not there is a hub id.
        writes: Files and folders that it writes.
        resumes: Whether the same command goes on where it was killed.
    """

    name: str
    section: str
    program: tuple[str, ...]
    arguments: tuple[str, ...]
    settings: Mapping[str, object]
    reads: tuple[Path, ...]
    writes: tuple[Path, ...]
    resumes: bool = False

    @property
    def command(self) -> list[str]:
        return [*self.program, *self.arguments]

    def __str__(self) -> str:
        """The command for a shell, with the short name of this Python where the shell knows it."""
        program, *rest = self.command
        if program == sys.executable and shutil.which("python") == program:
            program = "python"
        return shlex.join([program, *rest])


def resolved(config: Any) -> dict[str, object]:
    """All settings by dotted key, as JSON holds them."""
    return flat(plain(asdict(config)))


def paths_in(settings: Mapping[str, object]) -> Iterator[Path]:
    """The files and folders that settings by dotted key name, each once."""
    found = {
        str(value): Path(value)
        for key, value in settings.items()
        if isinstance(value, str) and re.sub(r"(\.\d+)+$", "", key).rpartition(".")[2] in PATHS
    }
    yield from found.values()


def files_in(launcher: Sequence[str]) -> Iterator[Path]:
    """The files that arguments of `accelerate launch` name, and those that a YAML file among them names in turn."""
    for path in (Path(word.rpartition("=")[2]) for word in launcher):
        if path.is_file():
            yield path
            values = flat(read_yaml(path)).values() if path.suffix in (".yaml", ".yml") else ()
            yield from (Path(value) for value in values if isinstance(value, str) and Path(value).is_file())


def read_yaml(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"launcher: {path} is no YAML file: {' '.join(str(error).split())}") from None


def flags(cls: type, given: Mapping[str, Any], config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Flags that set what is given, with the values that the dataclass has read.

    Args:
        cls: The script's settings.
        given: The settings that are given, nested.
        config: All settings, nested.
        prefix: Of their keys.
    """
    hints = get_type_hints(cls)
    for key, value in given.items():
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            yield from flags(hints[key], value, config[key], f"{prefix}{key}.")
        else:
            nested = isinstance(value, Mapping | Sequence) and not isinstance(value, str)
            yield f"--{prefix}{key}={as_text(value if nested else config[key])}"


def as_text(value: object) -> str:
    """A value as a flag takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
