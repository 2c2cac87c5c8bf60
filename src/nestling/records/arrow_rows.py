"""Rows of Parquet files and of `datasets.Dataset`, without the values of columns that no record takes.

Rows have all columns; those that are not read hold `UNREAD` in every row, also where they are null.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from nestling.records.dialects import recognise
from nestling.records.field_names import is_always_read
from nestling.records.fields import NumberedRows
from nestling.records.record import FieldError, located

UNREAD = object()
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
ROWS_PER_BATCH = 256
# What pyarrow raises for damaged files, and for values that Python does not have (a date of the year 0).
UNREADABLE = (pa.ArrowException, OSError, ValueError, ArithmeticError, RecursionError)

Columns = Mapping[str, str] | None  # field -> column, as the user named them


def read_parquet(path: Path, progress: bool = False, columns: Columns = None) -> NumberedRows:
    """Read a Parquet file with `ROWS_PER_BATCH` rows in memory at a time."""
    import pyarrow.parquet as pq

    with located(str(path), 1):
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                schema = file.schema_arrow
                _check_repeated(schema.names)
                names = used_columns(schema, columns)
                batches = file.iter_batches(batch_size=ROWS_PER_BATCH, columns=names)
                yield from _numbered_rows(batches, schema.names, names, file.metadata.num_rows, progress)
        except FieldError:
            raise
        except UNREADABLE as error:
            raise FieldError("file", f"not a readable Parquet file: {error}") from None


def read_dataset(dataset: Any, progress: bool, columns: Columns = None) -> NumberedRows:
    """Read a `datasets.Dataset`; its rows are numbered from 1."""
    names = used_columns(dataset.features.arrow_schema, columns)
    tables = dataset.select_columns(names).with_format("arrow").iter(batch_size=ROWS_PER_BATCH)
    return _numbered_rows(tables, dataset.column_names, names, len(dataset), progress)


def used_columns(schema: Any, columns: Columns) -> list[str]:
    """The columns that records are made of, or that may hold what a reader refuses to leave out."""
    if columns:
        return [name for name in schema.names if name in set(columns.values())] or schema.names
    try:
        dialect = recognise(tuple(schema.names))
    except FieldError:  # the first row says it with its line
        return list(schema.names)
    return [field.name for field in schema if dialect.has_field(field.name) or _is_always_read(field)]


def _is_always_read(field: Any) -> bool:
    """Whether a field may hold documents by its name, or by its type, a list of anything but numbers; or only nulls."""
    of_numbers = any(is_list(field.type) for is_list in LISTS) and pa.types.is_primitive(field.type.value_type)
    is_nested = pa.types.is_nested(field.type) and not of_numbers
    return is_nested or pa.types.is_null(field.type) or is_always_read(field.name)


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
