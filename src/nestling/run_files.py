"""What a run of a recipe leaves in its folder, and how the files are read: data, metrics, evaluations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nestling.files import replace_text

CONFIG, LAUNCHES, METRICS = "config.yaml", "run.json", "metrics.jsonl"
READ, DATA = "read.json", "data.json"

# Figures of an evaluation: {dev set: {dimension or depth: {metric: value}}}.
Results = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True)
class DataRead:
    """A dataset that a run read.

    Args:
        name: How the run calls it.
        role: train or dev.
        summary: The figures of `nestling.records.summary.LoadSummary`.
    """

    name: str
    role: str
    summary: Mapping[str, Any]

    @property
    def remarks(self) -> list[str]:
        """What was dropped and ignored."""
        dropped = [
            f"dropped {each['count']:,}: {each['reason']} (first at {each['example']})"
            for each in self.summary["drops"]
        ]
        return dropped + [f"ignored field {name!r} in {count:,} rows" for name, count in self.summary["ignored"]]


def write_data_read(folder: Path, data: Sequence[DataRead]) -> None:
    """Leave in a run's folder what it read, kept and dropped."""
    replace_text(folder / READ, json.dumps([asdict(each) for each in data], indent=1, ensure_ascii=False))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a kill tore, which can only be the last, is left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: not a line of metrics") from None
    return found


def read_data(path: Path) -> list[DataRead]:
    """What a run read; nothing of a run that did not record it."""
    if not path.is_file():
        return []
    return [DataRead(**each) for each in json.loads(path.read_text(encoding="utf-8"))]


def evaluation_at(path: Path, step: int | None) -> Results:
    """The evaluation that metrics.jsonl holds for a step; empty where there is none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if values["step"] == step and "eval" in values:
            return {name: {int(dim): each for dim, each in by_dim.items()} for name, by_dim in values["eval"].items()}
    return {}


@dataclass(frozen=True)
class DataLine:
    """A dataset that the model was trained on.

    Args:
        name: How it is called.
        rows: Rows used.
        summary: One line for readers: kind, negatives, instruction, what was dropped.
    """

    name: str
    rows: int
    summary: str = ""


def write_data_lines(folder: Path, lines: Sequence[DataLine]) -> None:
    """Leave in a run's folder what its card says of its data."""
    replace_text(folder / DATA, json.dumps([asdict(line) for line in lines], indent=1, ensure_ascii=False))
