"""All that is looked for in a dataset, as arrays over its distinct texts.

Shapes: Q distinct queries, U distinct documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nestling.data_checks.lengths import Measured, measure
from nestling.data_checks.near import Nearness, Pairs, Sketch, pairs_within, sketch
from nestling.data_checks.overlap import EvaluationTexts, Overlap, evaluation_queries, find_overlap, relevant_documents
from nestling.data_checks.rows import Distinct, SourceRows
from nestling.models.embedder import Kind
from nestling.records.retrieval_set import RetrievalSet

KINDS: tuple[Kind, Kind] = ("query", "document")
PLURAL: dict[Kind, str] = {"query": "queries", "document": "documents"}


@dataclass(frozen=True)
class Checks:
    """What was found.

    Args:
        nearness: What counted as nearly equal.
        near: Nearly equal pairs of distinct queries, and of distinct documents.
        measured: Lengths and scripts of them.
        short: [Q] and [U] bool, shorter than the least characters, or without a letter or digit.
        evaluation: Queries and relevant documents of the evaluation sets; empty without any.
        overlaps: (kind of the training text, kind of the evaluation text) to what they share.
    """

    nearness: Nearness
    near: Mapping[Kind, Pairs]
    measured: Mapping[Kind, Measured]
    short: Mapping[Kind, np.ndarray]
    evaluation: Mapping[Kind, EvaluationTexts]
    overlaps: Mapping[tuple[Kind, Kind], Overlap]


def check(
    rows: SourceRows, nearness: Nearness, sets: Sequence[RetrievalSet], *, min_characters: int, progress: bool = False
) -> Checks:
    """Read every distinct text twice, for its measures and its sketch; then again what may nearly equal another."""
    texts = distinct(rows)
    sketches = {kind: sketch(texts[kind].texts, nearness, PLURAL[kind] if progress else None) for kind in KINDS}
    measured = {kind: measure(texts[kind].texts) for kind in KINDS}
    evaluation = evaluation_texts(sets, nearness)
    return Checks(
        nearness=nearness,
        near={kind: pairs_within(texts[kind].texts, sketches[kind], nearness) for kind in KINDS},
        measured=measured,
        short={kind: each.wordless | (each.characters < min_characters) for kind, each in measured.items()},
        evaluation=evaluation,
        overlaps=find_overlaps(texts, sketches, evaluation, nearness),
    )


def distinct(rows: SourceRows) -> dict[Kind, Distinct]:
    """The distinct texts of each kind."""
    return {"query": rows.queries, "document": rows.documents}


def evaluation_texts(sets: Sequence[RetrievalSet], nearness: Nearness) -> dict[Kind, EvaluationTexts]:
    if not sets:
        return {}
    return {"query": evaluation_queries(sets, nearness), "document": relevant_documents(sets, nearness)}


def find_overlaps(
    texts: Mapping[Kind, Distinct],
    sketches: Mapping[Kind, Sketch],
    evaluation: Mapping[Kind, EvaluationTexts],
    nearness: Nearness,
) -> dict[tuple[Kind, Kind], Overlap]:
    return {
        (own, other): find_overlap(texts[own].texts, sketches[own], evaluation[other], nearness)
        for other in evaluation
        for own in KINDS
    }
