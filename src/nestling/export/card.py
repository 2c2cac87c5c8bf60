"""What the model cards of embedders and rerankers have in common: README.md of an exported directory.

A card says what the directory is, where it comes from, and how each stack uses it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import ModelCardData, metadata_load

from nestling.export.gate import GateReport
from nestling.models.weights import model_file
from nestling.run_files import METRICS, DataLine, evaluation_at, read_data_lines

# Figures of an evaluation: dataset -> dimension -> metric -> value.
Results = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True)
class Score:
    """A figure before and after training; None where it was not measured.

    An embedder's is of embeddings cut to `dim`, a reranker's of `dim` candidates a query.
    """

    dataset: str
    dim: int
    metric: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Card:
    """What the run knows and the exported directory does not.

    Args:
        title: Name of the model; by default that of its base, fine-tuned.
        base: Name of the base model; by default its hub id or the name of its folder.
        data: What it was trained on.
        config: Settings of the run, printed as YAML.
        scores: Figures before and after.
    """

    title: str | None = None
    base: str | None = None
    data: Sequence[DataLine] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    scores: Sequence[Score] = ()


def run_card(folder: Path, config: Mapping[str, object], step: int, after: Results | None = None) -> Card:
    """The card of a run's model: what its folder says of its data, and of its evaluations before and at `step`.

    `after` is the evaluation of its weights where these are not those of the step.
    """
    metrics = folder / METRICS
    scores = (
        before_and_after(evaluation_at(metrics, 0), after or evaluation_at(metrics, step)) if metrics.exists() else []
    )
    return Card(data=read_data_lines(folder), config=config, scores=scores)


def before_and_after(before: Results, after: Results) -> list[Score]:
    """The figures of two evaluations side by side."""
    return [
        Score(dataset, dim, metric, before.get(dataset, {}).get(dim, {}).get(metric), value)
        for dataset, by_dim in after.items()
        for dim, metrics in by_dim.items()
        for metric, value in metrics.items()
    ]


def base_name(source: str) -> str:
    """Hub id of a base model, or the name of its folder: a card holds no path of anyone's machine."""
    return Path(source).resolve().name if Path(source).is_dir() else source


def base_license(source: str) -> str | None:
    """The licence that the card of a directory or hub id names; None if it names none, or is not readable."""
    readme = model_file(source, "README.md")
    try:
        found = (metadata_load(readme) or {}).get("license") if readme is not None else None
    except (yaml.YAMLError, ValueError, AttributeError):
        return None
    return None if found is None else str(found)


def render_card(
    front_matter: ModelCardData, introduction: str, usage: str, card: Card, report: GateReport, *, cut: str
) -> str:
    """README.md with its YAML front matter; `cut` is how the column of `Score.dim` is called."""
    sections = [
        failure_note(report),
        introduction,
        scores_section(card.scores, cut),
        usage,
        data_section(card.data),
        config_section(card.config),
        gate_section(report),
    ]
    return f"---\n{front_matter.to_yaml()}\n---\n\n" + "\n".join(section for section in sections if section)


def license_line(name: str | None) -> str:
    """An item of a list; None where the base names none."""
    return f"- Licence of the base: {name or 'not named by its files; see its own page'}"


def adapter_note(lora: bool) -> str:
    """A paragraph about adapter/, empty without LoRA."""
    return "\nThe weights have the LoRA adapter merged in; the adapter itself lies in `adapter/`.\n" if lora else ""


def scores_section(scores: Sequence[Score], cut: str) -> str:
    """A table of what was measured before and after training; `cut` is how the column of `Score.dim` is called."""
    if not scores:
        return ""
    metrics = list(dict.fromkeys(score.metric for score in scores))
    cells = {(score.dataset, score.dim, score.metric): score for score in scores}
    rows = list(dict.fromkeys((score.dataset, score.dim) for score in scores))
    lines = [
        f"| {dataset} | {dim} | " + " | ".join(_cell(cells.get((dataset, dim, metric))) for metric in metrics) + " |"
        for dataset, dim in rows
    ]
    return "\n".join(
        [
            "## Results",
            "",
            "Before → after training.",
            "",
            f"| Data | {cut} | {' | '.join(metrics)} |",
            f"| --- | ---: |{' ---: |' * len(metrics)}",
            *lines,
            "",
        ]
    )


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    before, after = ("?" if value is None else f"{value:.4f}" for value in (score.before, score.after))
    return f"{before} → {after}"


def data_section(data: Sequence[DataLine]) -> str:
    """A table of the training data."""
    if not data:
        return ""
    lines = [f"| {each.name} | {each.rows:,} | {_cell_text(each.summary)} |" for each in data]
    return "\n".join(["## Training data", "", "| Dataset | Rows | Summary |", "| --- | ---: | --- |", *lines, ""])


def _cell_text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def config_section(config: Mapping[str, object]) -> str:
    """The run's settings."""
    if not config:
        return ""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return f"## Training configuration\n\n```yaml\n{text}```\n"


def failure_note(report: GateReport) -> str:
    """A warning at the top of the card of a directory that was written although it failed the gate."""
    if not report.failures:
        return ""
    return "> **This directory failed its parity gate**: it does not reproduce the trained model. See Parity below.\n"


def gate_section(report: GateReport) -> str:
    """What the gate measured."""
    return "\n".join(
        [
            "## Parity",
            "",
            "Measured at export, on the written files:",
            "",
            *(f"- **failed**: {line}" for line in report.failures),
            *(f"- {line}" for line in report.lines()),
            "",
        ]
    )
