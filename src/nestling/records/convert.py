"""Streamed conversion of records into the Arrow file behind a `RecordTable`, in two passes.

1. Each record is cleaned on its own and written to a scratch file with the identities of its texts.
   No more than one block of rows is in memory.
2. With only the identities in memory, rows that repeat and negatives that are positives of their query in
   another row are found, and the scratch file is copied without them.

Shapes: n rows, P positives and M hard negatives over all rows of the scratch file, U distinct query texts.
Memory is O(n + P + M) integers, never texts.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from nestling.records.clean import CleanRecord, clean
from nestling.records.record import Record, located
from nestling.records.selection import NO_DOCUMENT, RowSelection, select_rows
from nestling.records.store import open_batches, scratch_file, write_batches
from nestling.records.summary import DropCounter, LoadSummary
from nestling.records.table import CONTENT, SCHEMA

SCRATCH_SCHEMA = pa.schema([*CONTENT, pa.field("line", pa.int64()), pa.field("row_id", pa.int64())])
ROWS_PER_BATCH = 4096
TEXT_PER_BATCH = 32 << 20  # characters; an Arrow text column holds 2 GiB at most
NO_POSITIVE = "row without a positive that differs from its query"


class RecordSource(Protocol):
    """Where records come from.

    Attributes:
        name: The source as the user gave it.
        location: The file that the lines are of.
        drops: What was dropped so far; conversion adds to it.
        dialect: Its name; known when `records` has begun.
        ignored: Rows in which each unknown field was present; complete when `records` has ended.
    """

    name: str
    location: str
    drops: DropCounter

    @property
    def dialect(self) -> str: ...

    @property
    def ignored(self) -> Mapping[str, int]: ...

    def records(self) -> Iterator[tuple[int, Record]]:
        """Pairs of (line, record)."""


def convert(source: RecordSource, path: Path, *, allow_no_positives: bool) -> None:
    """Write a source's records to an Arrow file of schema `table.SCHEMA`, its `LoadSummary` as metadata.

    Rows that cleaning leaves without a positive are dropped, or with `allow_no_positives` those without a document.
    Raises ValueError if the source holds no rows, or none that can be kept.
    """
    with scratch_file(path.parent) as scratch:
        rows_read = _write_scratch(source, scratch, allow_no_positives)
        if not rows_read:
            raise ValueError(f"{source.location}:1: file: holds no rows; expected at least one")
        batches, _ = open_batches(scratch)
        plan = select_rows(batches, source.location, source.drops)
        summary = _summarise(source, rows_read, plan)
        if not summary.rows_kept:
            raise ValueError(f"{source.location}:1: file: no row can be kept\n{summary}")
        with write_batches(path, SCHEMA, summary.to_json()) as writer:
            for batch in plan.apply(batches):
                writer.write_batch(batch)


def _write_scratch(source: RecordSource, path: Path, allow_no_positives: bool) -> int:
    """Write the cleaned records; returns how many rows were read."""
    rows_read = size = 0
    rows: list[tuple[Any, ...]] = []
    with write_batches(path, SCRATCH_SCHEMA) as writer:
        for line, record in source.records():
            rows_read += 1
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


def _summarise(source: RecordSource, rows_read: int, plan: RowSelection) -> LoadSummary:
    positives, negatives = plan.positive_counts, plan.negative_counts
    return LoadSummary(
        source=source.name,
        dialect=source.dialect,
        rows_read=rows_read,
        rows_kept=len(positives),
        rows_scored=plan.rows_scored,
        rows_without_positives=int((positives == 0).sum()),
        positives=int(positives.sum()),
        negatives=int(negatives.sum()),
        max_positives=int(np.max(positives, initial=0)),
        max_negatives=int(np.max(negatives, initial=0)),
        drops=source.drops.drops(),
        ignored=tuple(sorted(item for item in source.ignored.items() if item[1])),
    )
