"""Which candidates become hard negatives: rules over flat arrays, each a pure function, and the first that hits counts.

s(n) is a candidate's score and s(p) the lowest score of its query's positives, by one retriever or the judge.
Definitions: NV-Retriever, arXiv 2407.15831, made safe for negative scores.

Shapes: Q queries, C candidates of all queries together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nestling.mining.lists import Lists, Mask, expand, places_in_lists
from nestling.mining.retrieved import Scores
from nestling.retrieval.metrics import Integers

Sampling = Literal["top", "random"]
Similarities = Callable[[Integers, Integers], Scores]


@dataclass(frozen=True)
class Thresholds:
    """What keeps a candidate that scores too high from being a negative; None switches a rule off.

    Args:
        max_score: Keep n only if s(n) <= max_score.
        absolute_margin: Keep n only if s(n) < s(p) - absolute_margin.
        percent: Keep n only if s(n) < s(p) - |s(p)| (1 - percent), which is percent * s(p) where s(p) > 0.
    """

    max_score: float | None = None
    absolute_margin: float | None = None
    percent: float | None = None

    def __str__(self) -> str:
        given = [f"{name} {value:g}" for name, value in vars(self).items() if value is not None]
        return ", ".join(given) or "none"


class Verdicts:
    """What became of C candidates: the first rule that dropped each. Rules are applied in the order of the calls.

    Attributes:
        reasons: The rules so far, in order.
        verdict: [C] int16, index of the rule that dropped a candidate; -1 for those left.
    """

    def __init__(self, count: int) -> None:
        self.reasons: list[str] = []
        self.verdict = np.full(count, -1, np.int16)

    @property
    def left(self) -> Mask:
        """[C] bool: not dropped so far."""
        return self.verdict < 0

    def drop(self, reason: str, hit: Mask) -> None:
        """Drop those that a rule hits and no rule before it did."""
        self.verdict[self.left & hit] = len(self.reasons)
        self.reasons.append(reason)

    def copy(self) -> "Verdicts":
        """The same, to go on from in two ways."""
        other = Verdicts(0)
        other.reasons, other.verdict = list(self.reasons), self.verdict.copy()
        return other

    def counts(self) -> dict[str, int]:
        """How many each rule dropped."""
        counts = np.bincount(self.verdict[~self.left], minlength=len(self.reasons))
        return dict(zip(self.reasons, counts.tolist(), strict=True))


def repeats(queries: Integers, kinds: Integers) -> Mask:
    """[C] bool: whether an earlier candidate of the query is of the same kind. Both arguments are [C] int64."""
    _, first = np.unique(np.stack([queries, kinds]), axis=1, return_index=True)
    again = np.ones(len(queries), dtype=bool)
    again[first] = False
    return again


def outside(ranks: NDArray[np.int32], first: int, last: int | None) -> Mask:
    """[C] bool: whether a rank is outside first..last."""
    return (ranks < first) | (ranks > (np.iinfo(np.int32).max if last is None else last))


def lowest_positive(scores: Scores, positives: Lists) -> Scores:
    """[Q] float32: the lowest score of each query's positives; NaN where there is none.

    Args:
        scores: Of the positives of all queries, in the order of the lists; NaN where it is not known.
        positives: The positives of each query.
    """
    lowest = np.full(len(positives), np.inf, np.float32)
    known = ~np.isnan(scores)
    np.minimum.at(lowest, positives.owners[known], scores[known])
    return np.where(np.isinf(lowest), np.float32(np.nan), lowest)


def too_high(scores: Scores, positive: Scores, thresholds: Thresholds) -> Iterator[tuple[str, Mask]]:
    """For each threshold that is set its name and whom it hits, [C] bool.

    A candidate without a score passes: its scorer found others above it. One without a score to compare it with fails.

    Args:
        scores: [C] float32, s(n).
        positive: [C] float32, s(p) of each candidate's query.
        thresholds: The rules.
    """
    if thresholds.max_score is not None:
        yield f"scores above {thresholds.max_score:g}", scores > thresholds.max_score
    bounds = {}
    if thresholds.absolute_margin is not None:
        bounds[f"within {thresholds.absolute_margin:g} of the positive's score"] = positive - thresholds.absolute_margin
    if thresholds.percent is not None:
        name = f"scores {thresholds.percent:.0%} of the positive or more"
        bounds[name] = positive - np.abs(positive) * (1 - thresholds.percent)
    if bounds:
        yield "no score of a positive to compare with", np.isnan(positive)
    for name, bound in bounds.items():
        yield name, scores >= bound


def closest(rows: Integers, queries: Integers, positives: Lists, similarities: Similarities) -> Scores:
    """[C] float32: the highest similarity of each candidate with a positive of its query; -inf without positives.

    Args:
        rows: [C] int64, documents of the pool.
        queries: [C] int64, whose candidates they are.
        positives: Documents of the pool that are positives of each query.
        similarities: Similarities of pairs of documents.
    """
    which, others = expand(queries, positives)
    highest = np.full(len(rows), -np.inf, np.float32)
    np.maximum.at(highest, which, similarities(rows[which], others))
    return highest


def strongest(queries: Integers, scores: Scores) -> Integers:
    """[C] int64, positions of candidates: query after query, the highest score first and unknown ones last."""
    return np.lexsort((-np.nan_to_num(scores, nan=-np.inf), queries))


def draw(
    candidates: Lists,
    scores: Scores,
    left: Mask,
    count: int,
    *,
    noise: NDArray[np.uint64] | None = None,
    among: int | None = None,
) -> Lists:
    """At most `count` candidates of each query, as positions in C, those that score highest first.

    Args:
        candidates: Those of each query.
        scores: [C] float32; equal and unknown scores keep their order.
        left: [C] bool, those to draw from.
        count: How many of a query.
        noise: [C]; with it the candidates with the smallest noise are drawn, without it those that score highest.
        among: Draw among so many of a query that score highest; all by default.
    """
    queries, total = candidates.owners, len(candidates)
    order = strongest(queries, scores)
    order = order[left[order]]
    if noise is not None:
        if among is not None:
            order = order[places_in_lists(queries[order], total) < among]
        drawn = np.lexsort((noise[order], queries[order]))
        drawn = drawn[places_in_lists(queries[order[drawn]], total) < count]
        order = order[np.sort(drawn)]
    else:
        order = order[places_in_lists(queries[order], total) < count]
    return Lists.grouped(queries[order], order, total)


def make_noise(seed: int, query_ids: Integers, document_ids: Integers) -> NDArray[np.uint64]:
    """[C] uint64 that depends on the seed and on what a query and a document say, whatever else is mined.

    Args:
        seed: Of the run.
        query_ids: [C] int64, `text_id` of each candidate's query.
        document_ids: [C] int64, `text_id` of each candidate.
    """
    seeded = mix(np.full(len(query_ids), seed, np.uint64))
    return mix(mix(seeded ^ query_ids.astype(np.uint64)) ^ document_ids.astype(np.uint64))


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
