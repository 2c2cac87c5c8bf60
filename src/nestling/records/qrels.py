"""Relevance judgements of a BEIR folder (qrels/SPLIT.tsv), with queries and documents as positions."""

import math
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nestling.records.lines import read_lines
from nestling.records.record import FieldError, located, text_id
from nestling.records.summary import DropCounter

if TYPE_CHECKING:
    from nestling.records.collection import Collection

HEADER = ["query-id", "corpus-id", "score"]
FORMS = "query-id TAB corpus-id TAB score (BEIR), or query-id 0 corpus-id score (TREC)"
REPEATED = "judgement repeated"
EMPTY_DOCUMENT = "document with neither title nor text"


@dataclass(frozen=True)
class Judgements:
    """m relevance judgements, sorted by query; judgements of the same query are in the order of the file.

    Args:
        query: [m] int64, position of the query.
        document: [m] int64, position of the document.
        grade: [m] float64.
        line: [m] int64, 1-based line of the file.
    """

    query: np.ndarray
    document: np.ndarray
    grade: np.ndarray
    line: np.ndarray

    def select(self, index: np.ndarray) -> "Judgements":
        """The judgements at a boolean mask or at positions."""
        return Judgements(self.query[index], self.document[index], self.grade[index], self.line[index])


def read_qrels(path: Path, queries: "Collection", corpus: "Collection", drops: DropCounter) -> Judgements:
    """Read the judgements of a split, in three columns (BEIR, with or without its header) or in four (TREC).

    A judgement that is repeated with the same grade is dropped and counted.

    Raises:
        ValueError: An unknown query or document, an empty document, two grades for one pair, or no judgement at all.
    """
    query_keys, document_keys, grades, lines = _parse(path)
    _refuse_empty(path, corpus, document_keys, lines)
    query, document = queries.find(query_keys), corpus.find(document_keys)
    for field, file, found in (("query-id", "queries.jsonl", query), ("corpus-id", "corpus.jsonl", document)):
        _refuse_unknown(path, field, file, found, lines)
    order = np.argsort(query, kind="stable")
    return _drop_repeated(path, Judgements(query, document, grades, lines).select(order), drops)


def _parse(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`text_id` of the query ids and of the document ids, grades and lines; each [m]."""
    queries, documents, grades, lines = array("q"), array("q"), array("d"), array("q")
    columns = 0
    for number, line in read_lines(path):
        cells = _cells(line)
        columns = columns or len(cells)
        if not cells or (number == 1 and cells == HEADER):
            continue
        with located(str(path), number):
            query, document, grade = _judgement(cells, columns, "header" if number == 1 else "score")
        queries.append(query)
        documents.append(document)
        grades.append(grade)
        lines.append(number)
    if not lines:
        raise ValueError(f"{path}:1: file: holds no judgements; expected at least one")
    return np.array(queries), np.array(documents), np.array(grades), np.array(lines)


def _cells(line: str) -> list[str]:
    """The cells of a line with tabs between them, else those with blanks between them, as TREC's may be."""
    cells = line.rstrip().split("\t")
    return cells if len(cells) >= len(HEADER) else line.split()


def _judgement(cells: list[str], columns: int, graded: str) -> tuple[int, int, float]:
    """`text_id` of the query's and the document's id, and the grade; `graded` is the field of errors about it."""
    if len(cells) not in (3, 4):
        raise FieldError("line", f"{len(cells)} cells; expected {FORMS}")
    if len(cells) != columns:
        raise FieldError("line", f"{len(cells)} cells, where the first line has {columns}; expected the same in all")
    try:
        grade = float(cells[-1])
    except ValueError:
        grade = math.nan
    if not math.isfinite(grade):
        found = (
            f"a finite number, got {cells[-1][:40]!r}"
            if graded == "score"
            else f"{FORMS}, got {' TAB '.join(cells)[:80]!r}"
        )
        raise FieldError(graded, f"expected {found}")
    return text_id(cells[0]), text_id(cells[-2]), grade


def _refuse_unknown(path: Path, field: str, file: str, found: np.ndarray, lines: np.ndarray) -> None:
    missing = lines[found < 0]
    if len(missing):
        raise ValueError(
            f"{path}:{missing[0]}: {field}: not in {file}, like {len(missing):,} of {len(lines):,} judgements; "
            f"remove these judgements, or add what they name"
        )


def _refuse_empty(path: Path, corpus: "Collection", document_keys: np.ndarray, lines: np.ndarray) -> None:
    judged = np.flatnonzero(np.isin(document_keys, corpus.empty_keys))
    if len(judged):
        line = corpus.empty_lines[corpus.empty_keys == document_keys[judged[0]]][0]
        raise ValueError(
            f"{path}:{lines[judged[0]]}: corpus-id: the document (corpus.jsonl:{line}) has neither title nor text; "
            f"remove the judgement, or add a text"
        )


def _drop_repeated(path: Path, judgements: Judgements, drops: DropCounter) -> Judgements:
    order = np.lexsort((judgements.line, judgements.document, judgements.query))
    query, document, grade, line = (
        values[order] for values in (judgements.query, judgements.document, judgements.grade, judgements.line)
    )
    repeats = np.flatnonzero((query[1:] == query[:-1]) & (document[1:] == document[:-1])) + 1
    conflicts = repeats[grade[repeats] != grade[repeats - 1]]
    if len(conflicts):
        at = conflicts[np.argmin(line[conflicts])]
        raise ValueError(f"{path}:{line[at]}: score: {grade[at]:g}, but {grade[at - 1]:g} in line {line[at - 1]}")
    if len(repeats):
        drops.add(REPEATED, f"{path}:{line[repeats].min()}", len(repeats))
    return judgements.select(np.sort(np.delete(order, repeats)))
