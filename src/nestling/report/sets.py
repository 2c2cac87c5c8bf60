"""What the page shows of one retrieval set: results table, curves over dimensions, score histograms, examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from nestling.report.charts import COLOURS, LEAST_SPAN, Chart, Points, line_chart
from nestling.report.comparison import Difference, System, compare, summarise
from nestling.report.examples import Example, find_examples
from nestling.report.histograms import Histogram, histograms
from nestling.report.results import METRIC, Result
from nestling.retrieval.metrics import Floats

# Bits of one value of a vector.
BITS = {"float32": 32, "int8": 8, "binary": 1}


@dataclass(frozen=True)
class TableRow:
    """A row of the results table of a set.

    Args:
        system: The system that was measured.
        baseline: Whether it is the baseline.
        differences: Differences from the baseline by metric; None for the baseline, and where there is no baseline.
    """

    system: System
    baseline: bool
    differences: Mapping[str, Difference] | None


@dataclass(frozen=True)
class DimensionRow:
    """A row of the table of nDCG@10 by dimension and embedding precision.

    Args:
        dim: Dimension of the vectors.
        embedding_precision: Precision of their values.
        size: Bytes of a vector.
        values: nDCG@10 of each result; None where it was not measured.
    """

    dim: int
    embedding_precision: str
    size: int
    values: Sequence[float | None]


@dataclass(frozen=True)
class SetView:
    """All that is shown of a retrieval set.

    Args:
        data: Name of the set.
        queries: Number of its queries.
        summary: Sentences for the top of the page.
        metrics: Columns of the results table.
        table: Rows of the results table, one for each system.
        dimensions: Rows of the table of dimensions and embedding precisions; empty if only one was measured.
        dimension_results: Columns of that table: names of the results with embeddings.
        charts: nDCG@10 over dimensions, and over bytes of a vector.
        score_histograms: For the baseline and the last result, the name and histograms of scores.
        examples: Queries by title of their list.
    """

    data: str
    queries: int
    summary: Sequence[str]
    metrics: Sequence[str]
    table: Sequence[TableRow]
    dimensions: Sequence[DimensionRow]
    dimension_results: Sequence[str]
    charts: Sequence[Chart]
    score_histograms: Sequence[tuple[str, Sequence[Histogram]]]
    examples: Mapping[str, Sequence[Example]]


def choose_baseline(results: Sequence[Result], name: str | None) -> Result:
    """The result that others are compared with: the one with this name, by default the first of a model, or the first.

    BM25 and runs are no baseline by default, unless there are no others.
    """
    if name is not None:
        return next(each for each in results if each.name == name)
    return next((each for each in results if each.config.get("model") is not None), results[0])


def view_set(data: str, results: Sequence[Result], baseline: Result, served: System | None = None) -> SetView:
    """Compare every result on a set with the baseline.

    Args:
        data: Name of the set.
        results: The results.
        baseline: One of them.
        served: What the summary and the examples are about; by default the last result.

    Raises:
        ValueError: The results were measured on different queries.
    """
    measured = [each for each in results if each.main_keys(data)]
    systems = [System(each, key) for each in measured for key in each.main_keys(data)]
    after = served or System(measured[-1], measured[-1].main_key(data))
    reference = next((each for each in systems if each.result.name == baseline.name), None)
    before = None if reference is None or reference.is_same(after) else reference
    table = [table_row(reference, each) for each in systems]
    dimensions = dimension_rows(data, measured)
    return SetView(
        data=data,
        queries=after.result.query_counts[after.key],
        summary=[] if before is None else summary_lines(before, after, table),
        metrics=list(dict.fromkeys(name for each in systems for name in each.metrics)),
        table=table,
        dimensions=dimensions,
        dimension_results=[each.name for each in with_embeddings(data, measured)],
        charts=dimension_charts(data, measured) if dimensions else [],
        score_histograms=score_histograms([each for each in (before, after) if each is not None]),
        examples=find_examples(before, after),
    )


def table_row(reference: System | None, system: System) -> TableRow:
    """The table row of a system; `reference` is the baseline, None if it was not measured on the set."""
    if reference is None or reference.is_same(system):
        return TableRow(system, reference is not None, None)
    return TableRow(system, False, {each.metric: each for each in compare(reference, system)})


def summary_lines(before: System, after: System, table: Sequence[TableRow]) -> list[str]:
    """The change of nDCG@10 in a sentence; and a second one if another result is higher than the last."""
    differences = [
        (row.system, row.differences[METRIC])
        for row in table
        if row.differences is not None and METRIC in row.differences
    ]
    lines = [summarise(before, system, difference) for system, difference in differences if system.is_same(after)]
    best, highest = max(differences, key=lambda each: each[1].after, default=(after, None))
    if highest is not None and highest.after > max(after.metrics[METRIC], highest.before):
        lines.append(f"highest: {summarise(before, best, highest)}")
    return lines


def with_embeddings(data: str, results: Sequence[Result]) -> list[Result]:
    """The results that have embeddings of this set, that is a dimension."""
    return [each for each in results if any(key.data == data and key.dim is not None for key in each.metrics)]


def dimension_rows(data: str, results: Sequence[Result]) -> list[DimensionRow]:
    """A row for every dimension and precision that was measured, largest vectors first; empty if it is only one."""
    columns = with_embeddings(data, results)
    keys = dict.fromkeys(key for each in columns for key in each.metrics if key.data == data and key.dim is not None)
    rows = [
        DimensionRow(
            key.dim,
            key.embedding_precision,
            vector_bytes(key.dim, key.embedding_precision),
            [each.metrics.get(key, {}).get(METRIC) for each in columns],
        )
        for key in keys
        if key.dim is not None and key.embedding_precision is not None
    ]
    return sorted(rows, key=lambda row: -row.size) if len(rows) > 1 else []


def vector_bytes(dim: int, embedding_precision: str) -> int:
    """Bytes that a vector store needs for a vector, without its index."""
    return -(-dim * BITS[embedding_precision] // 8)


def dimension_charts(data: str, results: Sequence[Result]) -> list[Chart]:
    """nDCG@10 over dimensions, at each result's first precision, and over bytes of a vector, at all precisions.

    Results without a dimension, as of BM25, are horizontal lines of the first chart. A result has one colour in both.
    """
    by_dim: dict[str, Points] = {}
    by_size: dict[str, Points] = {}
    levels: dict[str, float] = {}
    styles: dict[str, tuple[int, int]] = {}
    for number, result in enumerate(results):
        colour = number % COLOURS
        styles[result.name] = (colour, 0)
        level = score_without_dimension(data, result)
        if level is not None:
            levels[result.name] = level
        for dash, (embedding_precision, points) in enumerate(scores_by_precision(data, result).items()):
            if dash == 0:
                by_dim[result.name] = points
            name = f"{result.name}, {embedding_precision}"
            by_size[name] = [(vector_bytes(dim, embedding_precision), value) for dim, value in points]
            styles[name] = (colour, dash)
    chart = partial(line_chart, log_x=True, styles=styles, least_span=LEAST_SPAN)
    charts = [
        chart("nDCG@10 by dimension", by_dim, x_label="dimensions", levels=levels),
        chart("nDCG@10 by size", by_size, x_label="bytes a vector"),
    ]
    return [chart for chart in charts if chart is not None]


def score_without_dimension(data: str, result: Result) -> float | None:
    """nDCG@10 of a result that has neither embeddings nor a reranker."""
    return next(
        (
            metrics[METRIC]
            for key, metrics in result.metrics.items()
            if (key.data, key.dim, key.order) == (data, None, None) and METRIC in metrics
        ),
        None,
    )


def scores_by_precision(data: str, result: Result) -> dict[str, list[tuple[int, float]]]:
    """For each embedding precision (dimension, nDCG@10), by ascending dimension."""
    points: dict[str, list[tuple[int, float]]] = {}
    for key, metrics in result.metrics.items():
        if key.data == data and key.embedding_precision is not None and METRIC in metrics:
            points.setdefault(key.embedding_precision, []).append((key.dim or 0, metrics[METRIC]))
    return {embedding_precision: sorted(each) for embedding_precision, each in points.items()}


def score_histograms(systems: Sequence[System]) -> list[tuple[str, list[Histogram]]]:
    """For each system with details, histograms of the scores of relevant and of other documents.

    If all systems are embedders, whose scores are comparable, all histograms have one range.
    """
    of_systems = {each.name: scores_of(each) for each in systems if each.per_query is not None}
    scores = {name: kinds for name, kinds in of_systems.items() if kinds}
    if not all(each.key.dim is not None for each in systems):
        return [(name, histograms(kinds)) for name, kinds in scores.items()]
    flat = {f"{name}, {kind}": values for name, kinds in scores.items() for kind, values in kinds.items()}
    in_order = iter(histograms(flat) if flat else [])
    return [(name, [replace(next(in_order), name=kind) for kind in kinds]) for name, kinds in scores.items()]


def scores_of(system: System) -> dict[str, Floats]:
    """Scores over all queries, of relevant documents that were retrieved and of the sampled other ones."""
    relevant: list[float] = []
    others: list[float] = []
    for line in system.result.detail_lines(system.key):
        relevant += [each["score"] for each in line["judged"] if each["score"] is not None]
        others += line["others"]
    scores = {"relevant": relevant, "others": others}
    return {name: np.array(values, dtype=np.float64) for name, values in scores.items() if values}
