"""Retrieval metrics with ties averaged: nDCG@k, MRR@k, Recall@k and MAP@k.

Every metric is the expected value over uniformly random orders of documents with equal scores (McSherry and Najork
2008, "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores"), computed
exactly. A scorer that gives every document the same score therefore gets what a random order gets, never 1.0. On
rankings without ties the values are those of trec_eval (ndcg_cut, recip_rank within k, recall, map_cut).

A metric needs no ranked list. For each relevant document it is enough to know how many documents score strictly above
it and how many score the same (`Placements`), so evaluation counts over the whole collection instead of keeping a top
k.

Shape legend: Q queries, R relevant documents of all queries together (pairs of a query and a document).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

Run = dict[str, dict[str, float]]  # query id -> document id -> score, as in a TREC run file
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Placements:
    """Where the relevant documents of each query stand in its ranking.

    Attributes:
        offsets: [Q + 1] int64; the relevant documents of query i are the entries offsets[i]:offsets[i + 1] of the rest.
        gains: [R] float64, the judged relevance, greater than 0.
        above: [R] int64, documents that score strictly higher.
        equal: [R] int64, documents with the same score, the document itself included; 0 says it is not ranked at all.
    """

    offsets: Integers
    gains: Floats
    above: Integers
    equal: Integers

    def __post_init__(self) -> None:
        assert len(self.gains) == len(self.above) == len(self.equal) == self.offsets[-1]
        assert (self.gains > 0).all()

    def __len__(self) -> int:
        """Q, queries without any relevant document included."""
        return len(self.offsets) - 1

    @cached_property
    def query(self) -> Integers:
        """[R] int64: the query of each entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @cached_property
    def tie_groups(self) -> tuple[Integers, Integers]:
        """[R], [R] int64: the query's relevant documents that score higher; that score the same, itself included."""
        last = np.iinfo(np.int64).max  # documents that are not ranked come after all others
        above = np.where(self.equal > 0, self.above, last)
        order = np.lexsort((above, self.query))
        position = np.arange(len(order)) - self.offsets[self.query]  # `order` keeps the entries of a query together
        starts = np.ones(len(order), dtype=bool)
        starts[1:] = (np.diff(self.query) != 0) | (np.diff(above[order]) != 0)
        group = np.cumsum(starts) - 1
        higher, same = np.empty_like(order), np.empty_like(order)
        higher[order] = position[starts][group]
        same[order] = np.bincount(group)[group] if len(group) else 0
        return higher, same

    def sum(self, values: Floats) -> Floats:
        """Sum [R] values over the relevant documents of each query: [Q] float64."""
        return np.bincount(self.query, weights=values, minlength=len(self)).astype(np.float64)


def place_run(run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, float]]) -> Placements:
    """Place the relevant documents (judgement > 0) of every query of `qrels` in a run {query: {document: score}}.

    Documents that the run does not list for a query rank nowhere; a query that the run leaves out scores 0.
    """
    sizes, gains, above, equal = [0], [], [], []
    for query, judged in qrels.items():
        listed = run.get(query, {})
        scores = np.sort(np.fromiter(listed.values(), dtype=np.float64, count=len(listed)))
        relevant = [document for document, gain in judged.items() if gain > 0]
        own = np.array([listed.get(document, np.nan) for document in relevant], dtype=np.float64)
        ranked = ~np.isnan(own)
        upper = np.searchsorted(scores, own, side="right")
        above.append(np.where(ranked, len(scores) - upper, 0))
        equal.append(np.where(ranked, upper - np.searchsorted(scores, own, side="left"), 0))
        gains.append(np.array([judged[document] for document in relevant], dtype=np.float64))
        sizes.append(len(relevant))
    assert len(sizes) > 1, "qrels hold no query"
    return Placements(np.cumsum(sizes), *(np.concatenate(column) for column in (gains, above, equal)))


