"""Retrieval metrics with ties averaged: nDCG@k, MRR@k, Recall@k and MAP@k.

Every metric is the expected value over uniformly random orders of documents with equal scores (McSherry and Najork
2008, "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores"), computed
exactly. A scorer that gives every document the same score therefore gets what a random order gets, never 1.0. On
rankings without ties the values are those of trec_eval (ndcg_cut, recip_rank within k, recall, map_cut).

A metric needs no ranked list. For each relevant document it is enough to know how many documents score strictly higher
and how many score the same (`RelevantRanks`), so evaluation counts over the whole collection and keeps no top k.

Shape legend: Q queries, R relevant documents of all queries together (pairs of a query and a document).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

Run = dict[str, dict[str, float]]  # query id -> document id -> score, as pytrec_eval takes it
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class RelevantRanks:
    """The rank of each relevant document in the ranking of its query, with ties: R pairs of a query and a document.

    Attributes:
        offsets: [Q + 1] int64; the entries of query i in the arrays below are offsets[i] to offsets[i + 1].
        gains: [R] float64, the relevance grade, greater than 0.
        above: [R] int64, how many documents score strictly higher.
        equal: [R] int64, how many have the same score, the document itself included; 0 if it was not retrieved.
    """

    offsets: Integers
    gains: Floats
    above: Integers
    equal: Integers

    def __post_init__(self) -> None:
        assert len(self.gains) == len(self.above) == len(self.equal) == self.offsets[-1]
        assert (self.gains > 0).all()

    def __len__(self) -> int:
        """Number of queries, those without a relevant document included."""
        return len(self.offsets) - 1

    @cached_property
    def query(self) -> Integers:
        """[R] int64: index of the query of each entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @cached_property
    def tie_groups(self) -> tuple[Integers, Integers]:
        """How many relevant documents of the query score higher; how many the same, itself included: [R] int64."""
        last = np.iinfo(np.int64).max  # documents that were not retrieved come after all others
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
        """Sum values over the relevant documents of each query: [R] to [Q] float64."""
        return np.bincount(self.query, weights=values, minlength=len(self)).astype(np.float64)


def ranks_in_run(run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, float]]) -> RelevantRanks:
    """Rank the relevant documents (grade > 0) of every query of `qrels` in a run; both are {query: {document: value}}.

    Documents that the run does not list for a query count as not retrieved; a query that is not in the run scores 0.
    """
    sizes, gains, above, equal = [0], [], [], []
    for query, judged in qrels.items():
        listed = run.get(query, {})
        scores = np.sort(np.fromiter(listed.values(), dtype=np.float64, count=len(listed)))
        relevant = [document for document, gain in judged.items() if gain > 0]
        own = np.array([listed.get(document, np.nan) for document in relevant], dtype=np.float64)
        retrieved = ~np.isnan(own)
        upper = np.searchsorted(scores, own, side="right")
        above.append(np.where(retrieved, len(scores) - upper, 0))
        equal.append(np.where(retrieved, upper - np.searchsorted(scores, own, side="left"), 0))
        gains.append(np.array([judged[document] for document in relevant], dtype=np.float64))
        sizes.append(len(relevant))
    assert len(sizes) > 1, "qrels hold no query"
    return RelevantRanks(np.cumsum(sizes), *(np.concatenate(column) for column in (gains, above, equal)))


def ndcg(ranks: RelevantRanks, k: int) -> Floats:
    """nDCG@k of each query, with linear gain and discount 1 / log2(rank + 1): [Q] float64.

    Järvelin and Kekäläinen 2002, "Cumulated Gain-Based Evaluation of IR Techniques". The ideal ranking is that of all
    relevant documents, those that were not retrieved included.
    """
    discount = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])  # summed over the first n ranks
    first = np.minimum(ranks.above, k)
    last = np.minimum(ranks.above + ranks.equal, k)
    mean_discount = (discount[last] - discount[first]) / np.maximum(ranks.equal, 1)  # over the ranks of the tie
    dcg = ranks.sum(ranks.gains * mean_discount)

    query, gains = ranks.query, ranks.gains
    best = gains[np.lexsort((-gains, query))]
    rank = np.minimum(np.arange(len(best)) - ranks.offsets[query], k)
    ideal = ranks.sum(best * np.append(np.diff(discount), 0.0)[rank])
    return _ratio(dcg, ideal)


