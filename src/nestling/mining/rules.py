"""Positives, and the rules that drop candidates which are likely relevant or useless as negatives.

Shapes: Q queries, C candidates and n positives of all queries together, query after query.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nestling.mining.candidates import Candidates
from nestling.mining.lists import Lists, Mask, positions_in_lists
from nestling.mining.pool import Pool, folded_identities
from nestling.mining.query_set import QuerySet
from nestling.mining.retrieved import Scores
from nestling.mining.selection import (
    CandidateFilter,
    Similarities,
    Thresholds,
    by_descending_score,
    highest_similarity,
    lowest_positive,
    outside_ranks,
    repeated,
    threshold_hits,
)
from nestling.records.words import folded_text_id
from nestling.retrieval.metrics import Integers

POSITIVE = "a positive of the query"
LIKE_QUERY = "equal to the query but for case, punctuation and space"
LIKE_POSITIVE = "equal to a positive but for case, punctuation and space"
LIKE_BETTER = "equal to a better candidate but for case, punctuation and space"


@dataclass(frozen=True)
class Positives:
    """The known positives of each query.

    Attributes:
        lists: The positives of each query, n of all together, as positions in the pool.
        scores: By each scorer, [n] float32.
        trusted: [n] bool; the others failed the consistency filter: they are neither positives nor negatives.
    """

    lists: Lists
    scores: Mapping[str, Scores]
    trusted: Mask

    def lowest(self, scorer: str) -> Scores:
        """[Q] float32, the lowest score of each query's trusted positives; NaN where there is none."""
        return lowest_positive(np.where(self.trusted, self.scores[scorer], np.nan).astype(np.float32), self.lists)


def positives_in_pool(query_set: QuerySet, pool: Pool) -> Lists:
    """The known positives of each query, as positions in the pool, which must have all of them."""
    documents = pool.find(query_set.known_positives.values)
    assert (documents >= 0).all()
    return Lists(query_set.known_positives.offsets, documents)


def with_ensemble(candidates: Candidates, positives: Positives, members: Sequence[str]) -> tuple[Candidates, Positives]:
    """Copies with scores by "ensemble", float32: the mean of the standardised scores of several scorers.

    A scorer's standardised scores have mean 0 and standard deviation 1 over all candidates and positives.
    """
    both = [np.concatenate([candidates.scores[each], positives.scores[each]]).astype(np.float64) for each in members]
    deviations = [max(float(each.std()), np.finfo(np.float32).eps) for each in both]
    standardised = [(each - each.mean()) / deviation for each, deviation in zip(both, deviations, strict=True)]
    scores = np.mean(standardised, axis=0).astype(np.float32)
    of_candidates, of_positives = np.split(scores, [len(candidates)])
    return (
        candidates.with_scores("ensemble", of_candidates),
        replace(positives, scores={**positives.scores, "ensemble": of_positives}),
    )


def drop_known_and_repeated(
    candidate_filter: CandidateFilter, query_set: QuerySet, pool: Pool, positives: Lists, candidates: Candidates
) -> None:
    """Drop positives of the query, texts equal to the query or a positive, and texts equal to a better candidate.

    Texts are equal here if they differ only in case, punctuation and space (`folded_text_id`).
    """
    queries, documents = candidates.queries, candidates.documents
    candidate_filter.drop(POSITIVE, positives.holds(queries, documents))
    of_candidates = folded_identities(pool, documents)
    of_positives = folded_identities(pool, positives.values)
    of_queries = np.array([folded_text_id(text) for text in query_set.texts], dtype=np.int64)
    # Renumbered from 0, since `Lists.holds` packs a query and a value into one int64.
    _, numbers = np.unique(np.concatenate([of_candidates, of_positives, of_queries]), return_inverse=True)
    own, positive, query = np.split(numbers, np.cumsum([len(of_candidates), len(of_positives)]))
    candidate_filter.drop(LIKE_QUERY, own == query[queries])
    candidate_filter.drop(LIKE_POSITIVE, Lists(positives.offsets, positive).holds(queries, own))
    candidate_filter.drop(LIKE_BETTER, repeated(queries, own))


def drop_ranks(candidate_filter: CandidateFilter, candidates: Candidates, first: int, last: int | None) -> None:
    """Drop candidates whose best rank is outside first..last; known positives take up ranks too."""
    if first > 1 or last is not None:
        rule = f"outside ranks {first} to {'the end' if last is None else last}"
        candidate_filter.drop(rule, outside_ranks(candidates.best_rank, first, last))


def drop_high_scores(
    candidate_filter: CandidateFilter, candidates: Candidates, positives: Positives, scorer: str, thresholds: Thresholds
) -> None:
    """Drop candidates that score too high, absolutely or relative to the lowest positive of their query."""
    of_positive = positives.lowest(scorer)[candidates.queries]
    for rule, applies in threshold_hits(candidates.scores[scorer], of_positive, thresholds):
        candidate_filter.drop(rule, applies)


def drop_similar(
    candidate_filter: CandidateFilter,
    candidates: Candidates,
    positives: Positives,
    similarities: Similarities,
    max_similarity: float,
) -> None:
    """Drop candidates whose similarity with a positive of their query is above `max_similarity`."""
    remaining = np.flatnonzero(candidate_filter.remaining)
    documents, queries = candidates.documents[remaining], candidates.queries[remaining]
    applies = np.zeros(len(candidates), dtype=bool)
    applies[remaining] = highest_similarity(documents, queries, positives.lists, similarities) > max_similarity
    candidate_filter.drop(f"more similar to a positive than {max_similarity:g}", applies)


def drop_below_top(candidate_filter: CandidateFilter, candidates: Candidates, scorer: str, depth: int) -> None:
    """Drop all but the `depth` remaining candidates of each query that score highest: the judge reads only these."""
    order = by_descending_score(candidates.queries, candidates.scores[scorer])
    order = order[candidate_filter.remaining[order]]
    applies = np.zeros(len(candidates), dtype=bool)
    applies[order] = positions_in_lists(candidates.queries[order], len(candidates.lists)) >= depth
    candidate_filter.drop(f"behind the first {depth} left, which the judge read", applies)


def remaining_documents(candidate_filter: CandidateFilter, candidates: Candidates) -> tuple[Lists, Integers]:
    """The remaining candidates of each query: as positions in the pool, and as indices of candidates."""
    remaining = np.flatnonzero(candidate_filter.remaining)
    queries, documents = candidates.queries[remaining], candidates.documents[remaining]
    return Lists.grouped(queries, documents, len(candidates.lists)), remaining
