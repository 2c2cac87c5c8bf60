"""Rows of data files, streamed as (line, row) pairs.

Every reader raises `ValueError("file:line: field: reason")` for what it cannot read.
"""

from pathlib import Path

from nestling.records.arrow_rows import Used, read_parquet
from nestling.records.csv_files import read_csv
from nestling.records.fields import NumberedRows
from nestling.records.json_files import read_json, read_jsonl
from nestling.records.json_sets import training_rows

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


def read_rows(path: Path, progress: bool, used: Used = None) -> NumberedRows:
    """Read a JSONL, JSON array, CSV, TSV (each may end in .gz) or Parquet file; of this only the columns that `used`
    chooses by its schema.

    Yields (line, row), where `line` is the 1-based line on which the row begins, in a Parquet file its 1-based number.
    """
    suffix = file_suffix(path)
    if suffix == ".parquet":
        return read_parquet(path, progress, used)
    if suffix in (".csv", ".tsv"):
        return read_csv(path, "\t" if suffix == ".tsv" else ",", progress)
    return training_rows(path, (read_json if suffix == ".json" else read_jsonl)(path, progress))


def file_suffix(path: Path) -> str:
    """The suffix that tells the file format, without .gz; "" if no reader knows it."""
    name = path.name.lower()
    known = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
    return known.removesuffix(".gz")
