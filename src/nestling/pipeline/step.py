"""A step of a pipeline: its command, settings, inputs and outputs."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from nestling.config.nested import flat, plain
from nestling.config.yaml_files import read_yaml
from nestling.retrieval.choice import Choice

# Settings whose values are files or folders, in any section; hub ids and names such as bm25 are possible too.
PATHS = {
    "base",
    "candidates",
    "choice",
    "corpus",
    "data",
    "embedder",
    "eval",
    "expected",
    "first_stage",
    "folder",
    "judge",
    "judgements",
    "model",
    "models",
    "path",
    "personas",
    "rerank_weight",
    "reranker",
    "results",
    "retrievers",
    "run",
    "runs",
    "scorer",
}
# The one of these whose links are not followed, as scripts/read_documents.py does not: one may lead to a whole disk.
WALKED = "folder"


@dataclass(frozen=True)
class Step:
    """One command of a pipeline.

    Args:
        name: Name of the step and its folder.
        section: Section of the configuration that it belongs to.
        program: The words of the interpreter, the launcher and the script.
        arguments: The flags of the script.
        settings: Dotted key -> value of all settings of the script.
        reads: Files and folders that it reads; one that does not exist is a hub id.
        writes: Files and folders that it writes.
        resumes: Whether the command resumes after a kill.
        updates: Whether it brings its earlier outputs up to date, also after a kill; they are not moved aside.
        choice: File of the `Choice` that has to name the trained model of the step; None for a step that is always run.
        kind: What that model is, "embedder" or "reranker".
        journal: File of answers that were paid for; the step takes it over when it is repeated for changes of `free`.
        free: Settings that the answers do not depend on, and neither on the files that they name.
    """

    name: str
    section: str
    program: tuple[str, ...]
    arguments: tuple[str, ...]
    settings: Mapping[str, object]
    reads: tuple[Path, ...]
    writes: tuple[Path, ...]
    resumes: bool = False
    updates: bool = False
    choice: Path | None = None
    kind: str = ""
    journal: Path | None = None
    free: tuple[str, ...] = ()

    @property
    def left_out(self) -> str | None:
        """Why it is not to be run; None if it is."""
        if self.choice is None or Choice.read(self.choice).trained(self.kind):
            return None
        return f"the dev set does not speak for the {self.kind}: {self.choice}"

    @property
    def command(self) -> list[str]:
        """All words of the command."""
        return [*self.program, *self.arguments]

    def __str__(self) -> str:
        """The command for a shell; `python` if that is this interpreter."""
        program, *rest = self.command
        if program == sys.executable and shutil.which("python") == program:
            program = "python"
        return shlex.join([program, *rest])


def flat_settings(config: Any) -> dict[str, object]:
    """Dotted key -> JSON value of all settings."""
    return flat(plain(asdict(config)))


def paths_in(settings: Mapping[str, object]) -> Iterator[Path]:
    """The distinct files and folders in flat settings."""
    found = {
        str(value): Path(value)
        for key, value in settings.items()
        if isinstance(value, str) and re.sub(r"(\.\d+)+$", "", key).rpartition(".")[2] in PATHS
    }
    yield from found.values()


def files_in(launcher: Sequence[str]) -> Iterator[Path]:
    """The files in arguments of `accelerate launch`, and the files that YAML files among them refer to."""
    for path in (Path(word.rpartition("=")[2]) for word in launcher):
        if path.is_file():
            yield path
            values = flat(read_yaml(path)).values() if path.suffix in (".yaml", ".yml") else ()
            yield from (Path(value) for value in values if isinstance(value, str) and Path(value).is_file())


def flags(cls: type, given: Mapping[str, Any], config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The flags for given settings, with the values as the dataclass parsed them.

    Args:
        cls: Settings class of the script.
        given: The given settings, nested.
        config: All settings, nested.
        prefix: Prefix of their keys.
    """
    hints = get_type_hints(cls)
    for key, value in given.items():
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            yield from flags(hints[key], value, config[key], f"{prefix}{key}.")
        else:
            nested = isinstance(value, Mapping | Sequence) and not isinstance(value, str)
            yield f"--{prefix}{key}={as_text(value if nested else config[key])}"


def as_text(value: object) -> str:
    """A value as the text of a flag."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