def ndcg(placements: Placements, k: int) -> Floats:
    """nDCG@k with linear gain and discount 1 / log2(rank + 1) of each query: [Q] float64.

    The ideal order is that of all relevant documents, also of those that are not ranked (Järvelin and Kekäläinen 2002).
    """
    discount = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])  # summed over the first n ranks
    first = np.minimum(placements.above, k)
    last = np.minimum(placements.above + placements.equal, k)
    share = (discount[last] - discount[first]) / np.maximum(placements.equal, 1)
    gained = placements.sum(placements.gains * share)

    query, gains = placements.query, placements.gains
    best = gains[np.lexsort((-gains, query))]
    rank = np.minimum(np.arange(len(best)) - placements.offsets[query], k)
    ideal = placements.sum(best * np.append(np.diff(discount), 0.0)[rank])
    return _ratio(gained, ideal)


def mrr(placements: Placements, k: int) -> Floats:
    """Reciprocal rank of the first relevant document, 0 beyond rank k, of each query: [Q] float64.

    The first relevant document is in the highest tie group that holds one. With m relevant among its n documents, it is
    the group's j-th with probability C(n - j, m - 1) / C(n, m).
    """
    higher, same = placements.tie_groups
    chance = same / np.maximum(placements.equal, 1)  # of j = 1
    value = np.zeros_like(chance)
    for j in range(1, k + 1):
        rank = placements.above + j
        value += np.where(rank <= k, chance / rank, 0.0)
        remaining = placements.equal - j
        chance = chance * np.maximum(remaining - same + 1, 0) / np.maximum(remaining, 1)
    in_first_group = (higher == 0) & (placements.equal > 0)
    return placements.sum(np.where(in_first_group, value / np.maximum(same, 1), 0.0))  # each member carries 1 / m of it


def recall(placements: Placements, k: int) -> Floats:
    """Share of a query's relevant documents among the first k: [Q] float64."""
    found = np.clip(k - placements.above, 0, placements.equal) / np.maximum(placements.equal, 1)
    return _ratio(placements.sum(found), np.diff(placements.offsets))


def average_precision(placements: Placements, k: int) -> Floats:
    """Average precision over the first k documents, divided by all relevant documents, of each query: [Q] float64.

    A relevant document that is its tie group's j-th has all relevant documents of higher groups before it, and in
    expectation (m - 1)(j - 1) / (n - 1) of the other m - 1 relevant ones among the n of its own group.
    """
    higher, same = placements.tie_groups
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, k + 1))])
    first = np.minimum(placements.above, k)
    count = np.minimum(placements.equal, k - first)  # of the group's ranks that are within k
    reciprocals = harmonic[first + count] - harmonic[first]  # sum over those ranks of 1 / rank
    before = (same - 1) / np.maximum(placements.equal - 1, 1)
    # sum over j of (j - 1) / (first + j) = count - (first + 1) * reciprocals
    precisions = (higher + 1) * reciprocals + before * (count - (first + 1) * reciprocals)
    return _ratio(placements.sum(precisions / np.maximum(placements.equal, 1)), np.diff(placements.offsets))


METRICS: dict[str, Callable[[Placements], Floats]] = {
    "nDCG@10": partial(ndcg, k=10),
    "MRR@10": partial(mrr, k=10),
    "Recall@100": partial(recall, k=100),
    "MAP@100": partial(average_precision, k=100),
}


def per_query(placements: Placements) -> dict[str, Floats]:
    """All metrics of each query, {name: [Q] float64}; a query with no relevant document found scores 0."""
    return {name: metric(placements) for name, metric in METRICS.items()}


def means(placements: Placements) -> dict[str, float]:
    """All metrics averaged over all queries, {name: value}."""
    assert len(placements) > 0
    return {name: float(values.mean()) for name, values in per_query(placements).items()}


def _ratio(numerator: Floats, denominator: Floats | Integers) -> Floats:
    """Quotient where the denominator is positive, else 0 (queries without relevant documents)."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
