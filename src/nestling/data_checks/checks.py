"""All checks of a dataset, with results as arrays over its distinct texts.

Shapes: Q distinct queries, U distinct documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nestling.data_checks.lengths import TextMeasures, measure
from nestling.data_checks.near_duplicates import (
    MinHashes,
    NearDuplicateCriterion,
    NearDuplicatePairs,
    minhash_texts,
    near_duplicates_within,
)
from nestling.data_checks.overlap import EvaluationTexts, Overlap, evaluation_queries, find_overlap, relevant_documents
from nestling.data_checks.rows import DistinctTexts, SourceRows
from nestling.records.record import Kind
from nestling.records.retrieval_set import RetrievalSet

KINDS: tuple[Kind, Kind] = ("query", "document")
PLURAL: dict[Kind, str] = {"query": "queries", "document": "documents"}


@dataclass(frozen=True)
class Checks:
    """Results of the checks.

    Args:
        criterion: When two texts are near duplicates.
        near_duplicates: Near duplicates among the distinct queries, and among the distinct documents.
        measures: Lengths and scripts of the distinct texts.
        short: [Q] and [U] bool, below the minimum number of characters, or without a letter or digit.
        evaluation: Queries and relevant documents of the evaluation sets; empty without any.
        overlaps: (kind of training text, kind of evaluation text) -> the training texts that are evaluation texts.
    """

    criterion: NearDuplicateCriterion
    near_duplicates: Mapping[Kind, NearDuplicatePairs]
    measures: Mapping[Kind, TextMeasures]
    short: Mapping[Kind, np.ndarray]
    evaluation: Mapping[Kind, EvaluationTexts]
    overlaps: Mapping[tuple[Kind, Kind], Overlap]


def run_checks(
    rows: SourceRows,
    criterion: NearDuplicateCriterion,
    sets: Sequence[RetrievalSet],
    *,
    min_characters: int,
    progress: bool = False,
) -> Checks:
    """Run all checks. Every distinct text is read twice, candidates for near duplicates once more."""
    texts = rows.texts_by_kind
    minhashes = {
        kind: minhash_texts(texts[kind].texts, criterion, PLURAL[kind] if progress else None) for kind in KINDS
    }
    measures = {kind: measure(texts[kind].texts) for kind in KINDS}
    evaluation = evaluation_texts(sets, criterion)
    return Checks(
        criterion=criterion,
        near_duplicates={kind: near_duplicates_within(texts[kind].texts, minhashes[kind], criterion) for kind in KINDS},
        measures=measures,
        short={kind: each.wordless | (each.characters < min_characters) for kind, each in measures.items()},
        evaluation=evaluation,
        overlaps=find_overlaps(texts, minhashes, evaluation, criterion),
    )


def evaluation_texts(sets: Sequence[RetrievalSet], criterion: NearDuplicateCriterion) -> dict[Kind, EvaluationTexts]:
    if not sets:
        return {}
    return {"query": evaluation_queries(sets, criterion), "document": relevant_documents(sets, criterion)}


def find_overlaps(
    texts: Mapping[Kind, DistinctTexts],
    minhashes: Mapping[Kind, MinHashes],
    evaluation: Mapping[Kind, EvaluationTexts],
    criterion: NearDuplicateCriterion,
) -> dict[tuple[Kind, Kind], Overlap]:
    return {
        (own, other): find_overlap(texts[own].texts, minhashes[own], evaluation[other], criterion)
        for other in evaluation
        for own in KINDS
    }
