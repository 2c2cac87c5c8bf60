"""Which rows and negatives of a scratch file stay, judged over the whole dataset by identities alone.

Shapes: n rows, P positives and M hard negatives over all rows, U distinct query texts, V distinct positives,
k kept rows. A pair of a query text and a known positive is one int64: index of the query << 32 | index of the
positive, both among the sorted distinct identities.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from nestling.records.summary import DropCounter
from nestling.records.table import SCHEMA

REPEATED_ROW = "row repeated"
KNOWN_POSITIVE = "negative that is a positive of the same query in another row"
NO_DOCUMENT = "row left without a document"
PAIR_SHIFT = 32


@dataclass(frozen=True)
class RowSelection:
    """What to copy, and the figures of the copy.

    Args:
        keep_row: [n] bool.
        keep_negative: [M] bool.
        query: [k] int64, index of each kept row's query among the U distinct ones.
        first_row: [k] int64, the first kept row with the same query text.
        pairs: [pairs] int64, sorted (query, known positive) pairs.
        known: [V] int64, sorted identities of the positives.
        positive_counts: [k] int64.
        negative_counts: [k] int64.
        rows_scored: Kept rows with teacher scores for all their documents.
    """

    keep_row: np.ndarray
    keep_negative: np.ndarray
    query: np.ndarray
    first_row: np.ndarray
    pairs: np.ndarray
    known: np.ndarray
    positive_counts: np.ndarray
    negative_counts: np.ndarray
    rows_scored: int

    def apply(self, batches: list[Any]) -> Iterator[Any]:
        """The batches of the copy, in schema `table.SCHEMA`."""
        row = negative = kept = 0
        for batch in batches:
            keep_row = self.keep_row[row : row + batch.num_rows]
            keep_negative = self.keep_negative[negative : negative + len(batch.column("negative_ids").values)]
            count = int(keep_row.sum())
            if count:
                content = _drop_negatives(batch, keep_negative).filter(pa.array(keep_row))
                yield self._complete(content, kept)
            row, negative, kept = row + batch.num_rows, negative + len(keep_negative), kept + count

    def _complete(self, content: Any, start: int) -> Any:
        """Add `first_row` and `known_positives` to kept rows that begin at `start`."""
        first_row = self.first_row[start : start + content.num_rows]
        query = self.query[start : start + content.num_rows]
        begin, end = (np.searchsorted(self.pairs, side << PAIR_SHIFT) for side in (query, query + 1))
        counts = np.where(first_row == np.arange(start, start + content.num_rows), end - begin, 0)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        at = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], counts)
        known = self.known[self.pairs[at] & ((1 << PAIR_SHIFT) - 1)]
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(known))
        columns = [content.column(name) for name in SCHEMA.names[:-2]]
        return pa.record_batch([*columns, pa.array(first_row), lists], schema=SCHEMA)


def select_rows(batches: list[Any], location: str, drops: DropCounter) -> RowSelection:
    """Judge the rows of a scratch file; what is to be dropped is added to `drops`."""
    lines, row_ids, query_ids = (_values(batches, name) for name in ("line", "row_id", "query_id"))  # each [n]
    positive_counts, negative_counts = _counts(batches, "positive_ids"), _counts(batches, "negative_ids")  # [n]

    keep_row = np.zeros(len(row_ids), dtype=bool)
    keep_row[np.unique(row_ids, return_index=True)[1]] = True
    _add(drops, REPEATED_ROW, location, lines[~keep_row])

    query = np.unique(query_ids, return_inverse=True)[1]  # [n] in 0..U-1
    known, positive = np.unique(_flat(batches, "positive_ids"), return_inverse=True)  # [V], [P] in 0..V-1
    pairs = np.unique(np.repeat(query, positive_counts) << PAIR_SHIFT | positive)

    row_of = np.repeat(np.arange(len(query)), negative_counts)  # [M]
    false = _among(known, pairs, query[row_of], _flat(batches, "negative_ids"))
    _add(drops, KNOWN_POSITIVE, location, lines[row_of[false & keep_row[row_of]]])
    negative_counts = negative_counts - np.bincount(row_of[false], minlength=len(query))
    left = positive_counts + negative_counts > 0
    _add(drops, NO_DOCUMENT, location, lines[keep_row & ~left])
    keep_row &= left

    scored = (_valid(batches, "positive_scores") | (positive_counts == 0)) & (
        _valid(batches, "negative_scores") | (negative_counts == 0)
    )
    first_of, inverse = np.unique(query[keep_row], return_index=True, return_inverse=True)[1:]
    return RowSelection(
        keep_row=keep_row,
        keep_negative=~false,
        query=query[keep_row],
        first_row=first_of[inverse],
        pairs=pairs,
        known=known,
        positive_counts=positive_counts[keep_row],
        negative_counts=negative_counts[keep_row],
        rows_scored=int((scored & keep_row).sum()),
    )


def _among(known: np.ndarray, pairs: np.ndarray, query: np.ndarray, negative_ids: np.ndarray) -> np.ndarray:
    """[M] bool: whether a negative is a known positive of its query."""
    if not len(negative_ids) or not len(known):
        return np.zeros(len(negative_ids), dtype=bool)
    at = np.minimum(np.searchsorted(known, negative_ids), len(known) - 1)
    pair = query << PAIR_SHIFT | at
    found = np.minimum(np.searchsorted(pairs, pair), len(pairs) - 1)
    is_known: np.ndarray = (known[at] == negative_ids) & (pairs[found] == pair)
    return is_known


def _drop_negatives(batch: Any, keep: np.ndarray) -> Any:
    if keep.all():
        return batch
    scores = batch.column("negative_scores")
    scored = np.repeat(scores.is_valid().to_numpy(zero_copy_only=False), _counts([batch], "negative_ids"))
    for name, mask in (("negatives", keep), ("negative_ids", keep), ("negative_scores", keep[scored])):
        batch = batch.set_column(SCHEMA.names.index(name), name, _filter_lists(batch.column(name), mask))
    return batch


def _filter_lists(lists: Any, keep: np.ndarray) -> Any:
    """A list column without the elements that are not to be kept; null lists stay null."""
    kept_before = np.concatenate([[0], np.cumsum(keep)])
    offsets = pa.array(kept_before[lists.offsets.to_numpy()], pa.int32())
    return pa.ListArray.from_arrays(offsets, lists.values.filter(pa.array(keep)), mask=lists.is_null())


def _values(batches: list[Any], name: str) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(batch.column(name).to_numpy() for batch in batches)])


def _flat(batches: list[Any], name: str) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(batch.column(name).values.to_numpy() for batch in batches)])


def _counts(batches: list[Any], name: str) -> np.ndarray:
    lengths = (np.diff(batch.column(name).offsets.to_numpy()).astype(np.int64) for batch in batches)
    return np.concatenate([np.zeros(0, np.int64), *lengths])


def _valid(batches: list[Any], name: str) -> np.ndarray:
    valid = (batch.column(name).is_valid().to_numpy(zero_copy_only=False) for batch in batches)
    return np.concatenate([np.zeros(0, dtype=bool), *valid])


def _add(drops: DropCounter, reason: str, location: str, lines: np.ndarray) -> None:
    if len(lines):
        drops.add(reason, f"{location}:{lines[0]}", len(lines))
