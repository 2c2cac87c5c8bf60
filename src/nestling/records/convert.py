"""Streamed conversion of records into the Arrow file behind a `RecordTable`, in two passes.

1. Each record is cleaned by itself and written to a scratch file together with the `text_id` of its texts; at most one
   record batch is in memory.
2. Repeated rows, and negatives that are known positives of their query, are found from the ids alone, and the
   scratch file is copied without them.

Memory is O(n + P + M) integers for n rows with P positives and M hard negatives in all; texts stay on disk.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from nestling.records.arrow_files import open_batches, write_batches
from nestling.records.clean import CleanRecord, clean
from nestling.records.instruction_counts import count_instructions
from nestling.records.record import Record, located
from nestling.records.selection import NO_DOCUMENT, RowSelection, select_rows
from nestling.records.store import scratch_file
from nestling.records.summary import DropCounter, LoadSummary
from nestling.records.table import CONTENT, SCHEMA

SCRATCH_SCHEMA = pa.schema([*CONTENT, pa.field("line", pa.int64()), pa.field("row_id", pa.int64())])
ROWS_PER_BATCH = 4096
TEXT_PER_BATCH = 32 << 20  # characters; an Arrow text column holds 2 GiB at most
NO_POSITIVE = "row without a positive that differs from its query"


class RecordSource(Protocol):
    """A source of training records.

    Attributes:
        name: The source as the user named it.
        location: The file that line numbers refer to.
        drops: Counts of dropped rows and documents; the conversion adds to them.
        dialect: Name of the dialect; available after the first record was read.
        ignored: Unknown field -> number of rows that have it; complete after the last record was read.
    """

    name: str
    location: str
    drops: DropCounter

    @property
    def dialect(self) -> str: ...

    @property
    def ignored(self) -> Mapping[str, int]: ...

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield (line, record) pairs."""


def convert(source: RecordSource, path: Path, *, allow_no_positives: bool, instruction: str | None = None) -> None:
    """Write the records of a source to an Arrow file with schema `table.SCHEMA` and its `LoadSummary` as metadata.

    Rows that have no positive after cleaning are dropped; with `allow_no_positives`, only rows that have no document.
    `instruction` is what rows without one are read with: rows that have it are written without.

    Raises:
        ValueError: The source has no rows, or none that can be kept.
    """
    with scratch_file(path.parent) as scratch:
        rows_read = _write_scratch(source, scratch, allow_no_positives, instruction)
        if not rows_read:
            raise ValueError(f"{source.location}:1: file: holds no rows; expected at least one")
        batches, _ = open_batches(scratch)
        selection = select_rows(batches, source.location, source.drops)
        summary = _summarise(source, rows_read, selection, batches)
        if not summary.rows_kept:
            raise ValueError(f"{source.location}:1: file: no row can be kept\n{summary}")
        with write_batches(path, SCHEMA, summary.to_json()) as writer:
            for batch in selection.apply(batches):
                writer.write_batch(batch)


def _write_scratch(source: RecordSource, path: Path, allow_no_positives: bool, instruction: str | None) -> int:
    """Write the cleaned records and return the number of rows read."""
    rows_read = size = 0
    rows: list[tuple[Any, ...]] = []
    with write_batches(path, SCRATCH_SCHEMA) as writer:
        for line, record in source.records():
            rows_read += 1
            if record.instruction is not None and record.instruction == instruction:
                record = replace(record, instruction=None)
            place = f"{source.location}:{line}"
            with located(source.location, line):
                cleaned = clean(record, lambda reason: source.drops.add(reason, place))  # noqa: B023
            if not cleaned.positive_ids and not (allow_no_positives and cleaned.negative_ids):
                source.drops.add(NO_DOCUMENT if allow_no_positives else NO_POSITIVE, place)
                continue
            rows.append(_columns(cleaned, line))
            size += len(record.query) + sum(map(len, record.positives)) + sum(map(len, record.negatives))
            if len(rows) == ROWS_PER_BATCH or size >= TEXT_PER_BATCH:
                writer.write_batch(_batch(rows))
                rows, size = [], 0
        if rows:
            writer.write_batch(_batch(rows))
    return rows_read


def _columns(cleaned: CleanRecord, line: int) -> tuple[Any, ...]:
    row = cleaned.record
    content = (row.query, row.positives, row.negatives, row.positive_scores, row.negative_scores)
    ids = (cleaned.query_id, cleaned.positive_ids, cleaned.negative_ids)
    return *content, row.instruction, row.score, *ids, line, cleaned.row_id


def _batch(rows: list[tuple[Any, ...]]) -> Any:
    columns = [
        pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCRATCH_SCHEMA, strict=True)
    ]
    return pa.record_batch(columns, schema=SCRATCH_SCHEMA)


def _summarise(source: RecordSource, rows_read: int, selection: RowSelection, batches: list[Any]) -> LoadSummary:
    positives, negatives = selection.positive_counts, selection.negative_counts
    return LoadSummary(
        source=source.name,
        dialect=source.dialect,
        rows_read=rows_read,
        rows_kept=len(positives),
        rows_scored=selection.rows_scored,
        rows_without_positives=int((positives == 0).sum()),
        rows_with_negatives=int((negatives > 0).sum()),
        positives=int(positives.sum()),
        negatives=int(negatives.sum()),
        max_positives=int(np.max(positives, initial=0)),
        max_negatives=int(np.max(negatives, initial=0)),
        drops=source.drops.drops(),
        ignored=tuple(sorted(item for item in source.ignored.items() if item[1])),
        instructions=count_instructions(_kept(batches, "instruction", selection.keep_row)),
    )


def _kept(batches: list[Any], column: str, keep_row: np.ndarray) -> Iterator[Any]:
    """A column of each batch, without the dropped rows."""
    start = 0
    for batch in batches:
        yield batch.column(column).filter(pa.array(keep_row[start : start + batch.num_rows]))
        start += batch.num_rows
