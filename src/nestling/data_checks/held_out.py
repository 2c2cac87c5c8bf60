"""Rows of training data as a folder: train.jsonl, and dev and test in the BEIR layout over all documents."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nestling.data_checks.cleaning import CleanedCopy, write_copy
from nestling.data_checks.groups import DEV, TEST, TRAIN
from nestling.data_checks.rows import SourceRows
from nestling.files import replace_text, write_jsonl

QRELS = "query-id\tcorpus-id\tscore\n"


@dataclass(frozen=True)
class SplitSize:
    """What is in a split: groups, rows, distinct queries and distinct positives."""

    split: str
    groups: int
    rows: int
    queries: int
    positives: int


def split_sizes(rows: SourceRows, groups: np.ndarray, split: np.ndarray) -> list[SplitSize]:
    """The sizes of all splits; `groups` and `split` are [n], of each row."""
    sizes = []
    for name in (TRAIN, DEV, TEST):
        own = split == name
        positives = rows.documents.which[rows.is_positive & own[rows.row_of]]
        distinct = (groups[own], rows.queries.which[own], positives)
        groups_of, queries, documents = (len(np.unique(each)) for each in distinct)
        sizes.append(SplitSize(name, groups_of, int(own.sum()), queries, documents))
    return sizes


def write_held_out(rows: SourceRows, groups: np.ndarray, split: np.ndarray, folder: Path) -> None:
    """Write all rows into a folder.

    - train.jsonl: the rows of train as they are (docs/data.md).
    - corpus.jsonl: the distinct documents of all rows.
    - queries.jsonl, qrels/dev.tsv, qrels/test.tsv: the other queries, with their positives at grade 1.

    Ids are hashes of the texts.

    Args:
        rows: The rows.
        groups: [n], the group of each row.
        split: [n], the split of each row.
        folder: An empty folder.
    """
    write_copy(CleanedCopy(rows, split == TRAIN, np.ones(len(rows.row_of), dtype=bool)), folder / "train.jsonl")
    write_judged(rows, groups, split, np.ones(len(rows.documents), dtype=bool), folder)


def write_judged(rows: SourceRows, groups: np.ndarray, split: np.ndarray, searched: np.ndarray, folder: Path) -> None:
    """Write the rows of dev and test in the BEIR layout.

    Queries of one group prove less than as many of different ones, so that they say which it is (`metadata.group`).

    Args:
        rows: All rows.
        groups: [n], the group of each row.
        split: [n], the split of each row.
        searched: [U] bool, which of the distinct documents make up the corpus; all positives of dev and test have to.
        folder: An existing folder.
    """
    document_ids = [f"d{each:016x}" for each in rows.document_ids[rows.documents.first].tolist()]
    query_ids = [f"q{each:016x}" for each in rows.query_text_ids[rows.queries.first].tolist()]
    chosen = np.flatnonzero(searched)
    documents = zip(chosen.tolist(), rows.documents.texts.at(chosen), strict=True)
    corpus = ({"_id": document_ids[i], "title": "", "text": text} for i, text in documents)
    write_jsonl(folder / "corpus.jsonl", corpus)
    group_of = query_groups(rows, groups, split != TRAIN)
    names = {query: {"metadata": {"group": query_ids[first]}} for query, first in group_of.items()}
    judged = (split[rows.row_of] != TRAIN) & rows.is_positive
    held_out = set(rows.queries.which[rows.row_of[judged]].tolist())
    queries = enumerate(zip(query_ids, rows.queries.texts, strict=True))
    asked = ({"_id": name, "text": text, **names.get(i, {})} for i, (name, text) in queries if i in held_out)
    write_jsonl(folder / "queries.jsonl", asked)
    (folder / "qrels").mkdir()
    for name in (DEV, TEST):
        lines = [
            f"{query_ids[query]}\t{document_ids[document]}\t1\n" for query, document in judgements(rows, split == name)
        ]
        if lines:
            replace_text(folder / "qrels" / f"{name}.tsv", QRELS + "".join(lines))


def query_groups(rows: SourceRows, groups: np.ndarray, own: np.ndarray) -> dict[int, int]:
    """Of each query that shares its group the query of the group's first row, as indices among the distinct ones.

    Args:
        rows: All rows.
        groups: [n], the group of each row, as its first row; a query is in one.
        own: [n] bool, the rows whose queries count.
    """
    queries, at = np.unique(rows.queries.which[own], return_index=True)
    group = groups[own][at]
    _, group_at, sizes = np.unique(group, return_inverse=True, return_counts=True)
    shared = sizes[group_at] > 1
    first = rows.queries.which[group[shared]]
    return dict(zip(queries[shared].tolist(), first.tolist(), strict=True))


def searched_documents(rows: SourceRows, own: np.ndarray, least: int) -> np.ndarray:
    """[U] bool: the distinct documents of the rows in `own`, [n] bool, and others until there are `least` of them.

    The others are those with the lowest ids, hashes of their texts, so that rows added later change few of them.
    """
    searched = np.zeros(len(rows.documents), dtype=bool)
    searched[rows.documents.which[own[rows.row_of]]] = True
    order = np.argsort(rows.document_ids[rows.documents.first])
    others = order[~searched[order]]
    searched[others[: max(0, least - int(searched.sum()))]] = True
    return searched


def judgements(rows: SourceRows, own: np.ndarray) -> Iterator[tuple[int, int]]:
    """Distinct (query, positive) of the rows in `own`, [n] bool, as indices among the distinct ones."""
    positive = rows.is_positive & own[rows.row_of]
    pairs = zip(
        rows.queries.which[rows.row_of[positive]].tolist(), rows.documents.which[positive].tolist(), strict=True
    )
    yield from dict.fromkeys(pairs)
