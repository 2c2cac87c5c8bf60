"""Example queries: those whose metric changed most or is lowest, with the documents that were retrieved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nestling.report.comparison import ROUNDING, System
from nestling.report.results import METRIC
from nestling.retrieval.metrics import Floats

# Example queries of each kind; documents of each query: the top ones, and relevant ones below them.
EXAMPLES, DOCUMENTS = 8, 5


@dataclass(frozen=True)
class Hits:
    """What a system retrieved for a query.

    Args:
        name: Name of the system.
        metric: nDCG@10 of the query.
        top: The first documents, as in the details file.
        relevant_below: Relevant documents that are not among them, by rank.
    """

    name: str
    metric: float
    top: Sequence[Mapping[str, Any]]
    relevant_below: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Example:
    """A query, and what each system retrieved for it, the baseline first."""

    query: str
    systems: Sequence[Hits]


@dataclass(frozen=True)
class ChangedQueries:
    """Indices of the queries to show as examples; no query is in two of the lists.

    Args:
        lost: Queries whose metric fell most, the largest loss first.
        gained: Queries whose metric rose most, the largest gain first.
        worst: Of the other queries those with the lowest metric after, the lowest first.
    """

    lost: Sequence[int]
    gained: Sequence[int]
    worst: Sequence[int]


def find_examples(before: System | None, after: System) -> dict[str, list[Example]]:
    """The queries that lost most, are still worst, and gained most, by title; empty without details."""
    queries_after = after.per_query
    queries_before = before.per_query if before is not None else None
    if queries_after is None:
        return {}
    changed = find_changed_queries(
        None if queries_before is None else queries_before.metrics[METRIC],
        queries_after.metrics[METRIC],
        queries_after.metrics.get("MAP@100", queries_after.metrics[METRIC]),
        EXAMPLES,
    )
    shown = [each for each in (before, after) if each is not None and each.per_query is not None]
    lists = {
        f"Lost most {METRIC}": changed.lost,
        "Still worst" if queries_before is not None else "Worst": changed.worst,
        f"Gained most {METRIC}": changed.gained,
    }
    return {title: read_examples(shown, queries) for title, queries in lists.items() if queries}


def read_examples(systems: Sequence[System], queries: Sequence[int]) -> list[Example]:
    """Read what each system retrieved for the queries with these indices."""
    lines = [list(system.result.detail_lines(system.key, queries)) for system in systems]
    return [
        Example(of_query[-1]["query"], [read_hits(*each) for each in zip(systems, of_query, strict=True)])
        for of_query in zip(*lines, strict=True)
    ]


def read_hits(system: System, line: Mapping[str, Any]) -> Hits:
    """What a line of the details file says that the system retrieved."""
    top = line["first"][:DOCUMENTS]
    names = {each["id"] for each in top}
    below = sorted(
        (each for each in line["judged"] if each["id"] not in names),
        key=lambda each: float("inf") if each["rank"] is None else each["rank"],
    )
    return Hits(system.name, line["metrics"][METRIC], top, below[:DOCUMENTS])


def find_changed_queries(before: Floats | None, after: Floats, tie_breaker: Floats, count: int) -> ChangedQueries:
    """Select up to `count` queries of each kind.

    Args:
        before: [Q] float64, metric of each query in the baseline; None if there is no baseline.
        after: [Q] float64, the same metric in the system that is compared with it.
        tie_breaker: [Q] float64, another metric, which orders queries with the same value after.
        count: Queries of each kind.
    """
    change = np.zeros_like(after) if before is None else after - before
    by_change, by_metric = np.argsort(change, kind="stable"), np.lexsort((tie_breaker, after))
    lost = [query for query in by_change[:count].tolist() if change[query] < -ROUNDING]
    gained = [query for query in by_change[::-1][:count].tolist() if change[query] > ROUNDING]
    taken = {*lost, *gained}
    worst = [query for query in by_metric.tolist() if query not in taken and after[query] < 1][:count]
    return ChangedQueries(lost, gained, worst)
