"""Selection of hard negatives from candidates: filters and sampling, as pure functions of flat arrays.

s(n) is a candidate's score and s(p) the lowest score of its query's positives, both by the same retriever or judge.
The thresholds are those of NV-Retriever (arXiv 2407.15831), defined so that they also hold for negative scores.

Shapes: Q queries, C candidates of all queries together, query after query.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nestling.mining.lists import Lists, Mask, expand, positions_in_lists
from nestling.mining.retrieved import Scores
from nestling.retrieval.metrics import Integers

Sampling = Literal["top", "random"]
Similarities = Callable[[Integers, Integers], Scores]


@dataclass(frozen=True)
class Thresholds:
    """Score thresholds above which a candidate is dropped as a likely false negative; None: no such threshold.

    Args:
        max_score: Keep n only if s(n) <= max_score.
        absolute_margin: Keep n only if s(n) < s(p) - absolute_margin.
        max_score_ratio: Keep n only if s(n) < s(p) - |s(p)| (1 - max_score_ratio); for s(p) > 0 the right side is
            max_score_ratio * s(p).
    """

    max_score: float | None = None
    absolute_margin: float | None = None
    max_score_ratio: float | None = None


class CandidateFilter:
    """Which of C candidates were dropped, and by which rule: the first that applies to a candidate counts.

    Attributes:
        rules: The rules applied so far, in order, as text for people.
        dropped_by: [C] int16, index of the rule that dropped a candidate; -1 for those that remain.
    """

    def __init__(self, count: int) -> None:
        self.rules: list[str] = []
        self.dropped_by = np.full(count, -1, np.int16)

    @property
    def remaining(self) -> Mask:
        """[C] bool: not dropped so far."""
        return self.dropped_by < 0

    def drop(self, rule: str, applies: Mask) -> None:
        """Drop the remaining candidates to which a rule applies, [C] bool."""
        self.dropped_by[self.remaining & applies] = len(self.rules)
        self.rules.append(rule)

    def copy(self) -> "CandidateFilter":
        other = CandidateFilter(0)
        other.rules, other.dropped_by = list(self.rules), self.dropped_by.copy()
        return other

    def counts(self) -> dict[str, int]:
        """How many candidates each rule dropped."""
        counts = np.bincount(self.dropped_by[~self.remaining], minlength=len(self.rules))
        return dict(zip(self.rules, counts.tolist(), strict=True))


def repeated(queries: Integers, text_ids: Integers) -> Mask:
    """[C] bool: whether an earlier candidate of the query has the same text id. Both arguments are [C] int64."""
    _, first = np.unique(np.stack([queries, text_ids]), axis=1, return_index=True)
    repeats = np.ones(len(queries), dtype=bool)
    repeats[first] = False
    return repeats


def outside_ranks(ranks: NDArray[np.int32], first: int, last: int | None) -> Mask:
    """[C] bool: whether a rank is below `first` or above `last` (None: no limit)."""
    return (ranks < first) | (ranks > (np.iinfo(np.int32).max if last is None else last))


def lowest_positive(scores: Scores, positives: Lists) -> Scores:
    """[Q] float32: the lowest score of each query's positives; NaN where none has a score.

    Args:
        scores: [n] float32, of the positives of all queries, in the order of `positives.values`; NaN for no score.
        positives: The positives of each query.
    """
    lowest = np.full(len(positives), np.inf, np.float32)
    known = ~np.isnan(scores)
    np.minimum.at(lowest, positives.owners[known], scores[known])
    return np.where(np.isinf(lowest), np.float32(np.nan), lowest)


def threshold_hits(scores: Scores, positive: Scores, thresholds: Thresholds) -> Iterator[tuple[str, Mask]]:
    """For each threshold that is set, the rule as text and the candidates it applies to, [C] bool.

    A candidate without a score (NaN) is kept: the scorer ranks it below those it found. A candidate whose query has no
    positive with a score is dropped if a threshold is relative to it, since nothing can be compared.

    Args:
        scores: [C] float32, s(n).
        positive: [C] float32, s(p) of each candidate's query; NaN where no positive has a score.
        thresholds: The thresholds.
    """
    if thresholds.max_score is not None:
        yield f"scores above {thresholds.max_score:g}", scores > thresholds.max_score
    bounds = {}
    if thresholds.absolute_margin is not None:
        bounds[f"within {thresholds.absolute_margin:g} of the positive's score"] = positive - thresholds.absolute_margin
    if thresholds.max_score_ratio is not None:
        name = f"scores {thresholds.max_score_ratio:.0%} of the positive or more"
        bounds[name] = positive - np.abs(positive) * (1 - thresholds.max_score_ratio)
    if bounds:
        yield "no score of a positive to compare with", np.isnan(positive)
    for name, bound in bounds.items():
        yield name, scores >= bound


def highest_similarity(documents: Integers, queries: Integers, positives: Lists, similarities: Similarities) -> Scores:
    """[C] float32: the highest similarity of each candidate with a positive of its query; -inf without positives.

    Args:
        documents: [C] int64, the candidates as positions in the pool.
        queries: [C] int64, the query of each candidate.
        positives: The positives of each query, as positions in the pool.
        similarities: Gives the similarities of pairs of documents.
    """
    which, others = expand(queries, positives)
    highest = np.full(len(documents), -np.inf, np.float32)
    np.maximum.at(highest, which, similarities(documents[which], others))
    return highest


def by_descending_score(queries: Integers, scores: Scores) -> Integers:
    """[C] int64, indices of candidates: query after query, the highest score first and NaN last."""
    return np.lexsort((-np.nan_to_num(scores, nan=-np.inf), queries))


def draw(
    candidates: Lists,
    scores: Scores,
    remaining: Mask,
    count: int,
    *,
    random_keys: NDArray[np.uint64] | None = None,
    among: int | None = None,
) -> Lists:
    """At most `count` candidates of each query, as indices of candidates, the highest score first.

    Args:
        candidates: The candidates of each query.
        scores: [C] float32; equal scores and NaN keep their order.
        remaining: [C] bool, the candidates to draw from.
        count: How many to draw for a query.
        random_keys: [C]; draw the candidates with the smallest keys. By default those that score highest.
        among: With random keys, draw among this many that score highest; by default among all.
    """
    queries, total = candidates.owners, len(candidates)
    order = by_descending_score(queries, scores)
    order = order[remaining[order]]
    if random_keys is not None:
        if among is not None:
            order = order[positions_in_lists(queries[order], total) < among]
        drawn = np.lexsort((random_keys[order], queries[order]))
        drawn = drawn[positions_in_lists(queries[order[drawn]], total) < count]
        order = order[np.sort(drawn)]
    else:
        order = order[positions_in_lists(queries[order], total) < count]
    return Lists.grouped(queries[order], order, total)


def make_random_keys(seed: int, query_ids: Integers, document_ids: Integers) -> NDArray[np.uint64]:
    """[C] uint64, pseudo-random: a hash of the seed and of the texts of query and document.

    So what is drawn for a query does not depend on what else is mined.

    Args:
        seed: The seed of the run.
        query_ids: [C] int64, `query_id` of each candidate's query.
        document_ids: [C] int64, `text_id` of each candidate.
    """
    seeded = splitmix64(np.full(len(query_ids), seed, np.uint64))
    return splitmix64(splitmix64(seeded ^ query_ids.astype(np.uint64)) ^ document_ids.astype(np.uint64))


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014), elementwise."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
