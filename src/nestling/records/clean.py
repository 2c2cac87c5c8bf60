"""What one record must lose before it can be trained on: documents that repeat, or that equal the query."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import xxhash

from nestling.records.record import FieldError, Record, text_id

T = TypeVar("T")

EQUALS_QUERY = "document equal to its query"
REPEATED_POSITIVE = "positive repeated in its row"
REPEATED_NEGATIVE = "negative repeated in its row"
OWN_POSITIVE = "negative that is a positive of its row"


@dataclass(frozen=True)
class CleanRecord:
    """A record, the identities of its texts, and an identity of the whole row."""

    record: Record
    query_id: int
    positive_ids: list[int]
    negative_ids: list[int]

    @property
    def row_id(self) -> int:
        row = self.record
        rest = (row.positive_scores, row.negative_scores, row.instruction, row.score)
        content = repr((self.query_id, self.positive_ids, self.negative_ids, rest))
        return xxhash.xxh3_64_intdigest(content.encode()) >> 1


def clean(record: Record, drop: Callable[[str], None]) -> CleanRecord:
    """The record without such documents; `drop(reason)` is called for each, and no positive may be left.

    Graded pairs stay as they are: two equal sentences are as good a pair as any. Raises FieldError.
    """
    query_id = identity("query", record.query)
    if record.score is not None:
        return CleanRecord(record, query_id, [identity("positive", record.positives[0])], [])
    reasons = {query_id: EQUALS_QUERY}
    kept, positive_ids = _keep("positives", record.positives, reasons, REPEATED_POSITIVE, drop)
    positives, positive_scores = _select(record.positives, kept), _select_scores(record.positive_scores, kept)
    reasons |= dict.fromkeys(positive_ids, OWN_POSITIVE)
    kept, negative_ids = _keep("negatives", record.negatives, reasons, REPEATED_NEGATIVE, drop)
    negatives, negative_scores = _select(record.negatives, kept), _select_scores(record.negative_scores, kept)
    record = Record(
        record.query, positives, negatives, positive_scores, negative_scores, record.instruction, record.score
    )
    return CleanRecord(record, query_id, positive_ids, negative_ids)


def _keep(
    field: str, texts: Sequence[str], reasons: dict[int, str], repeated: str, drop: Callable[[str], None]
) -> tuple[list[int], list[int]]:
    """Positions and identities of the texts whose identity is not among `reasons`, which grows by them."""
    kept, ids = [], []
    for position, text in enumerate(texts):
        own = identity(f"{field}[{position}]", text)
        if own in reasons:
            drop(reasons[own])
        else:
            kept.append(position)
            ids.append(own)
            reasons[own] = repeated
    return kept, ids


def _select(values: tuple[T, ...], kept: list[int]) -> tuple[T, ...]:
    return values if len(kept) == len(values) else tuple(values[position] for position in kept)


def _select_scores(scores: tuple[float, ...] | None, kept: list[int]) -> tuple[float, ...] | None:
    return None if scores is None else _select(scores, kept)


def identity(field: str, text: str) -> int:
    """`text_id` of a text; FieldError with the field's name for a lone surrogate."""
    try:
        return text_id(text)
    except UnicodeEncodeError as error:
        raise FieldError(field, f"half of a surrogate pair at character {error.start}; it is no valid text") from None
