"""Results beside a baseline: differences with their intervals, and the queries that moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nestling.config import require
from nestling.report.results import Key, PerQuery, Result, describe
from nestling.retrieval.metrics import Floats
from nestling.retrieval.significance import bootstrap_interval, randomisation_p


@dataclass(frozen=True)
class System:
    """A row of a result, with the name that it bears in tables.

    Args:
        result: The file.
        key: The row.
    """

    result: Result
    key: Key

    @property
    def name(self) -> str:
        return self.result.name if self.key.order is None else f"{self.result.name}, {self.key.order}"

    def same(self, other: "System") -> bool:
        """Whether both are the same row of the same result."""
        return (self.result.name, self.key) == (other.result.name, other.key)

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.result.rows[self.key]

    @property
    def per_query(self) -> PerQuery | None:
        return self.result.per_query.get(self.key)


@dataclass(frozen=True)
class Difference:
    """A metric of a system beside that of the baseline, over the same queries.

    Args:
        metric: Its name.
        before: Mean of the baseline.
        after: Mean of the system.
        low: Lower end of the 95% interval of the difference; None where single queries are not known.
        high: Upper end.
        p: Of the difference being chance, two-sided.
        better: Queries with a higher value.
        same: With the same.
        worse: With a lower one.
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
    """Every metric of two systems, tested where both have details.

    Raises:
        ValueError: They were measured on different queries.
    """
    names = [name for name in after.metrics if name in before.metrics]
    one, other = before.per_query, after.per_query
    if one is None or other is None:
        return [Difference(name, before.metrics[name], after.metrics[name]) for name in names]
    require_same_queries(before, after, one, other)
    differences = np.stack([other.metrics[name] - one.metrics[name] for name in names], axis=1)  # [Q, M]
    low, high = bootstrap_interval(differences)
    p = randomisation_p(differences)
    tested = zip(names, low.tolist(), high.tolist(), p.tolist(), differences.T, strict=True)
    return [
        Difference(name, before.metrics[name], after.metrics[name], lower, upper, chance, *count_moves(column))
        for name, lower, upper, chance, column in tested
    ]


def require_same_queries(before: System, after: System, one: PerQuery, other: PerQuery) -> None:
    require(
        list(one.ids) == list(other.ids),
        f"{before.result.details} and {after.result.details} are not about the same queries of {after.key.data}; "
        "evaluate both on the same data",
    )


def count_moves(differences: Floats) -> tuple[int, int, int]:
    """How many are above, at and below 0; less than the rounding of sums is no difference."""
    better, worse = int((differences > 1e-12).sum()), int((differences < -1e-12).sum())
    return better, len(differences) - better - worse, worse


@dataclass(frozen=True)
class Moves:
    """Queries by what became of them, as places in the details; no query is in two of the lists.

    Args:
        lost: Those whose metric fell most, most first.
        gained: Those whose metric rose most, most first.
        worst: Of the rest those with the lowest metric after.
    """

    lost: Sequence[int]
    gained: Sequence[int]
    worst: Sequence[int]


def find_moves(before: Floats | None, after: Floats, ties: Floats, count: int) -> Moves:
    """`count` queries of each kind.

    Args:
        before: [Q], their metric; None if there is nothing to compare with.
        after: [Q], likewise.
        ties: [Q], another metric, which orders those with the same one after.
        count: Of each kind at the most.
    """
    change = np.zeros_like(after) if before is None else after - before
    falling, lowest = np.argsort(change, kind="stable"), np.lexsort((ties, after))
    lost = [place for place in falling[:count].tolist() if change[place] < -1e-12]
    gained = [place for place in falling[::-1][:count].tolist() if change[place] > 1e-12]
    taken = {*lost, *gained}
    worst = [place for place in lowest.tolist() if place not in taken and after[place] < 1][:count]
    return Moves(lost, gained, worst)


def summary_of(before: System, after: System, difference: Difference) -> str:
    """A difference in a sentence."""
    text = (
        f"{after.key.data}: {difference.metric} {figure(difference.before)} → {figure(difference.after)}, "
        f"{signed(difference.change)}"
    )
    if difference.low is not None and difference.high is not None and difference.p is not None:
        text += (
            f" [{signed(difference.low)}, {signed(difference.high)}], p {p_value(difference.p)}; "
            f"better on {difference.better:,} queries, the same on {difference.same:,}, worse on {difference.worse:,}"
        )
    kind = describe(after.key._replace(data="", order=None))
    return f"{text} ({after.name} against {before.name}{kind and ', '}{kind})"


def figure(value: float) -> str:
    """A share of 1 with three digits and no zero before the point."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 0.9995 else f"{value:.3f}"


def signed(value: float) -> str:
    """A difference likewise, with its sign; a true minus lines up with plus."""
    return ("−" if value < 0 else "+") + figure(abs(value))


def p_value(p: float) -> str:
    """As papers write it."""
    return "< .001" if p < 0.001 else f"= {figure(p)}"
