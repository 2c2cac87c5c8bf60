"""Contamination: training texts that are also texts of an evaluation set."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nestling.data_checks.near_duplicates import (
    MinHashes,
    NearDuplicateCriterion,
    minhash_texts,
    near_duplicates_between,
)
from nestling.records.retrieval_set import RetrievalSet


@dataclass(frozen=True)
class EvaluationTexts:
    """The E distinct queries, or relevant documents, of all evaluation sets.

    Args:
        texts: The texts.
        locations: Evaluation set and id of each text.
        minhashes: Their MinHash values.
    """

    texts: list[str]
    locations: list[str]
    minhashes: MinHashes


@dataclass(frozen=True)
class Overlap:
    """For each of N training texts, the most similar evaluation text.

    Args:
        match: [N] int64, index of the evaluation text; -1 if none is similar enough.
        similarity: [N] float64; 1 for equal texts, the Jaccard similarity of shingles for near duplicates.
        equal: [N] bool, whether the normalised texts are equal.
    """

    match: np.ndarray
    similarity: np.ndarray
    equal: np.ndarray


def evaluation_queries(sets: Sequence[RetrievalSet], criterion: NearDuplicateCriterion) -> EvaluationTexts:
    texts_and_locations: list[tuple[str, str]] = []
    for each in sets:
        texts_and_locations += zip(each.queries, (f"{each.name}: {name}" for name in each.query_ids), strict=True)
    return _evaluation_texts(texts_and_locations, criterion)


def relevant_documents(sets: Sequence[RetrievalSet], criterion: NearDuplicateCriterion) -> EvaluationTexts:
    texts_and_locations: list[tuple[str, str]] = []
    for each in sets:
        rows = np.unique(np.concatenate(each.relevant))
        names = (f"{each.name}: {each.document_ids[int(row)]}" for row in rows)
        texts_and_locations += zip((each.documents[int(row)] for row in rows), names, strict=True)
    return _evaluation_texts(texts_and_locations, criterion)


def find_overlap(
    texts: Sequence[str], minhashes: MinHashes, evaluation: EvaluationTexts, criterion: NearDuplicateCriterion
) -> Overlap:
    """Find which of N training texts are equal to, or near duplicates of, an evaluation text."""
    match, equal = _match_equal(minhashes.normalised_ids, evaluation.minhashes.normalised_ids)
    similarity = equal.astype(np.float64)
    pairs = near_duplicates_between(texts, minhashes, evaluation.texts, evaluation.minhashes, criterion)
    order = np.argsort(pairs.similarity, kind="stable")  # the last one written is the most similar
    order = order[~equal[pairs.first[order]]]
    match[pairs.first[order]] = pairs.second[order]
    similarity[pairs.first[order]] = pairs.similarity[order]
    return Overlap(match, similarity, equal)


def _evaluation_texts(texts_and_locations: list[tuple[str, str]], criterion: NearDuplicateCriterion) -> EvaluationTexts:
    location_of = dict(reversed(texts_and_locations))  # for equal texts, the first location is kept
    texts = list(reversed(location_of))
    return EvaluationTexts(texts, [location_of[text] for text in texts], minhash_texts(texts, criterion))


def _match_equal(ids: np.ndarray, evaluation_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([N] int64, index of the first evaluation text with the same id, or -1; [N] bool, whether there is one)."""
    order = np.argsort(evaluation_ids, kind="stable")
    if not len(order):
        return np.full(len(ids), -1), np.zeros(len(ids), dtype=bool)
    at = np.minimum(np.searchsorted(evaluation_ids[order], ids), len(order) - 1)
    equal = evaluation_ids[order[at]] == ids
    return np.where(equal, order[at], -1), equal
