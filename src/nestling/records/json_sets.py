"""Retrieval sets in one JSON object, as LlamaIndex writes them: `queries`, `corpus` and `relevant_docs`, by ids."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nestling.records import fields
from nestling.records.fields import NumberedRows, Row
from nestling.records.record import FieldError, located
from nestling.records.retrieval_set import RetrievalSet
from nestling.records.summary import LoadSummary

PARTS = ("queries", "corpus", "relevant_docs")


def is_set(row: Row) -> bool:
    """Whether a row is a whole retrieval set."""
    return all(isinstance(row.get(part), dict) for part in PARTS)


def training_rows(path: Path, rows: NumberedRows) -> NumberedRows:
    """The rows; of a retrieval set, one for each query with judgements, in the nestling dialect."""
    for line, row in rows:
        if not is_set(row):
            yield line, row
            continue
        with located(str(path), line):
            texts = {identifier: _text("corpus", row["corpus"], identifier) for identifier in row["corpus"]}
            judged = list(_judged(row))
        for query, grades in judged:
            positives = [texts[identifier] for identifier, grade in grades.items() if grade > 0]
            negatives = [texts[identifier] for identifier, grade in grades.items() if grade <= 0]
            yield line, {"query": row["queries"][query], "positives": positives, "negatives": negatives}


def read_set(path: Path, split: str, line: int, row: Row) -> RetrievalSet:
    """The retrieval set in a row for evaluation. Raises ValueError for ids without a text, and for empty texts."""
    with located(str(path), line):
        documents = [_text("corpus", row["corpus"], identifier) for identifier in row["corpus"]]
        judged = list(_judged(row))
        queries = [_text("queries", row["queries"], query) for query, _ in judged]
        if not any(grade > 0 for _, grades in judged for grade in grades.values()):
            raise FieldError("relevant_docs", "no judgement is above 0, so there is nothing to find")
    position = {identifier: at for at, identifier in enumerate(row["corpus"])}
    positive = [{name: grade for name, grade in grades.items() if grade > 0} for _, grades in judged]
    counts = [len(grades) for grades in positive]
    return RetrievalSet(
        name=path.name,
        split=split,
        document_ids=list(row["corpus"]),
        documents=documents,
        query_ids=[query for query, _ in judged],
        queries=queries,
        relevant=[np.array([position[name] for name in grades], dtype=np.int64) for grades in positive],
        gains=[np.array(list(grades.values()), dtype=np.float64) for grades in positive],
        own_documents=np.full(len(judged), -1),  # ids of queries and documents have nothing to do with each other here
        summary=LoadSummary(
            source=str(path),
            dialect=f"retrieval set, {len(documents):,} documents",
            rows_read=len(judged),
            rows_kept=len(judged),
            positives=sum(counts),
            negatives=sum(len(grades) for _, grades in judged) - sum(counts),
            max_positives=max(counts),
            max_negatives=max(len(grades) - count for (_, grades), count in zip(judged, counts, strict=True)),
        ),
    )


def _judged(row: Row) -> Iterator[tuple[str, dict[str, float]]]:
    """The queries with judgements, in the order of the queries, each with the grades of its documents by id."""
    for query in row["relevant_docs"]:
        if query not in row["queries"]:
            raise FieldError(f"relevant_docs[{query}]", "there is no query of this id")
    for query in row["queries"]:
        if query in row["relevant_docs"]:
            yield query, _grades(row, query, row["relevant_docs"][query])


def _grades(row: Row, query: str, judged: Any) -> dict[str, float]:
    """By id the grades of a query's documents, which are 1 if the documents are only listed."""
    field = f"relevant_docs[{query}]"
    if not isinstance(judged, dict | list):
        raise FieldError(field, "expected a list of ids, or grades by ids")
    grades = judged if isinstance(judged, dict) else dict.fromkeys(map(str, judged), 1)
    for identifier in grades:
        if identifier not in row["corpus"]:
            raise FieldError(field, f"there is no document {identifier[:40]!r} in corpus")
    return {identifier: fields.check_number(field, grade) for identifier, grade in grades.items()}


def _text(part: str, texts: dict[str, Any], identifier: str) -> str:
    """The text of an id, alone or as an object with title and text."""
    field, value = f"{part}[{identifier}]", texts[identifier]
    return fields.passage(field, value) if isinstance(value, dict) else fields.check_text(field, value)
