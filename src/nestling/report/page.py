"""The report as an HTML page: collects what is shown of runs and results, and renders the template page.html."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from nestling import __version__
from nestling.disk_errors import WriteError
from nestling.files import replace_text
from nestling.pages import page_environment
from nestling.report.charts import LEAST_SPAN, Chart, line_chart
from nestling.report.comparison import format_change, format_p_value, format_score
from nestling.report.dev_sets import BEFORE, dev_results
from nestling.report.results import METRIC, Result
from nestling.report.runs import CURVES, RunRecord, read_run_record
from nestling.report.sets import SetView, choose_baseline, view_set
from nestling.report.verdict import chosen_result, system_of
from nestling.retrieval.choice import Choice

logger = logging.getLogger(__name__)

REPORT = "report.html"
UNMEASURED = "Nothing was measured: no evaluation while training, and no result of a test set."


@dataclass(frozen=True)
class Page:
    """A rendered page.

    Args:
        html: The page.
        summary: Sentences at its top, which scripts/report.py prints too.
    """

    html: str
    summary: Sequence[str]


def render(
    *,
    title: str,
    runs: Sequence[RunRecord],
    results: Sequence[Result],
    baseline: str | None = None,
    choice: Choice | None = None,
    verdict: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> Page:
    """Render the report of runs and results; without results a single run is shown with those of its dev sets.

    Args:
        title: Heading of the page.
        runs: Runs whose curves, data and settings are shown.
        results: Results to compare with the baseline; the last one is the result after training, if there is no choice.
        baseline: Name of the result that is the baseline; by default the first of a model.
        choice: What the dev set says should be served.
        verdict: What the result is worth, the first line of the page.
        settings: Further settings files to show at the end, texts by name.

    Raises:
        ValueError: Results were measured on different queries.
    """
    if not results and len(runs) == 1:
        results = dev_results(runs[0])
        baseline = BEFORE if results else None
    sets = view_sets(results, baseline, choice)
    summary = [line for each in sets for line in each.summary] or run_summary(runs)
    if not (summary or results):
        summary = [UNMEASURED]
    if choice is not None:
        summary = [*summary, *choice.lines()]
    if verdict is not None:
        summary = [verdict, *summary]
    html = (
        template_environment()
        .get_template("report/page.html")
        .render(
            title=title,
            summary=summary,
            sets=sets,
            traffic=[line for each in results for line in each.traffic],
            runs=runs,
            charts=run_charts(runs),
            settings={**{f"{run.name}/config.yaml": run.config for run in runs}, **(settings or {})},
        )
    )
    return Page(html, summary)


def template_environment() -> Environment:
    """The environment of the package's templates, with figures as reports write them."""
    environment = page_environment(__version__)
    environment.filters.update(score=format_score, change=format_change, p_value=format_p_value)
    return environment


def view_sets(results: Sequence[Result], baseline: str | None, choice: Choice | None) -> list[SetView]:
    """What is shown of each retrieval set, in the order in which the results name them."""
    if not results:
        return []
    first, measured = choose_baseline(results, baseline), [each for each in results if not each.traffic]
    # A reranker that dev has left out is measured too, and not what the page is about.
    final = chosen_result(measured, choice) if choice is not None and measured else None
    return [
        view_set(data, results, first, system_of(final, data) if final and data in final.datasets else None)
        for data in dict.fromkeys(data for each in results for data in each.datasets)
    ]


def run_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Charts over the training steps, with a line for each run."""
    several = len(runs) > 1
    dev_curves = {
        f"{run.name}, {data}" if several else data: points for run in runs for data, points in run.dev_curves().items()
    }
    charts = [line_chart("nDCG@10 on the dev sets", dev_curves, x_label="step", least_span=LEAST_SPAN)]
    charts += [
        line_chart(title, {run.name: run.curve(name) for run in runs}, x_label="step") for name, title in CURVES.items()
    ]
    return [chart for chart in charts if chart is not None]


def run_summary(runs: Sequence[RunRecord]) -> list[str]:
    """For each run and dev set a sentence with the change by training, at the largest value of the evaluation axis."""
    lines = []
    for run in runs:
        for each in run.scores:
            if each.value == max(other.value for other in run.scores if other.data == each.data):
                before, after = each.metrics[METRIC]
                lines.append(
                    f"{each.data}: {METRIC} {format_score(before)} → {format_score(after)}, "
                    f"{format_change(after - before)} "
                    f"({run.name}, step {run.exported_step:,}, on the dev set that chose it)"
                )
    return lines


def write_run_report(folder: Path) -> None:
    """Write report.html into a run folder; a failure is logged, not raised."""
    try:
        record = read_run_record(folder)
        replace_text(folder / REPORT, render(title=record.name, runs=[record], results=[]).html)
    except Exception as error:  # training has succeeded by now, and no failure of a picture may make the run fail
        logger.error(
            "%s could not be drawn (%s); the run is complete without it. To draw it: python scripts/report.py --runs "
            "%s --output report.html",
            folder / REPORT,
            error,
            folder,
            exc_info=None if isinstance(error, WriteError) else error,
        )


def write_missing_report(folder: Path) -> None:
    """Write the report of a complete run that was killed before it had one; of several ranks the first writes it."""
    if os.environ.get("RANK", "0") == "0" and not (folder / REPORT).exists():
        write_run_report(folder)
