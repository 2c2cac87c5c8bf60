"""Selection of the rows and negatives of a scratch file to keep, over the whole dataset and by ids alone.

Shapes: n rows, P positives and M hard negatives over all rows, U distinct queries (`query_id`), V distinct
positives, k kept rows. A pair of a query and a known positive is one int64: index of the query << 32 | index of the
positive, both among the sorted distinct ids.
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
    """The rows and negatives of a scratch file to keep, and their counts.

    Args:
        keep_row: [n] bool.
        keep_negative: [M] bool.
        query: [k] int64, index of the query of each kept row among the U distinct ones.
        first_row: [k] int64, the first kept row with the same query, counted among the kept rows.
        pairs: Sorted int64, the (query, known positive) pairs.
        known_positive_ids: [V] int64, sorted ids of the positives of all rows.
        positive_counts: [k] int64, positives of each kept row.
        negative_counts: [k] int64, negatives of each kept row that are kept.
        rows_scored: Kept rows with teacher scores for all their documents.
    """

    keep_row: np.ndarray
    keep_negative: np.ndarray
    query: np.ndarray
    first_row: np.ndarray
    pairs: np.ndarray
    known_positive_ids: np.ndarray
    positive_counts: np.ndarray
    negative_counts: np.ndarray
    rows_scored: int

    def apply(self, batches: list[Any]) -> Iterator[Any]:
        """Yield the record batches without the dropped rows and negatives, in schema `table.SCHEMA`."""
        row = negative = kept = 0
        for batch in batches:
            keep_row = self.keep_row[row : row + batch.num_rows]
            keep_negative = self.keep_negative[negative : negative + len(batch.column("negative_ids").values)]
            count = int(keep_row.sum())
            if count:
                content = _drop_negatives(batch, keep_negative).filter(pa.array(keep_row))
                yield self._add_known_positives(content, kept)
            row, negative, kept = row + batch.num_rows, negative + len(keep_negative), kept + count

    def _add_known_positives(self, content: Any, start: int) -> Any:
        """Add the columns `first_row` and `known_positives` to a batch of kept rows that begins at row `start`."""
        first_row = self.first_row[start : start + content.num_rows]
        query = self.query[start : start + content.num_rows]
        begin, end = (np.searchsorted(self.pairs, side << PAIR_SHIFT) for side in (query, query + 1))
        counts = np.where(first_row == np.arange(start, start + content.num_rows), end - begin, 0)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        at = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], counts)
        known_positive_ids = self.known_positive_ids[self.pairs[at] & ((1 << PAIR_SHIFT) - 1)]
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(known_positive_ids))
        columns = [content.column(name) for name in SCHEMA.names[:-2]]
        return pa.record_batch([*columns, pa.array(first_row), lists], schema=SCHEMA)


def select_rows(batches: list[Any], location: str, drops: DropCounter) -> RowSelection:
    """Select the rows and negatives of a scratch file to keep; dropped ones are counted in `drops`."""
    lines, query_ids = (_column_values(batches, name) for name in ("line", "query_id"))  # each [n]
    positive_counts, negative_counts = (_list_lengths(batches, f"{kind}_ids") for kind in ("positive", "negative"))
    keep_row = _first_occurrences(_column_values(batches, "row_id"))
    _count_drops(drops, REPEATED_ROW, location, lines[~keep_row])

    query = np.unique(query_ids, return_inverse=True)[1]  # [n] in 0..U-1
    positive_ids, negative_ids = (
        _list_values(batches, "positive_ids"),
        _list_values(batches, "negative_ids"),
    )  # [P], [M]
    known_positive_ids, positive = np.unique(positive_ids, return_inverse=True)  # [V], [P] in 0..V-1
    pairs = np.unique(np.repeat(query, positive_counts) << PAIR_SHIFT | positive)

    row_of = np.repeat(np.arange(len(query)), negative_counts)  # [M]
    false_negative = _are_known_positives(known_positive_ids, pairs, query[row_of], negative_ids)
    _count_drops(drops, KNOWN_POSITIVE, location, lines[row_of[false_negative & keep_row[row_of]]])
    negative_counts = negative_counts - np.bincount(row_of[false_negative], minlength=len(query))
    has_document = positive_counts + negative_counts > 0
    _count_drops(drops, NO_DOCUMENT, location, lines[keep_row & ~has_document])
    keep_row &= has_document

    first_of, inverse = np.unique(query[keep_row], return_index=True, return_inverse=True)[1:]
    return RowSelection(
        keep_row=keep_row,
        keep_negative=~false_negative,
        query=query[keep_row],
        first_row=first_of[inverse],
        pairs=pairs,
        known_positive_ids=known_positive_ids,
        positive_counts=positive_counts[keep_row],
        negative_counts=negative_counts[keep_row],
        rows_scored=int((_are_scored(batches, positive_counts, negative_counts) & keep_row).sum()),
    )


def _first_occurrences(row_ids: np.ndarray) -> np.ndarray:
    """[n] bool: rows whose id no earlier row has."""
    first = np.zeros(len(row_ids), dtype=bool)
    first[np.unique(row_ids, return_index=True)[1]] = True
    return first


def _are_scored(batches: list[Any], positive_counts: np.ndarray, negative_counts: np.ndarray) -> np.ndarray:
    """[n] bool: rows with teacher scores for all their documents."""
    scored: np.ndarray = (_is_valid(batches, "positive_scores") | (positive_counts == 0)) & (
        _is_valid(batches, "negative_scores") | (negative_counts == 0)
    )
    return scored


def _are_known_positives(
    known_positive_ids: np.ndarray, pairs: np.ndarray, query: np.ndarray, negative_ids: np.ndarray
) -> np.ndarray:
    """[M] bool: whether a negative is a known positive of its query."""
    if not len(negative_ids) or not len(known_positive_ids):
        return np.zeros(len(negative_ids), dtype=bool)
    at = np.minimum(np.searchsorted(known_positive_ids, negative_ids), len(known_positive_ids) - 1)
    pair = query << PAIR_SHIFT | at
    found = np.minimum(np.searchsorted(pairs, pair), len(pairs) - 1)
    is_known_positive: np.ndarray = (known_positive_ids[at] == negative_ids) & (pairs[found] == pair)
    return is_known_positive


def _drop_negatives(batch: Any, keep: np.ndarray) -> Any:
    if keep.all():
        return batch
    scores = batch.column("negative_scores")
    scored = np.repeat(scores.is_valid().to_numpy(zero_copy_only=False), _list_lengths([batch], "negative_ids"))
    for name, mask in (("negatives", keep), ("negative_ids", keep), ("negative_scores", keep[scored])):
        batch = batch.set_column(SCHEMA.names.index(name), name, _filter_lists(batch.column(name), mask))
    return batch


def _filter_lists(lists: Any, keep: np.ndarray) -> Any:
    """A list column without the elements that `keep` masks out; null lists stay null."""
    kept_before = np.concatenate([[0], np.cumsum(keep)])
    offsets = pa.array(kept_before[lists.offsets.to_numpy()], pa.int32())
    return pa.ListArray.from_arrays(offsets, lists.values.filter(pa.array(keep)), mask=lists.is_null())


def _column_values(batches: list[Any], name: str) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(batch.column(name).to_numpy() for batch in batches)])


def _list_values(batches: list[Any], name: str) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(batch.column(name).values.to_numpy() for batch in batches)])


def _list_lengths(batches: list[Any], name: str) -> np.ndarray:
    lengths = (np.diff(batch.column(name).offsets.to_numpy()).astype(np.int64) for batch in batches)
    return np.concatenate([np.zeros(0, np.int64), *lengths])


def _is_valid(batches: list[Any], name: str) -> np.ndarray:
    valid = (batch.column(name).is_valid().to_numpy(zero_copy_only=False) for batch in batches)
    return np.concatenate([np.zeros(0, dtype=bool), *valid])


def _count_drops(drops: DropCounter, reason: str, location: str, lines: np.ndarray) -> None:
    if len(lines):
        drops.add(reason, f"{location}:{lines[0]}", len(lines))
