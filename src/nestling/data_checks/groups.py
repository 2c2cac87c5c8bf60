"""Groups of rows that no split may tear apart: rows of one query or positive, or of near duplicates of them.

Shapes: n rows, D documents over all rows, U distinct texts (`nestling.data_checks.rows`).
"""

from collections.abc import Iterator

import numpy as np
import xxhash

from nestling.data_checks.near_duplicates import NearDuplicateCriterion, minhash_texts, near_duplicates_within
from nestling.data_checks.rows import DistinctTexts, SourceRows

TRAIN, DEV, TEST = "train", "dev", "test"


def group_rows(
    rows: SourceRows, criterion: NearDuplicateCriterion, *, documents: bool = True, progress: bool = False
) -> np.ndarray:
    """The groups: [n] int64, of each row the first row of its group.

    Args:
        rows: The rows.
        criterion: When two texts are near duplicates.
        documents: Whether rows that share a positive are of one group too, or only those that share a query.
        progress: Show progress bars.
    """
    root = np.arange(len(rows))
    join(root, links(root.copy(), rows.queries.which, rows.queries, criterion, "queries" if progress else None))
    if documents:
        positive = rows.is_positive
        row, which = rows.row_of[positive], rows.documents.which[positive]
        join(root, links(row, which, rows.documents, criterion, "documents" if progress else None))
    return np.array([find(root, row) for row in range(len(rows))], dtype=np.int64)


def links(
    row: np.ndarray, which: np.ndarray, distinct: DistinctTexts, criterion: NearDuplicateCriterion, label: str | None
) -> Iterator[tuple[int, int]]:
    """Pairs of rows that share a text, or have near duplicates.

    Args:
        row: [m] int64, ascending, the rows of m texts.
        which: [m] int64, of each text its index among the distinct ones.
        distinct: The U distinct texts.
        criterion: When two of them are near duplicates.
        label: Label of a progress bar; None for no bar.
    """
    first = np.full(len(distinct), -1)
    first[which[::-1]] = row[::-1]
    yield from zip(row.tolist(), first[which].tolist(), strict=True)
    near = near_duplicates_within(distinct.texts, minhash_texts(distinct.texts, criterion, label), criterion)
    one, other = first[near.first], first[near.second]
    known = (one >= 0) & (other >= 0)
    yield from zip(one[known].tolist(), other[known].tolist(), strict=True)


def join(root: np.ndarray, pairs: Iterator[tuple[int, int]]) -> None:
    """Join the groups of each pair of rows in `root`, a forest in which the first row of a group is its root."""
    for one, other in pairs:
        low, high = sorted((find(root, one), find(root, other)))
        root[high] = low


def find(root: np.ndarray, row: int) -> int:
    """The root of a row; halves the way to it."""
    while root[row] != row:
        root[row] = root[root[row]]
        row = int(root[row])
    return row


def assign(rows: SourceRows, groups: np.ndarray, *, dev_share: float, test_share: float, seed: int) -> np.ndarray:
    """The split of each row, [n] of `TRAIN`, `DEV` and `TEST`.

    It is a hash of the seed and of the query of the group's first row: rows that are added at the end move none of the
    others, unless they join two groups, which then are where the first was.
    """
    first = np.unique(groups)
    hashes = (xxhash.xxh3_64_intdigest(f"{seed} {query}".encode()) for query in rows.query_text_ids[first].tolist())
    at = np.array([each / 2**64 for each in hashes])
    split = np.where(at < test_share, TEST, np.where(at < test_share + dev_share, DEV, TRAIN))
    chosen: np.ndarray = split[np.searchsorted(first, groups)]
    return chosen
