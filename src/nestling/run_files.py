"""The files in the folder of a training run: data, metrics and evaluations."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nestling.files import replace_text

CONFIG, LAUNCHES, METRICS = "config.yaml", "run.json", "metrics.jsonl"
READ, DATA = "read.json", "data.json"
INTERPOLATION = "interpolation.json"
# What was found for each query of the dev sets: by BM25 or a reranker's first stage, and by the model at some steps.
DEV, BM25, FIRST_STAGE = "dev", "bm25.json", "first-stage.json"

# Metrics of an evaluation: {dev set: {dimension or depth: {metric: value}}}.
Results = Mapping[str, Mapping[int, Mapping[str, float]]]


def step_file(step: int) -> str:
    """Name of the file of a step in the folder `DEV`."""
    return f"step-{step}.json"


@dataclass(frozen=True)
class DataRead:
    """A dataset that a run has loaded.

    Args:
        name: Name of the dataset.
        role: train or dev.
        summary: The fields of `nestling.records.summary.LoadSummary`.
    """

    name: str
    role: str
    summary: Mapping[str, Any]

    @property
    def row_instruction(self) -> str | None:
        """The instruction that all rows have of their own; None if there is no such one."""
        own = self.summary.get("instructions", {"distinct": 0})  # runs of earlier releases did not count them
        same = own["distinct"] == 1 and own["rows"] == self.summary["rows_kept"]
        return str(own["frequent"][0][0]) if same else None

    @property
    def notes(self) -> list[str]:
        """Lines about dropped rows and ignored fields."""
        dropped = [
            f"dropped {drop['count']:,}: {drop['reason']} (first at {drop['example']})"
            for drop in self.summary["drops"]
        ]
        return dropped + [f"ignored field {name!r} in {count:,} rows" for name, count in self.summary["ignored"]]


@contextmanager
def reading(path: Path, advice: str) -> Iterator[None]:
    """A context that reads what Nestling has written: ValueError, with the file's name, for anything else in it."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not what was written there ({type(error).__name__}: {error}); {advice}") from None


def write_data_read(folder: Path, data: Sequence[DataRead]) -> None:
    """Write the datasets of a run to its folder."""
    replace_text(folder / READ, json.dumps([asdict(each) for each in data], indent=1, ensure_ascii=False))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without an incomplete last line, which a kill may leave."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
        elif number < len(lines):
            raise ValueError(f"{path}:{number}: not a line of metrics; remove the line")
    return rows


def read_data(path: Path) -> list[DataRead]:
    """The datasets of a run; empty for a run without the file."""
    if not path.is_file():
        return []
    with reading(path, "remove it"):
        return [DataRead(**each) for each in json.loads(path.read_text(encoding="utf-8"))]


def evaluation_at(path: Path, step: int | None) -> Results:
    """The evaluation of a step in metrics.jsonl; empty if there is none."""
    for values in read_metrics(path):
        if values["step"] == step and "eval" in values:
            with reading(path, f"remove the line of step {step}"):
                return with_numbers(values["eval"])
    return {}


def checkpoints_measured(model: Path, dev_set: str) -> int:
    """On how many checkpoints a run measured a dev set, which chose RUN/final among them; 0 for any other model."""
    metrics = model.parent / METRICS
    if model.name != "final" or not metrics.is_file():
        return 0
    return sum(values["step"] > 0 and dev_set in values.get("eval", {}) for values in read_metrics(metrics))


@dataclass(frozen=True)
class Exported:
    """Which weights of a run are in final/, where a dev set has chosen between the base's and the trained ones.

    Args:
        step: Step of the trained weights.
        share: Their share, the rest being the base's.
        measured: nDCG@10 averaged over dev sets and dimensions, by share, as text.
        results: The evaluation of the weights in final/.
    """

    step: int
    share: float
    measured: Mapping[str, float]
    results: Results


def write_exported(folder: Path, exported: Exported) -> None:
    """Write it to the folder of a run."""
    replace_text(folder / INTERPOLATION, json.dumps(asdict(exported), indent=1, ensure_ascii=False) + "\n")


def forget_exported(folder: Path) -> None:
    """Remove it, where it is of earlier settings of the run."""
    (folder / INTERPOLATION).unlink(missing_ok=True)


def read_exported(folder: Path) -> Exported | None:
    """Read it; None where the trained weights are exported as they are."""
    path = folder / INTERPOLATION
    if not path.is_file():
        return None
    with reading(path, "remove it"):
        content = json.loads(path.read_text(encoding="utf-8"))
        return Exported(**{**content, "results": with_numbers(content["results"])})


def evaluation_of_final(folder: Path, step: int) -> Results:
    """The evaluation of final/ that holds the weights of a step, or weights between these and the base's."""
    exported = read_exported(folder)
    return exported.results if exported and exported.step == step else evaluation_at(folder / METRICS, step)


def with_numbers(evaluation: Mapping[str, Mapping[str, Any]]) -> Results:
    """An evaluation read from JSON, whose dimensions are texts there."""
    return {name: {int(dim): each for dim, each in by_dim.items()} for name, by_dim in evaluation.items()}


@dataclass(frozen=True)
class DataLine:
    """A training dataset, as the model card lists it.

    Args:
        name: Name of the dataset.
        rows: Number of rows used.
        summary: One line about its kind, negatives, instruction and dropped rows.
    """

    name: str
    rows: int
    summary: str = ""


def write_data_lines(folder: Path, lines: Sequence[DataLine]) -> None:
    """Write the training datasets for the model card to the folder of a run."""
    replace_text(folder / DATA, json.dumps([asdict(line) for line in lines], indent=1, ensure_ascii=False))


def read_data_lines(folder: Path) -> list[DataLine]:
    """The training datasets for the model card; empty for a run without them."""
    path = folder / DATA
    if not path.is_file():
        return []
    with reading(path, "remove it"):
        return [DataLine(**line) for line in json.loads(path.read_text(encoding="utf-8"))]
