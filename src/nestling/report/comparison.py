"""Comparison of results with a baseline: differences of metrics and their significance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nestling.config import require
from nestling.report.results import PerQuery, Result, ResultKey, describe
from nestling.retrieval.metrics import Floats
from nestling.retrieval.significance import bootstrap_interval, randomisation_p, sums_of_groups

# Differences of a metric up to this are rounding errors of sums.
ROUNDING = 1e-12


@dataclass(frozen=True)
class System:
    """What was measured on one set: a row of the results table of a result file.

    Args:
        result: The result file.
        key: Which row of its table.
    """

    result: Result
    key: ResultKey

    @property
    def name(self) -> str:
        """The name shown in tables: that of the result, and for a reranker the order too."""
        return self.result.name if self.key.order is None else f"{self.result.name}, {self.key.order}"

    def is_same(self, other: "System") -> bool:
        """Whether both are the same table row of the same result."""
        return (self.result.name, self.key) == (other.result.name, other.key)

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.result.metrics[self.key]

    @property
    def per_query(self) -> PerQuery | None:
        return self.result.per_query.get(self.key)


@dataclass(frozen=True)
class Difference:
    """One metric of a system and of the baseline, over the same queries.

    Args:
        metric: Name of the metric.
        before: Mean of the baseline.
        after: Mean of the system.
        low: Lower end of the 95% bootstrap interval of the difference; None if a result has no details.
        high: Upper end of it.
        p: Two-sided p value of the randomisation test.
        better: Number of queries with a higher value than the baseline.
        same: Number of queries with the same value.
        worse: Number of queries with a lower value.
    """

    metric: str
    before: float
    after: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    better: int = 0
    same: int = 0
    worse: int = 0

    @property
    def change(self) -> float:
        return self.after - self.before


def compare(before: System, after: System) -> list[Difference]:
    """Compare every common metric of two systems; significance is tested only if both have details.

    Raises:
        ValueError: The systems were measured on different queries.
    """
    names = [name for name in after.metrics if name in before.metrics]
    queries_before, queries_after = before.per_query, after.per_query
    if queries_before is None or queries_after is None:
        return [Difference(name, before.metrics[name], after.metrics[name]) for name in names]
    require_same_queries(before, after, queries_before, queries_after)
    columns = [queries_after.metrics[name] - queries_before.metrics[name] for name in names]
    differences = np.stack(columns, axis=1)  # [Q, M]
    groups = groups_of(queries_before, queries_after)
    low, high = bootstrap_interval(differences, groups)
    p = randomisation_p(sums_of_groups(differences, groups))
    tested = zip(names, low.tolist(), high.tolist(), p.tolist(), columns, strict=True)
    return [
        Difference(name, before.metrics[name], after.metrics[name], lower, upper, p_value, *count_changes(column))
        for name, lower, upper, p_value, column in tested
    ]


def groups_of(before: PerQuery, after: PerQuery) -> Sequence[str] | None:
    """The groups of the queries, which results of an earlier release lack."""
    return after.groups or before.groups


def require_same_queries(before: System, after: System, queries_before: PerQuery, queries_after: PerQuery) -> None:
    require(
        list(queries_before.ids) == list(queries_after.ids),
        f"{before.result.details} and {after.result.details} are not about the same queries of {after.key.data}; "
        "evaluate both on the same data",
    )


def count_changes(differences: Floats) -> tuple[int, int, int]:
    """How many of the [Q] differences are positive, zero and negative; below `ROUNDING` they count as zero."""
    better, worse = int((differences > ROUNDING).sum()), int((differences < -ROUNDING).sum())
    return better, len(differences) - better - worse, worse


def summarise(before: System, after: System, difference: Difference) -> str:
    """A difference in one sentence."""
    text = (
        f"{after.key.data}: {difference.metric} {format_score(difference.before)} → {format_score(difference.after)}, "
        f"{format_change(difference.change)}"
    )
    if difference.low is not None and difference.high is not None and difference.p is not None:
        text += (
            f" [{format_change(difference.low)}, {format_change(difference.high)}], p {format_p_value(difference.p)}; "
            f"better on {difference.better:,} queries, the same on {difference.same:,}, worse on {difference.worse:,}"
        )
    kind = describe(after.key._replace(data="", order=None))
    return f"{text} ({after.name} against {before.name}{kind and ', '}{kind})"


def format_score(value: float) -> str:
    """A metric between 0 and 1 with three digits and no zero before the point: .481."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 0.9995 else f"{value:.3f}"


def format_change(value: float) -> str:
    """A difference of metrics with its sign: +.165; the Unicode minus sign is as wide as the plus."""
    return ("−" if value < 0 else "+") + format_score(abs(value))


def format_p_value(p: float) -> str:
    """A p value as papers write it: < .001, = .032."""
    return "< .001" if p < 0.001 else f"= {format_score(p)}"
