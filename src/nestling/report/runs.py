"""Reads run folders of train/embed.py and train/rerank.py: training curves, evaluations, data and settings."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from nestling.config import require
from nestling.config.yaml_files import read_yaml
from nestling.report.charts import Points
from nestling.report.results import METRIC
from nestling.run_files import (
    CONFIG,
    LAUNCHES,
    METRICS,
    READ,
    DataRead,
    Results,
    evaluation_of_final,
    read_data,
    read_exported,
    read_metrics,
)

# Metrics of a training step that are drawn, and the titles of their charts.
CURVES = {
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens a second",
}


@dataclass(frozen=True)
class DevScores:
    """Metrics of a dev set at one value of the evaluation axis, before and after training.

    Args:
        data: Name of the dev set.
        value: Dimension of an embedder's embeddings, or number of candidates of a reranker.
        metrics: (before, after) for each metric.
    """

    data: str
    value: int
    metrics: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class RunRecord:
    """What a training run wrote into its folder.

    Attributes:
        folder: The run folder.
        name: Name of the folder, preceded by as much of its path as makes it unique among the runs of a report.
        config: The settings, as YAML text.
        settings: The settings, parsed.
        launches: For each launch the time, the processes, versions and commit.
        steps: Lines of metrics.jsonl about training steps.
        evaluations: Metrics of the dev sets by step.
        data: What was read and dropped of each dataset.
    """

    folder: Path
    name: str
    config: str
    settings: Mapping[str, Any]
    launches: Sequence[Mapping[str, Any]]
    steps: Sequence[Mapping[str, Any]]
    evaluations: Mapping[int, Results]
    data: Sequence[DataRead]

    def curve(self, name: str) -> Points:
        """(step, value) of a metric of training steps; steps without a finite value are left out."""
        return [(line["step"], line[name]) for line in self.steps if line.get(name) is not None]

    def dev_curves(self) -> dict[str, Points]:
        """(step, nDCG@10) for each dev set, at the largest value of the evaluation axis."""
        curves: dict[str, list[tuple[float, float]]] = {}
        for step, results in self.evaluations.items():
            for data, by_value in results.items():
                curves.setdefault(data, []).append((step, by_value[max(by_value)][METRIC]))
        return dict(curves)

    @property
    def exported_step(self) -> int | None:
        """The step whose weights are in final/: the one with the best evaluation; None if there was no evaluation."""
        steps = [step for step in self.evaluations if step > 0]
        if not steps:
            return None
        return max(steps, key=self._mean_score)

    def _mean_score(self, step: int) -> float:
        """nDCG@10 at the largest value of the evaluation axis, averaged over the dev sets."""
        return fmean(by_value[max(by_value)][METRIC] for by_value in self.evaluations[step].values())

    @property
    def axis(self) -> str:
        """Name of the evaluation axis: what a dev set is evaluated at several values of."""
        return "depth" if "prefix" in self.settings else "dimensions"

    @property
    def scores(self) -> list[DevScores]:
        """Scores of the dev sets before training and at the exported step; empty if either was not measured."""
        before, step = self.evaluations.get(0), self.exported_step
        if before is None or step is None:
            return []
        return [
            DevScores(data, value, {name: (before[data][value][name], result) for name, result in after.items()})
            for data, by_value in evaluation_of_final(self.folder, step).items()
            for value, after in by_value.items()
        ]

    @property
    def facts(self) -> dict[str, str]:
        """Properties of the run by name, as shown on the page."""
        launch, last = self.launches[-1], self.steps[-1] if self.steps else {}
        git = launch.get("git") or {}
        commit = f"{git['commit'][:10]}{' with changes' if git['dirty'] else ''}" if git else None
        exported = read_exported(self.folder)
        facts = {
            "model": self.settings.get("model"),
            "steps": f"{last['step']:,}" if last else None,
            "examples": f"{last['examples']:,}" if last else None,
            "tokens": f"{last['tokens']:,}" if last else None,
            "texts cut to the limit": f"{last['truncated']:,}" if last else None,
            "share of the trained weights in final/": f"{exported.share:g}" if exported else None,
            "steps skipped": f"{last['skipped_steps']:,}" if last else None,
            "started": launch.get("started"),
            "launches": f"{len(self.launches):,}",
            "processes": launch.get("world_size"),
            "versions": ", ".join(f"{name} {version}" for name, version in launch.get("versions", {}).items()),
            "platform": launch.get("platform"),
            "commit": commit,
        }
        return {name: str(value) for name, value in facts.items() if value is not None}


def read_run_records(folders: Sequence[Path]) -> list[RunRecord]:
    """Read run folders and give each a unique name: several of a pipeline may have the same folder name.

    Raises:
        ValueError: A folder is not a run folder, or is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        require(paths.count(path) == 1, f"runs: {folder} is given twice")
    return [
        replace(read_run_record(folder), name=shortest_name(path, [each for each in paths if each != path]))
        for folder, path in zip(folders, paths, strict=True)
    ]


def shortest_name(path: Path, others: Sequence[Path]) -> str:
    """The shortest sequence of last parts of an absolute path that no other path ends with."""
    ends = ("/".join(path.parts[-count:]) for count in range(1, len(path.parts)))
    return next((end for end in ends if not any(f"{other}".endswith(f"/{end}") for other in others)), str(path))


def read_run_record(folder: Path) -> RunRecord:
    """Read a run folder; that of an interrupted run as far as it was written.

    Raises:
        ValueError: It is not a run folder, or a file in it is not what a run writes.
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
        settings = read_yaml(folder / CONFIG)
        evaluations = {
            int(line["step"]): {
                data: {int(value): each for value, each in by_value.items()} for data, by_value in line["eval"].items()
            }
            for line in lines
            if "eval" in line
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{folder}: {CONFIG}, {LAUNCHES} or {METRICS} is not what a run writes") from None
    return RunRecord(
        folder=folder,
        name=folder.resolve().name,
        config=config,
        settings=settings,
        launches=launches,
        steps=[line for line in lines if "loss" in line],
        evaluations=evaluations,
        data=read_data(folder / READ),
    )
