"""Faults of labels, by the identities of texts alone.

Shapes: n rows, D documents over all rows (`SourceRows`).
"""

import numpy as np

from nestling.data_checks.near import PAIR_SHIFT, Pairs
from nestling.data_checks.rows import SourceRows


def repeated_rows(rows: SourceRows) -> np.ndarray:
    """[n] bool: equal in everything to an earlier row."""
    return _repeats(rows.row_ids)


def repeated_queries(rows: SourceRows) -> np.ndarray:
    """[n] bool: an earlier row has the same query."""
    return _repeats(rows.queries.which)


def repeated_documents(rows: SourceRows) -> np.ndarray:
    """[D] bool: the row has the document earlier in the same list, positives or negatives."""
    return _repeats(rows.row_of << PAIR_SHIFT | rows.documents.which << 1 | rows.is_positive)


def documents_like_the_query(rows: SourceRows) -> np.ndarray:
    """[D] bool: equal to the query of its row."""
    equal: np.ndarray = rows.document_ids == rows.query_ids[rows.row_of]
    return equal


def pairs_of_rows(rows: SourceRows) -> np.ndarray:
    """[D] int64, the same wherever query text and document text are."""
    pairs: np.ndarray = rows.queries.which[rows.row_of] << PAIR_SHIFT | rows.documents.which
    return pairs


def contradictions(rows: SourceRows) -> np.ndarray:
    """[D] bool: a negative that is a positive of the same query text, in its own row or another."""
    pair = pairs_of_rows(rows)
    found: np.ndarray = ~rows.is_positive & np.isin(pair, pair[rows.is_positive])
    return found


def other_scores(rows: SourceRows) -> np.ndarray:
    """[n] bool: graded pairs that an earlier row has with another score."""
    pair = pairs_of_rows(rows)  # a graded row has one document
    _, first, inverse = np.unique(pair, return_index=True, return_inverse=True)
    differs: np.ndarray = rows.scores != rows.scores[first[inverse]]
    return differs


def sharing(rows: SourceRows) -> np.ndarray:
    """int64, for each distinct document the number of rows that have it as a positive."""
    own = np.unique(rows.row_of[rows.is_positive] << PAIR_SHIFT | rows.documents.which[rows.is_positive])
    return np.bincount(own & ((1 << PAIR_SHIFT) - 1), minlength=len(rows.documents))


def near_in_row(rows: SourceRows, pairs: Pairs, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Documents that nearly equal an earlier one of their row, which stays.

    Args:
        rows: The rows.
        pairs: Nearly equal pairs of distinct documents.
        kept: [D] bool, the documents to choose from.

    Returns:
        (places of the earlier documents, places of the later ones), both int64 into the D documents.
    """
    which = rows.documents.which
    codes = np.unique(np.minimum(pairs.first, pairs.second) << PAIR_SHIFT | np.maximum(pairs.first, pairs.second))
    near = np.zeros(len(rows.documents), dtype=bool)
    near[pairs.first], near[pairs.second] = True, True
    places = np.flatnonzero(near[which] & kept)
    hits: list[tuple[int, int]] = []
    for distance in range(1, len(places)):
        earlier, after = places[:-distance], places[distance:]
        same_row = rows.row_of[earlier] == rows.row_of[after]
        if not same_row.any():
            break
        earlier, after = earlier[same_row], after[same_row]
        low, high = np.minimum(which[earlier], which[after]), np.maximum(which[earlier], which[after])
        found = np.isin(low << PAIR_SHIFT | high, codes)
        hits += zip(after[found].tolist(), earlier[found].tolist(), strict=True)
    return _greedy(sorted(hits))


def _greedy(hits: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Of sorted (later, earlier) places those whose earlier one is not itself the later of a chosen hit."""
    chosen: dict[int, int] = {}
    for after, earlier in hits:
        if after not in chosen and earlier not in chosen:
            chosen[after] = earlier
    return np.array(list(chosen.values()), dtype=np.int64), np.array(list(chosen), dtype=np.int64)


def _repeats(keys: np.ndarray) -> np.ndarray:
    repeated = np.ones(len(keys), dtype=bool)
    repeated[np.unique(keys, return_index=True)[1]] = False
    return repeated
