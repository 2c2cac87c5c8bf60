"""Rows of data files and of `datasets.Dataset`, streamed as (line, row) pairs.

Every reader raises `ValueError("file:line: field: reason")` for what it cannot read.
"""

import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nestling.records.csv_files import read_csv
from nestling.records.fields import NumberedRows
from nestling.records.json_files import read_json, read_jsonl
from nestling.records.json_sets import training_rows

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
ROWS_PER_BATCH = 256


def read_rows(path: Path, progress: bool) -> NumberedRows:
    """Read a JSONL, JSON array, CSV, TSV (each may end in .gz) or Parquet file.

    Yields (line, row), where `line` is the 1-based line on which the row begins, in a Parquet file its 1-based number.
    """
    suffix = file_suffix(path)
    if suffix == ".parquet":
        return read_parquet(path, progress)
    if suffix in (".csv", ".tsv"):
        return read_csv(path, "\t" if suffix == ".tsv" else ",", progress)
    return training_rows(path, (read_json if suffix == ".json" else read_jsonl)(path, progress))


def file_suffix(path: Path) -> str:
    """The suffix that tells the file format, without .gz; "" if no reader knows it."""
    name = path.name.lower()
    known = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
    return known.removesuffix(".gz")


def read_parquet(path: Path, progress: bool = False) -> NumberedRows:
    """Read a Parquet file with `ROWS_PER_BATCH` rows in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            check_names(path, file.schema_arrow.names)
            batches = file.iter_batches(batch_size=ROWS_PER_BATCH)
            yield from _numbered_rows(batches, file.metadata.num_rows, progress)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}:1: file: not a readable Parquet file: {error}") from None


def check_names(path: Path, names: list[str]) -> None:
    """Raise ValueError for a column that is there twice."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}:1: {repeated[0]}: {names.count(repeated[0])} columns of this name; expected one")


def read_dataset(dataset: Any, progress: bool) -> NumberedRows:
    """Read a `datasets.Dataset`; its rows are numbered from 1."""
    tables = dataset.with_format("arrow").iter(batch_size=ROWS_PER_BATCH)
    return _numbered_rows(tables, len(dataset), progress)


def _numbered_rows(batches: Iterable[Any], total: int, progress: bool) -> NumberedRows:
    numbers = itertools.count(1)
    with tqdm(total=total, unit=" rows", desc="reading", delay=1, disable=not progress) as bar:
        for batch in batches:
            for row in batch.to_pylist():
                yield next(numbers), row
            bar.update(batch.num_rows)
