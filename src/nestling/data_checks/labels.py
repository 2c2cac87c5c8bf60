"""Label errors: repeated rows and documents, contradictions and conflicting scores, found from text ids.

Shapes: n rows, D documents over all rows (`SourceRows`).
"""

import numpy as np

from nestling.data_checks.near_duplicates import PAIR_SHIFT, NearDuplicatePairs
from nestling.data_checks.rows import SourceRows


def repeated_rows(rows: SourceRows) -> np.ndarray:
    """[n] bool: rows that are identical to an earlier row."""
    return _is_repeated(rows.row_ids)


def repeated_queries(rows: SourceRows) -> np.ndarray:
    """[n] bool: rows with the query of an earlier row."""
    return _is_repeated(rows.query_ids)


def repeated_documents(rows: SourceRows) -> np.ndarray:
    """[D] bool: documents that occur earlier in the same list (positives or negatives) of their row."""
    return _is_repeated(rows.row_of << PAIR_SHIFT | rows.documents.which << 1 | rows.is_positive)


def documents_equal_to_query(rows: SourceRows) -> np.ndarray:
    """[D] bool: documents equal to the query of their row."""
    equal: np.ndarray = rows.document_ids == rows.query_text_ids[rows.row_of]
    return equal


def text_pairs(rows: SourceRows) -> np.ndarray:
    """[D] int64: a code for the pair of query (text and instruction) and document text."""
    query = np.unique(rows.query_ids, return_inverse=True)[1]
    pairs: np.ndarray = query[rows.row_of] << PAIR_SHIFT | rows.documents.which
    return pairs


def contradictions(rows: SourceRows) -> np.ndarray:
    """[D] bool: negatives that are a positive of the same query, in the same row or another."""
    pair = text_pairs(rows)
    found: np.ndarray = ~rows.is_positive & np.isin(pair, pair[rows.is_positive])
    return found


def conflicting_scores(rows: SourceRows) -> np.ndarray:
    """[n] bool: graded pairs that an earlier row has with a different score."""
    pair = text_pairs(rows)  # a graded row has one document
    _, first, inverse = np.unique(pair, return_index=True, return_inverse=True)
    differs: np.ndarray = rows.scores != rows.scores[first[inverse]]
    return differs


def rows_per_positive(rows: SourceRows) -> np.ndarray:
    """[U] int64: for each distinct document, the number of rows that have it as a positive."""
    pairs = np.unique(rows.row_of[rows.is_positive] << PAIR_SHIFT | rows.documents.which[rows.is_positive])
    return np.bincount(pairs & ((1 << PAIR_SHIFT) - 1), minlength=len(rows.documents))


def near_duplicates_in_row(
    rows: SourceRows, pairs: NearDuplicatePairs, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Documents that are a near duplicate of an earlier document of the same row, which is kept.

    Args:
        rows: The rows.
        pairs: Near duplicates among the distinct documents.
        kept: [D] bool, the documents to consider.

    Returns:
        (indices of the earlier documents, indices of the later ones), both int64 into the D documents.
    """
    which = rows.documents.which
    codes = np.unique(np.minimum(pairs.first, pairs.second) << PAIR_SHIFT | np.maximum(pairs.first, pairs.second))
    near_duplicates = np.zeros(len(rows.documents), dtype=bool)
    near_duplicates[pairs.first], near_duplicates[pairs.second] = True, True
    candidates = np.flatnonzero(near_duplicates[which] & kept)
    duplicates: list[tuple[int, int]] = []
    row, at = rows.row_of[candidates], np.arange(len(candidates))
    for distance in range(1, len(candidates)):
        # Only candidates whose row goes on so far: of many rows and a long one, the work is that of the long one.
        at = at[: np.searchsorted(at, len(candidates) - distance)]
        at = at[row[at] == row[at + distance]]
        if not len(at):
            break
        earlier, after = candidates[at], candidates[at + distance]
        low, high = np.minimum(which[earlier], which[after]), np.maximum(which[earlier], which[after])
        pair = low << PAIR_SHIFT | high
        # Not np.isin, which sorts all codes again for each distance.
        found = codes[np.minimum(np.searchsorted(codes, pair), len(codes) - 1)] == pair
        duplicates += zip(after[found].tolist(), earlier[found].tolist(), strict=True)
    return _without_chains(sorted(duplicates))


def near_queries(rows: SourceRows, pairs: NearDuplicatePairs, kept: np.ndarray) -> np.ndarray:
    """[n] bool: rows whose query is a near duplicate of an earlier one with the same instruction that remains.

    Args:
        rows: The rows.
        pairs: Near duplicates among the distinct texts of queries.
        kept: [n] bool, the rows to consider.
    """
    queries = rows.instruction_codes << PAIR_SHIFT | rows.queries.which
    paired = np.zeros(len(rows.queries), dtype=bool)
    paired[pairs.first], paired[pairs.second] = True, True
    instructions: dict[int, set[int]] = {}
    for query in np.unique(queries[kept & paired[rows.queries.which]]).tolist():
        instructions.setdefault(query & ((1 << PAIR_SHIFT) - 1), set()).add(query >> PAIR_SHIFT << PAIR_SHIFT)
    found: set[int] = set()
    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        shared = instructions.get(first, set()) & instructions.get(second, set())
        found |= {code | second for code in shared if code | first not in found}
    repeated: np.ndarray = np.isin(queries, np.fromiter(found, np.int64, len(found)))
    return repeated


def _without_chains(duplicates: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Of sorted (later, earlier) pairs, those whose earlier document is not itself the later one of a chosen pair."""
    chosen: dict[int, int] = {}
    for after, earlier in duplicates:
        if after not in chosen and earlier not in chosen:
            chosen[after] = earlier
    return np.array(list(chosen.values()), dtype=np.int64), np.array(list(chosen), dtype=np.int64)


def _is_repeated(keys: np.ndarray) -> np.ndarray:
    repeated = np.ones(len(keys), dtype=bool)
    repeated[np.unique(keys, return_index=True)[1]] = False
    return repeated
