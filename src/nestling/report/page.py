"""The page itself: what is shown of runs and results, and the template that lays it out."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader

from nestling import __version__
from nestling.files import replace_text
from nestling.report.charts import Chart, line_chart
from nestling.report.comparison import figure, p_value, signed
from nestling.report.results import METRIC, Result
from nestling.report.runs import CURVES, RunRecord, read_run_record
from nestling.report.sets import SetView, choose_baseline, view_set

logger = logging.getLogger(__name__)

REPORT = "report.html"


@dataclass(frozen=True)
class Page:
    """A page.

    Args:
        html: All of it.
        summary: Its beginning in words.
    """

    html: str
    summary: Sequence[str]


def render(
    *,
    title: str,
    runs: Sequence[RunRecord],
    results: Sequence[Result],
    baseline: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> Page:
    """The page of some runs and results.

    Args:
        title: Its heading.
        runs: Whose curves, data and settings are shown.
        results: All are compared with the baseline; the last is the one after training.
        baseline: Name of one of them; by default the first of a model.
        settings: Texts to show at the end, by name.

    Raises:
        ValueError: Results were measured on different queries.
    """
    sets = view_sets(results, baseline)
    summary = [line for each in sets for line in each.summary] or run_summary(runs)
    html = (
        environment()
        .get_template("report/page.html")
        .render(
            title=title,
            version=__version__,
            summary=summary,
            sets=sets,
            runs=runs,
            charts=run_charts(runs),
            settings={**{f"{run.name}/config.yaml": run.config for run in runs}, **(settings or {})},
        )
    )
    return Page(html, summary)


def environment() -> Environment:
    """Templates of the package, with all texts escaped."""
    found = Environment(loader=PackageLoader("nestling", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found.filters.update(figure=figure, signed=signed, p_value=p_value)
    return found


def view_sets(results: Sequence[Result], baseline: str | None) -> list[SetView]:
    """What is shown of each set, in the order in which results name them."""
    if not results:
        return []
    chosen = choose_baseline(results, baseline)
    return [
        view_set(data, results, chosen) for data in dict.fromkeys(data for each in results for data in each.datasets)
    ]


def run_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Curves of all runs over their steps."""
    several = len(runs) > 1
    learning = {
        f"{run.name}, {data}" if several else data: points
        for run in runs
        for data, points in run.learning_curves().items()
    }
    charts = [line_chart("nDCG@10 on the dev sets", learning, x_label="step")]
    charts += [
        line_chart(title, {run.name: run.curve(name) for run in runs}, x_label="step") for name, title in CURVES.items()
    ]
    return [chart for chart in charts if chart is not None]


def run_summary(runs: Sequence[RunRecord]) -> list[str]:
    """What training changed on the dev sets, in words."""
    lines = []
    for run in runs:
        for each in run.scores:
            if each.value == max(other.value for other in run.scores if other.data == each.data):
                before, after = each.metrics[METRIC]
                lines.append(
                    f"{each.data}: {METRIC} {figure(before)} → {figure(after)}, {signed(after - before)} "
                    f"({run.name}, step {run.exported_step:,}, on the dev set that chose it)"
                )
    return lines


def draw_run(folder: Path) -> None:
    """Write report.html into a run folder; a failure is told and leaves the finished run as it is."""
    try:
        record = read_run_record(folder)
        replace_text(folder / REPORT, render(title=record.name, runs=[record], results=[]).html)
    except Exception:  # whatever it is, the model is there, and nobody should train again for a picture
        logger.exception(
            "%s could not be drawn; the run is complete without it. To draw it: python scripts/report.py --runs %s "
            "--output report.html",
            folder / REPORT,
            folder,
        )
