"""Training texts that an evaluation set holds as well (contamination)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nestling.data_checks.near import Nearness, Sketch, pairs_between, sketch
from nestling.records.retrieval_set import RetrievalSet


@dataclass(frozen=True)
class EvaluationTexts:
    """The queries, or the relevant documents, of all evaluation sets: E distinct texts.

    Args:
        texts: The texts.
        places: Where each is: set and id.
        sketch: What nearly equal texts are found by.
    """

    texts: list[str]
    places: list[str]
    sketch: Sketch


@dataclass(frozen=True)
class Overlap:
    """For each of N training texts, the evaluation text that it is most like.

    Args:
        match: [N] int64, its number; -1 where there is none.
        similarity: [N] float64; 1 for equal texts, the Jaccard similarity of shingles for nearly equal ones.
        equal: [N] bool, equal once normalised.
    """

    match: np.ndarray
    similarity: np.ndarray
    equal: np.ndarray


def evaluation_queries(sets: Sequence[RetrievalSet], nearness: Nearness) -> EvaluationTexts:
    found: list[tuple[str, str]] = []
    for each in sets:
        found += zip(each.queries, (f"{each.name}: {name}" for name in each.query_ids), strict=True)
    return _texts(found, nearness)


def relevant_documents(sets: Sequence[RetrievalSet], nearness: Nearness) -> EvaluationTexts:
    found: list[tuple[str, str]] = []
    for each in sets:
        rows = np.unique(np.concatenate(each.relevant))
        names = (f"{each.name}: {each.document_ids[int(row)]}" for row in rows)
        found += zip((each.documents[int(row)] for row in rows), names, strict=True)
    return _texts(found, nearness)


def find_overlap(texts: Sequence[str], own: Sketch, evaluation: EvaluationTexts, nearness: Nearness) -> Overlap:
    """Which of N texts equal, or nearly equal, an evaluation text."""
    match, equal = _equal(own.normal_ids, evaluation.sketch.normal_ids)
    similarity = equal.astype(np.float64)
    pairs = pairs_between(texts, own, evaluation.texts, evaluation.sketch, nearness)
    order = np.argsort(pairs.similarity, kind="stable")  # the last one written is the most like
    order = order[~equal[pairs.first[order]]]
    match[pairs.first[order]] = pairs.second[order]
    similarity[pairs.first[order]] = pairs.similarity[order]
    return Overlap(match, similarity, equal)


def _texts(found: list[tuple[str, str]], nearness: Nearness) -> EvaluationTexts:
    distinct = dict(reversed(found))  # of equal texts the first place stays
    texts = list(reversed(distinct))
    return EvaluationTexts(texts, [distinct[text] for text in texts], sketch(texts, nearness))


def _equal(ids: np.ndarray, evaluation_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([N] int64, the first evaluation text with the same identity or -1; [N] bool, whether there is one)."""
    order = np.argsort(evaluation_ids, kind="stable")
    if not len(order):
        return np.full(len(ids), -1), np.zeros(len(ids), dtype=bool)
    at = np.minimum(np.searchsorted(evaluation_ids[order], ids), len(order) - 1)
    equal = evaluation_ids[order[at]] == ids
    return np.where(equal, order[at], -1), equal
