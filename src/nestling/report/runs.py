"""What a run of a recipe left in its folder: curves, evaluations, data, settings."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from nestling.config import require
from nestling.report.charts import Points
from nestling.report.results import METRIC
from nestling.run_files import CONFIG, LAUNCHES, METRICS, READ, DataRead, Results, read_data, read_metrics

CURVES = {
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens a second",
}


@dataclass(frozen=True)
class DevScores:
    """A dev set at a value of the evaluation axis, before training and after.

    Args:
        data: Its name.
        value: Dimension of an embedder, or number of candidates of a reranker.
        metrics: Both values of each.
    """

    data: str
    value: int
    metrics: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class RunRecord:
    """A run folder.

    Attributes:
        name: Of the folder, with as much of its path as tells it from others.
        config: Its settings, as YAML.
        settings: Likewise, parsed.
        launches: When, how and with what it was started.
        steps: Lines of metrics.jsonl about training.
        evaluations: Those about the dev sets, by step.
        data: What it read.
    """

    name: str
    config: str
    settings: Mapping[str, Any]
    launches: Sequence[Mapping[str, Any]]
    steps: Sequence[Mapping[str, Any]]
    evaluations: Mapping[int, Results]
    data: Sequence[DataRead]

    def curve(self, name: str) -> Points:
        """(step, value) of what a step logs; what was not finite is left out."""
        return [(line["step"], line[name]) for line in self.steps if line.get(name) is not None]

    def learning_curves(self) -> dict[str, Points]:
        """nDCG@10 at the largest value of the axis over the steps, of each dev set."""
        curves: dict[str, list[tuple[float, float]]] = {}
        for step, results in self.evaluations.items():
            for data, by_value in results.items():
                curves.setdefault(data, []).append((step, by_value[max(by_value)][METRIC]))
        return dict(curves)

    @property
    def exported_step(self) -> int | None:
        """The step of final/ as far as the evaluations tell: the best."""
        steps = [step for step in self.evaluations if step > 0]
        if not steps:
            return None
        return max(steps, key=self._judge)

    def _judge(self, step: int) -> float:
        return fmean(by_value[max(by_value)][METRIC] for by_value in self.evaluations[step].values())

    @property
    def axis(self) -> str:
        """What evaluations are made at beside the data."""
        return "depth" if "prefix" in self.settings else "dimensions"

    @property
    def scores(self) -> list[DevScores]:
        """The dev sets before training and at the exported step; empty where one of these was not measured."""
        before, step = self.evaluations.get(0), self.exported_step
        if before is None or step is None:
            return []
        return [
            DevScores(data, value, {name: (before[data][value][name], result) for name, result in after.items()})
            for data, by_value in self.evaluations[step].items()
            for value, after in by_value.items()
        ]

    @property
    def facts(self) -> dict[str, str]:
        """What the run was, in few words."""
        launch, last = self.launches[-1], self.steps[-1] if self.steps else {}
        git = launch.get("git") or {}
        commit = f"{git['commit'][:10]}{' with changes' if git['dirty'] else ''}" if git else None
        found = {
            "model": self.settings.get("model"),
            "steps": f"{last['step']:,}" if last else None,
            "examples": f"{last['examples']:,}" if last else None,
            "tokens": f"{last['tokens']:,}" if last else None,
            "texts cut to the limit": f"{last['truncated']:,}" if last else None,
            "steps skipped": f"{last['skipped_steps']:,}" if last else None,
            "started": launch.get("started"),
            "launches": f"{len(self.launches):,}",
            "processes": launch.get("world_size"),
            "versions": ", ".join(f"{name} {version}" for name, version in launch.get("versions", {}).items()),
            "platform": launch.get("platform"),
            "commit": commit,
        }
        return {name: str(value) for name, value in found.items() if value is not None}


def read_run_records(folders: Sequence[Path]) -> list[RunRecord]:
    """Read run folders; those of one name, as a pipeline's are, bear the end of their path.

    Raises:
        ValueError: One is no run folder, or is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        require(paths.count(path) == 1, f"runs: {folder} is given twice")
    return [
        replace(read_run_record(folder), name=shortest_name(path, [each for each in paths if each != path]))
        for folder, path in zip(folders, paths, strict=True)
    ]


def shortest_name(path: Path, others: Sequence[Path]) -> str:
    """The shortest end of an absolute path that is the end of no other."""
    ends = ("/".join(path.parts[-count:]) for count in range(1, len(path.parts)))
    return next((end for end in ends if not any(f"{other}".endswith(f"/{end}") for other in others)), str(path))


def read_run_record(folder: Path) -> RunRecord:
    """Read a run folder; of a run that was stopped what is there.

    Raises:
        ValueError: It is no run folder, or a file in it is not what a run writes.
    """
    for name in (CONFIG, LAUNCHES, METRICS):
        require(
            (folder / name).is_file(),
            f"{folder} has no {name}; expected a run folder of train/embed.py or train/rerank.py",
        )
    config = (folder / CONFIG).read_text(encoding="utf-8")
    lines = read_metrics(folder / METRICS)
    try:
        launches = json.loads((folder / LAUNCHES).read_text(encoding="utf-8"))["launches"]
        settings = yaml.safe_load(config)
        evaluations = {
            int(line["step"]): {
                data: {int(value): each for value, each in by_value.items()} for data, by_value in line["eval"].items()
            }
            for line in lines
            if "eval" in line
        }
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        raise ValueError(f"{folder}: {CONFIG}, {LAUNCHES} or {METRICS} is not what a run writes") from None
    return RunRecord(
        name=folder.resolve().name,
        config=config,
        settings=settings,
        launches=launches,
        steps=[line for line in lines if "loss" in line],
        evaluations=evaluations,
        data=read_data(folder / READ),
    )