def mrr(ranks: RelevantRanks, k: int) -> Floats:
    """Reciprocal rank of the first relevant document of each query, 0 beyond rank k: [Q] float64.

    The first relevant document is in the highest group of tied documents that holds one. With m relevant documents
    among the n of the group, it is the j-th of the group with probability C(n - j, m - 1) / C(n, m).
    """
    higher, same = ranks.tie_groups
    probability = same / np.maximum(ranks.equal, 1)  # of j = 1
    value = np.zeros_like(probability)
    for j in range(1, k + 1):
        rank = ranks.above + j
        value += np.where(rank <= k, probability / rank, 0.0)
        remaining = ranks.equal - j
        probability = probability * np.maximum(remaining - same + 1, 0) / np.maximum(remaining, 1)
    in_first_group = (higher == 0) & (ranks.equal > 0)
    return ranks.sum(np.where(in_first_group, value / np.maximum(same, 1), 0.0))  # each of the m adds 1 / m


def recall(ranks: RelevantRanks, k: int) -> Floats:
    """Fraction of the relevant documents of each query that are among the first k: [Q] float64."""
    retrieved = np.clip(k - ranks.above, 0, ranks.equal) / np.maximum(ranks.equal, 1)
    return _ratio(ranks.sum(retrieved), np.diff(ranks.offsets))


def average_precision(ranks: RelevantRanks, k: int) -> Floats:
    """Average precision of each query: precision at the relevant documents among the first k, [Q] float64.

    The sum is divided by the number of all relevant documents, as in trec_eval. A relevant document that is the j-th of
    its group of n tied documents, m of them relevant, comes after all relevant documents of higher groups, and in
    expectation after (m - 1)(j - 1) / (n - 1) relevant ones of its own group.
    """
    higher, same = ranks.tie_groups
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, k + 1))])
    first = np.minimum(ranks.above, k)
    count = np.minimum(ranks.equal, k - first)  # of the group's ranks that are within k
    reciprocals = harmonic[first + count] - harmonic[first]  # sum over those ranks of 1 / rank
    before = (same - 1) / np.maximum(ranks.equal - 1, 1)
    # sum over j of (j - 1) / (first + j) = count - (first + 1) * reciprocals
    precisions = (higher + 1) * reciprocals + before * (count - (first + 1) * reciprocals)
    return _ratio(ranks.sum(precisions / np.maximum(ranks.equal, 1)), np.diff(ranks.offsets))


METRICS: dict[str, Callable[[RelevantRanks], Floats]] = {
    "nDCG@10": partial(ndcg, k=10),
    "MRR@10": partial(mrr, k=10),
    "Recall@100": partial(recall, k=100),
    "MAP@100": partial(average_precision, k=100),
}


def metrics_per_query(ranks: RelevantRanks) -> dict[str, Floats]:
    """All metrics of each query, {name: [Q] float64}; a query for which nothing relevant was retrieved scores 0."""
    return {name: metric(ranks) for name, metric in METRICS.items()}


def mean_metrics(ranks: RelevantRanks) -> dict[str, float]:
    """All metrics averaged over all queries, {name: value}."""
    assert len(ranks) > 0
    return {name: float(values.mean()) for name, values in metrics_per_query(ranks).items()}


def _ratio(numerator: Floats, denominator: Floats | Integers) -> Floats:
    """Quotient where the denominator is positive, else 0 (queries without relevant documents)."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
