"""What the page shows of one retrieval set: the table, curves over dimensions, scores, and queries that moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nestling.report.charts import COLOURS, Chart, Points, line_chart
from nestling.report.comparison import Difference, System, compare, find_moves, summary_of
from nestling.report.histograms import Series, histograms
from nestling.report.results import METRIC, Result
from nestling.retrieval.metrics import Floats

# Queries of each kind, and documents of each, that are shown.
CASES, SHOWN = 8, 5
BITS = {"float32": 32, "int8": 8, "binary": 1}


@dataclass(frozen=True)
class TableRow:
    """A system in the table of a set.

    Args:
        system: Which.
        baseline: Whether it is what others are compared with.
        differences: From the baseline, by metric; None for the baseline itself, and where there is none.
    """

    system: System
    baseline: bool
    differences: Mapping[str, Difference] | None


@dataclass(frozen=True)
class DimensionRow:
    """nDCG@10 at a dimension and embedding precision.

    Args:
        dim: Values of a vector.
        embedding_precision: How they are kept.
        size: Bytes of a vector.
        values: By result; None where one was not measured.
    """

    dim: int
    embedding_precision: str
    size: int
    values: Sequence[float | None]


@dataclass(frozen=True)
class Side:
    """What a system gave a query: the system's name, the metric, the first documents, and relevant ones below them."""

    name: str
    metric: float
    first: Sequence[Mapping[str, Any]]
    below: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Case:
    """A query with what was retrieved before and after."""

    query: str
    sides: Sequence[Side]


@dataclass(frozen=True)
class SetView:
    """All that is shown of a set.

    Args:
        data: Its name.
        queries: How many.
        summary: The result in words.
        metrics: Columns of the table.
        table: A row for each system.
        dimensions: A row for each dimension and embedding precision; empty if there is one only.
        names: Columns of that.
        charts: nDCG@10 over dimensions and bytes.
        scores: Histograms of each system before and after, with its name.
        cases: Queries by title of their list.
    """

    data: str
    queries: int
    summary: Sequence[str]
    metrics: Sequence[str]
    table: Sequence[TableRow]
    dimensions: Sequence[DimensionRow]
    names: Sequence[str]
    charts: Sequence[Chart]
    scores: Sequence[tuple[str, Sequence[Series]]]
    cases: Mapping[str, Sequence[Case]]


def choose_baseline(results: Sequence[Result], name: str | None) -> Result:
    """The result that others are compared with: that of the name, else the first of a model, else the first."""
    if name is not None:
        return next(each for each in results if each.name == name)
    return next((each for each in results if each.config.get("model") is not None), results[0])


def view_set(data: str, results: Sequence[Result], baseline: Result) -> SetView:
    """Compare every result on a set with the baseline.

    Raises:
        ValueError: They were measured on different queries.
    """
    measured = [each for each in results if each.orders(data)]
    systems = [System(each, key) for each in measured for key in each.orders(data)]
    after = next(each for each in reversed(systems) if each.key == measured[-1].after(data))
    reference = next((each for each in systems if each.result.name == baseline.name), None)
    before = None if reference is None or reference.same(after) else reference
    table = [table_row(reference, each) for each in systems]
    dimensions = dimension_rows(data, measured)
    return SetView(
        data=data,
        queries=after.result.queries[after.key],
        summary=[] if before is None else summaries(before, after, table),
        metrics=list(dict.fromkeys(name for each in systems for name in each.metrics)),
        table=table,
        dimensions=dimensions,
        names=[each.name for each in with_vectors(data, measured)],
        charts=dimension_charts(data, measured) if dimensions else [],
        scores=score_histograms([each for each in (before, after) if each is not None]),
        cases=find_cases(before, after),
    )


def table_row(reference: System | None, system: System) -> TableRow:
    """A system beside the reference; None if that was not measured on the set."""
    if reference is None or reference.same(system):
        return TableRow(system, reference is not None, None)
    return TableRow(system, False, {each.metric: each for each in compare(reference, system)})


def summaries(before: System, after: System, table: Sequence[TableRow]) -> list[str]:
    """What changed, in words; and what is better than the last result, lest that be taken for the best."""
    compared = [
        (row.system, found) for row in table for name, found in (row.differences or {}).items() if name == METRIC
    ]
    lines = [summary_of(before, system, found) for system, found in compared if system.same(after)]
    best, highest = max(compared, key=lambda each: each[1].after, default=(after, None))
    if highest is not None and highest.after > max(after.metrics[METRIC], highest.before):
        lines.append(f"highest: {summary_of(before, best, highest)}")
    return lines


def with_vectors(data: str, results: Sequence[Result]) -> list[Result]:
    """Those that were measured at dimensions of their own."""
    return [each for each in results if any(key.data == data and key.dim is not None for key in each.rows)]


