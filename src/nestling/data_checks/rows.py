"""All rows of a dataset, nothing dropped, with the line of every row and the id of every text.

Shapes: n rows, D documents over all rows (row by row, positives before negatives), U distinct texts of queries or
documents, in the order of their first occurrence.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nestling.records.arrow_files import open_batches, write_batches
from nestling.records.clean import CleanRecord, checked_query_id, checked_text_id
from nestling.records.convert import ROWS_PER_BATCH, TEXT_PER_BATCH, RecordSource
from nestling.records.instruction_counts import count_instructions
from nestling.records.load import default_name, find_source
from nestling.records.record import Kind, Record, located, text_id
from nestling.records.store import cached, scratch_file
from nestling.records.summary import LoadSummary
from nestling.records.texts import Texts

_SCORES = pa.list_(pa.float64())
SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("documents", pa.list_(pa.string())),
        ("positives", pa.int64()),
        ("positive_scores", _SCORES),
        ("negative_scores", _SCORES),
        ("instruction", pa.string()),
        ("score", pa.float64()),
        ("line", pa.int64()),
        ("row_id", pa.int64()),
        ("query_id", pa.int64()),
        ("query_text_id", pa.int64()),
        ("document_ids", pa.list_(pa.int64())),
    ]
)


@dataclass(frozen=True)
class DistinctTexts:
    """The distinct texts among N texts.

    Args:
        which: [N] int64, for each text its index among the distinct ones.
        first: [U] int64, index among the N texts of the first occurrence of each distinct text, ascending.
        texts: The U distinct texts; read from disk on access.
    """

    which: np.ndarray
    first: np.ndarray
    texts: Texts

    def __len__(self) -> int:
        return len(self.first)

    @cached_property
    def counts(self) -> np.ndarray:
        """[U] int64: number of occurrences of each distinct text."""
        return np.bincount(self.which, minlength=len(self))


class SourceRows:
    """All rows of a source. Texts stay in the file; a few integers per row and document are in memory.

    Args:
        path: Arrow file with schema `SCHEMA` and its `LoadSummary` as metadata.
        location: The file that line numbers refer to.

    Attributes:
        summary: Counts of what was read.
        positives: [n] int64, number of positives of each row.
        starts: [n + 1] int64, index of the first document of each row.
        row_of: [D] int64, row of each document.
        is_positive: [D] bool, whether it is a positive.
    """

    def __init__(self, path: Path, location: str) -> None:
        self.path, self.location = path, location
        self._batches, meta = open_batches(path)
        self.summary = LoadSummary.from_json(meta)
        self.positives = self._column("positives")
        lists = [batch.column("document_ids").value_lengths().to_numpy() for batch in self._batches]
        self.starts = np.concatenate([[0], np.cumsum(np.concatenate(lists), dtype=np.int64)])
        self.row_of = np.repeat(np.arange(len(self)), np.diff(self.starts))
        self.is_positive = np.arange(len(self.row_of)) - self.starts[self.row_of] < self.positives[self.row_of]

    def __len__(self) -> int:
        return len(self.positives)

    @cached_property
    def graded(self) -> bool:
        """Whether the rows are graded pairs."""
        return bool(self._batches[0].column("score")[0].is_valid)

    @cached_property
    def scores(self) -> np.ndarray:
        """[n] float64: scores of graded pairs."""
        return self._column("score")

    @property
    def texts_by_kind(self) -> "dict[Kind, DistinctTexts]":
        """The distinct queries and documents."""
        return {"query": self.queries, "document": self.documents}

    @cached_property
    def row_ids(self) -> np.ndarray:
        """[n] int64: hashes of whole rows, equal for identical rows."""
        return self._column("row_id")

    @cached_property
    def query_ids(self) -> np.ndarray:
        """[n] int64: `query_id` of the queries, of their texts and instructions."""
        return self._column("query_id")

    @cached_property
    def query_text_ids(self) -> np.ndarray:
        """[n] int64: `text_id` of the queries."""
        return self._column("query_text_id")

    @cached_property
    def instruction_codes(self) -> np.ndarray:
        """[n] int64: equal for rows with the same instruction, 0 for rows without one."""
        column: Any = pa.chunked_array([batch.column("instruction") for batch in self._batches])
        indices = column.dictionary_encode().combine_chunks().indices.fill_null(-1)
        codes: np.ndarray = indices.to_numpy(zero_copy_only=False).astype(np.int64) + 1
        return codes

    @cached_property
    def document_ids(self) -> np.ndarray:
        """[D] int64: `text_id` of the documents."""
        return np.concatenate([batch.column("document_ids").flatten().to_numpy() for batch in self._batches])

    @cached_property
    def queries(self) -> DistinctTexts:
        return self._distinct("query", self.query_text_ids)

    @cached_property
    def documents(self) -> DistinctTexts:
        return self._distinct("documents", self.document_ids)

    def place(self, row: int) -> str:
        """`file:line` of a row."""
        return f"{self.location}:{self._lines[row]}"

    def records(self, keep_row: np.ndarray, keep_document: np.ndarray) -> Iterator[Record]:
        """Yield the kept rows, each with its kept documents and their scores.

        Args:
            keep_row: [n] bool.
            keep_document: [D] bool.
        """
        row = 0
        for batch in self._batches:
            for values in batch.to_pylist():
                if keep_row[row]:
                    yield _record(values, keep_document[self.starts[row] : self.starts[row + 1]])
                row += 1

    @cached_property
    def _lines(self) -> np.ndarray:
        return self._column("line")

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([batch.column(name).to_numpy(zero_copy_only=False) for batch in self._batches])

    def _distinct(self, column: str, ids: np.ndarray) -> DistinctTexts:
        _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        order = np.argsort(first)
        number = np.empty_like(order)
        number[order] = np.arange(len(order))
        return DistinctTexts(number[inverse], first[order], Texts(self.path, column, first[order]))


def open_rows(
    source: str | Path,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> SourceRows:
    """Read any source that `load_records` reads, through the same cache; rows with negatives only are included.

    Raises ValueError as `load_records` does: `file:line: field: reason`.
    """
    key, open_source = find_source(source, split, cache_dir, progress, allow_no_positives=True, columns=columns)
    name = f"{default_name(Path(source))}-as-it-is"
    path = cached(name, [*key, "as it is"], cache_dir, lambda file: _write_rows(open_source(), file))
    beir = Path(source) / "qrels" / f"{split}.tsv"
    is_file = Path(source).is_file()
    return SourceRows(path, str(source) if is_file else str(beir) if beir.is_file() else f"{source}[{split}]")


def _write_rows(source: RecordSource, path: Path) -> None:
    with scratch_file(path.parent) as scratch:
        _write_scratch(source, scratch)
        batches = open_batches(scratch)[0]
        if not batches:
            raise ValueError(f"{source.location}:1: file: holds no rows; expected at least one")
        # The ignored fields are known at the end, but metadata is at the beginning of the file.
        with write_batches(path, SCHEMA, _summarise(source, batches).to_json()) as writer:
            for batch in batches:
                writer.write_batch(batch)


def _write_scratch(source: RecordSource, path: Path) -> None:
    rows: list[dict[str, Any]] = []
    size = 0
    with write_batches(path, SCHEMA) as writer:
        for line, record in source.records():
            with located(source.location, line):
                rows.append(_columns(record, line))
            size += len(record.query) + sum(map(len, record.positives)) + sum(map(len, record.negatives))
            if len(rows) == ROWS_PER_BATCH or size >= TEXT_PER_BATCH:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
                rows, size = [], 0
        if rows:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))


def _summarise(source: RecordSource, batches: list[Any]) -> LoadSummary:
    positives = np.concatenate([batch.column("positives").to_numpy() for batch in batches])
    documents = np.concatenate([batch.column("document_ids").value_lengths().to_numpy() for batch in batches])
    negatives = documents - positives
    return LoadSummary(
        source=source.name,
        dialect=source.dialect,
        rows_read=len(positives),
        rows_kept=len(positives),
        positives=int(positives.sum()),
        negatives=int(negatives.sum()),
        rows_with_negatives=int((negatives > 0).sum()),
        max_positives=int(positives.max()),
        max_negatives=int(negatives.max()),
        drops=source.drops.drops(),
        ignored=tuple(sorted(item for item in source.ignored.items() if item[1])),
        instructions=count_instructions(batch.column("instruction") for batch in batches),
    )


def _columns(record: Record, line: int) -> dict[str, Any]:
    positive_ids = [checked_text_id(f"positives[{i}]", text) for i, text in enumerate(record.positives)]
    negative_ids = [checked_text_id(f"negatives[{i}]", text) for i, text in enumerate(record.negatives)]
    cleaned = CleanRecord(record, checked_query_id(record), positive_ids, negative_ids)
    return {
        "query": record.query,
        "documents": record.positives + record.negatives,
        "positives": len(record.positives),
        "positive_scores": record.positive_scores,
        "negative_scores": record.negative_scores,
        "instruction": record.instruction,
        "score": record.score,
        "line": line,
        "row_id": cleaned.row_id,
        "query_id": cleaned.query_id,
        "query_text_id": text_id(record.query),
        "document_ids": positive_ids + negative_ids,
    }


def _record(values: dict[str, Any], keep: np.ndarray) -> Record:
    first, kept = values["positives"], keep.tolist()
    documents = values["documents"]
    record = Record(
        query=values["query"],
        positives=_select(documents[:first], kept[:first]),
        negatives=_select(documents[first:], kept[first:]),
        instruction=values["instruction"],
        score=values["score"],
    )
    positive_scores, negative_scores = values["positive_scores"], values["negative_scores"]
    return replace(
        record,
        positive_scores=None if positive_scores is None else _select(positive_scores, kept[:first]),
        negative_scores=None if negative_scores is None else _select(negative_scores, kept[first:]),
    )


def _select(values: list[Any], kept: list[bool]) -> tuple[Any, ...]:
    return tuple(value for value, keep in zip(values, kept, strict=True) if keep)
