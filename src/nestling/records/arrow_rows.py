"""Rows of Parquet files and of `datasets.Dataset`, without the values of columns that no record takes.

Rows have all columns; those that are not read hold `UNREAD` in every row, also where they are null.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from nestling.records.fields import NumberedRows
from nestling.records.record import FieldError, located

UNREAD = object()
ROWS_PER_BATCH = 256
# What pyarrow raises for damaged files, and for values that Python does not have (a date of the year 0).
UNREADABLE = (pa.ArrowException, OSError, ValueError, ArithmeticError, RecursionError)

# From the schema of a file or dataset to the columns that are to be read; None for all of them.
Used = Callable[[Any], list[str]] | None


def read_parquet(path: Path, progress: bool = False, used: Used = None) -> NumberedRows:
    """Read a Parquet file with `ROWS_PER_BATCH` rows in memory at a time."""
    import pyarrow.parquet as pq

    with located(str(path), 1):
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                schema = file.schema_arrow
                _check_repeated(schema.names)
                names = schema.names if used is None else used(schema)
                batches = file.iter_batches(batch_size=ROWS_PER_BATCH, columns=names)
                yield from _numbered_rows(batches, schema.names, names, file.metadata.num_rows, progress)
        except FieldError:
            raise
        except UNREADABLE as error:
            raise FieldError("file", f"not a readable Parquet file: {error}") from None


def read_dataset(dataset: Any, progress: bool, used: Used = None) -> NumberedRows:
    """Read a `datasets.Dataset`; its rows are numbered from 1."""
    names = dataset.column_names if used is None else used(dataset.features.arrow_schema)
    tables = dataset.select_columns(names).with_format("arrow").iter(batch_size=ROWS_PER_BATCH)
    return _numbered_rows(tables, dataset.column_names, names, len(dataset), progress)


def _check_repeated(names: list[str]) -> None:
    """Raise FieldError for a column that is there twice."""
    for name, count in Counter(names).most_common(1):
        if count > 1:
            raise FieldError(name, f"{count} columns of this name; expected one")


def _numbered_rows(
    batches: Iterable[Any], columns: list[str], read: list[str], total: int, progress: bool
) -> NumberedRows:
    numbers, unread = itertools.count(1), dict.fromkeys(columns, UNREAD)
    with tqdm(total=total, unit=" rows", desc="reading", delay=1, disable=not progress) as bar:
        for batch in batches:
            for row in batch.select(read).to_pylist():
                yield next(numbers), unread | row
            bar.update(batch.num_rows)