def dimension_rows(data: str, results: Sequence[Result]) -> list[DimensionRow]:
    """Every dimension and embedding precision that was measured; nothing if it was one."""
    vectors = with_vectors(data, results)
    keys = dict.fromkeys(key for each in vectors for key in each.rows if key.data == data and key.dim is not None)
    rows = [
        DimensionRow(
            key.dim,
            key.embedding_precision,
            vector_bytes(key.dim, key.embedding_precision),
            [each.rows.get(key, {}).get(METRIC) for each in vectors],
        )
        for key in keys
        if key.dim is not None and key.embedding_precision is not None
    ]
    return sorted(rows, key=lambda row: -row.size) if len(rows) > 1 else []


def vector_bytes(dim: int, embedding_precision: str) -> int:
    """What a store keeps of a vector, without its index."""
    return -(-dim * BITS[embedding_precision] // 8)


def dimension_charts(data: str, results: Sequence[Result]) -> list[Chart]:
    """nDCG@10 over dimensions (the first precision; what has none as a level), and over bytes (all precisions)."""
    by_dim: dict[str, Points] = {}
    by_size: dict[str, Points] = {}
    levels: dict[str, float] = {}
    styles: dict[str, tuple[int, int]] = {}
    for number, each in enumerate(results):
        colour = number % COLOURS
        styles[each.name] = (colour, 0)
        found = {key: metrics[METRIC] for key, metrics in each.rows.items() if key.data == data and METRIC in metrics}
        for key, value in found.items():
            if key.dim is None and key.order is None:
                levels[each.name] = value
        for dash, embedding_precision in enumerate(
            dict.fromkeys(key.embedding_precision for key in found if key.embedding_precision is not None)
        ):
            points = sorted(
                (key.dim or 0, value) for key, value in found.items() if key.embedding_precision == embedding_precision
            )
            if dash == 0:
                by_dim[each.name] = points
            name = f"{each.name}, {embedding_precision}"
            by_size[name] = [(vector_bytes(dim, embedding_precision), value) for dim, value in points]
            styles[name] = (colour, dash)
    charts = [
        line_chart("nDCG@10 by dimension", by_dim, x_label="dimensions", log_x=True, levels=levels, styles=styles),
        line_chart("nDCG@10 by size", by_size, x_label="bytes a vector", log_x=True, styles=styles),
    ]
    return [chart for chart in charts if chart is not None]


def score_histograms(systems: Sequence[System]) -> list[tuple[str, list[Series]]]:
    """Scores of relevant and of other documents of each system with details; embedders share their range."""
    scores = {each.name: scores_of(each) for each in systems if each.per_query is not None}
    if not all(each.key.dim is not None for each in systems):
        return [(name, histograms(kinds)) for name, kinds in scores.items()]
    flat = {f"{name}, {kind}": values for name, kinds in scores.items() for kind, values in kinds.items()}
    drawn = iter(histograms(flat) if flat else [])
    return [(name, [replace(next(drawn), name=kind) for kind in kinds]) for name, kinds in scores.items()]


def scores_of(system: System) -> dict[str, Floats]:
    relevant: list[float] = []
    others: list[float] = []
    for line in system.result.lines(system.key):
        relevant += [each["score"] for each in line["judged"] if each["score"] is not None]
        others += line["others"]
    return {"relevant": np.array(relevant, dtype=np.float64), "others": np.array(others, dtype=np.float64)}


def find_cases(before: System | None, after: System) -> dict[str, list[Case]]:
    """Queries that lost most, gained most, and are worst still, with what was retrieved."""
    other = after.per_query
    one = before.per_query if before is not None else None
    if other is None:
        return {}
    moves = find_moves(
        None if one is None else one.metrics[METRIC],
        other.metrics[METRIC],
        other.metrics.get("MAP@100", other.metrics[METRIC]),
        CASES,
    )
    shown = [each for each in (before, after) if each is not None and each.per_query is not None]
    lists = {
        f"Lost most {METRIC}": moves.lost,
        "Still worst" if one is not None else "Worst": moves.worst,
        f"Gained most {METRIC}": moves.gained,
    }
    return {title: cases_of(shown, places) for title, places in lists.items() if places}


def cases_of(systems: Sequence[System], places: Sequence[int]) -> list[Case]:
    sides = [[side_of(system, line) for line in system.result.lines(system.key, places)] for system in systems]
    lines = systems[-1].result.lines(systems[-1].key, places)
    return [Case(line["query"], each) for line, each in zip(lines, zip(*sides, strict=True), strict=True)]


def side_of(system: System, line: Mapping[str, Any]) -> Side:
    first = line["first"][:SHOWN]
    names = {each["id"] for each in first}
    below = sorted(
        (each for each in line["judged"] if each["id"] not in names),
        key=lambda each: float("inf") if each["rank"] is None else each["rank"],
    )
    return Side(system.name, line["metrics"][METRIC], first, below[:SHOWN])
