"""Removal of the documents of one record that repeat, or that equal the query."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import xxhash

from nestling.records.record import FieldError, Record, query_id, text_id

T = TypeVar("T")

EQUALS_QUERY = "document equal to its query"
REPEATED_POSITIVE = "positive repeated in its row"
REPEATED_NEGATIVE = "negative repeated in its row"
OWN_POSITIVE = "negative that is a positive of its row"


@dataclass(frozen=True)
class CleanRecord:
    """A record, the ids of its query and documents, and a hash of the whole row.

    Args:
        record: The record, cleaned.
        query_id: `query_id` of the query and its instruction.
        positive_ids: `text_id` of each positive.
        negative_ids: `text_id` of each negative.
    """

    record: Record
    query_id: int
    positive_ids: list[int]
    negative_ids: list[int]

    @property
    def row_id(self) -> int:
        """63-bit hash of all texts, scores and the instruction; the same for identical rows."""
        row = self.record
        rest = (row.positive_scores, row.negative_scores, row.instruction, row.score)
        content = repr((self.query_id, self.positive_ids, self.negative_ids, rest))
        return xxhash.xxh3_64_intdigest(content.encode()) >> 1


def clean(record: Record, drop: Callable[[str], None]) -> CleanRecord:
    """Remove repeated documents and documents equal to the query, calling `drop(reason)` for each.

    All positives may be removed. Graded pairs are not changed: two equal sentences are a valid pair.

    Raises:
        FieldError: A text that cannot be encoded as UTF-8.
    """
    own_id = checked_query_id(record)
    if record.score is not None:
        return CleanRecord(record, own_id, [checked_text_id("positive", record.positives[0])], [])
    reasons = {text_id(record.query): EQUALS_QUERY}
    kept, positive_ids = _keep("positives", record.positives, reasons, REPEATED_POSITIVE, drop)
    positives, positive_scores = _select(record.positives, kept), _select_scores(record.positive_scores, kept)
    reasons |= dict.fromkeys(positive_ids, OWN_POSITIVE)
    kept, negative_ids = _keep("negatives", record.negatives, reasons, REPEATED_NEGATIVE, drop)
    negatives, negative_scores = _select(record.negatives, kept), _select_scores(record.negative_scores, kept)
    record = Record(
        record.query, positives, negatives, positive_scores, negative_scores, record.instruction, record.score
    )
    return CleanRecord(record, own_id, positive_ids, negative_ids)


def _keep(
    field: str, texts: Sequence[str], reasons: dict[int, str], repeated: str, drop: Callable[[str], None]
) -> tuple[list[int], list[int]]:
    """Positions and ids of the texts to keep.

    `reasons` maps the id of a text that must not occur (again) to the reason for dropping it; kept texts are added.
    """
    kept, ids = [], []
    for position, text in enumerate(texts):
        text_hash = checked_text_id(f"{field}[{position}]", text)
        if text_hash in reasons:
            drop(reasons[text_hash])
        else:
            kept.append(position)
            ids.append(text_hash)
            reasons[text_hash] = repeated
    return kept, ids


def _select(values: tuple[T, ...], kept: list[int]) -> tuple[T, ...]:
    return values if len(kept) == len(values) else tuple(values[position] for position in kept)


def _select_scores(scores: tuple[float, ...] | None, kept: list[int]) -> tuple[float, ...] | None:
    return None if scores is None else _select(scores, kept)


def checked_query_id(record: Record) -> int:
    """`query_id` of a record; raises FieldError for a lone surrogate."""
    checked_text_id("query", record.query)
    checked_text_id("instruction", record.instruction or "")
    return query_id(record.query, record.instruction)


def checked_text_id(field: str, text: str) -> int:
    """`text_id` of a text; raises FieldError with the field's name for a lone surrogate."""
    try:
        return text_id(text)
    except UnicodeEncodeError as error:
        raise FieldError(field, f"half of a surrogate pair at character {error.start}; it is no valid text") from None
