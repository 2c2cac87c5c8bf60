"""Rows of CSV and TSV files."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nestling.records.field_names import names_negatives
from nestling.records.fields import NumberedRows
from nestling.records.lines import read_lines
from nestling.records.record import FieldError, located

# Columns whose cells hold JSON arrays, or numbers, in any dialect.
LIST_COLUMNS = frozenset(
    (
        "positives",
        "negatives",
        "positive_scores",
        "negative_scores",
        "scores",
        "labels",
        "label",
        "pos",
        "neg",
        "pos_scores",
        "neg_scores",
        "messages",
        "positive_messages",
        "negative_messages",
        "positive_passages",
        "negative_passages",
    )
)
NUMBER_COLUMNS = frozenset(("score", "label"))
MAX_CELL = 2**31 - 1  # characters


def read_csv(path: Path, delimiter: str, progress: bool = False) -> NumberedRows:
    """Read a CSV file with a header; an empty cell counts as an absent field, list columns hold JSON arrays."""
    with _long_cells():
        cells = csv.reader((text for _, text in read_lines(path, progress)), delimiter=delimiter, strict=True)
        header, begin = _next_cells(path, cells, 1), 1
        if header and (len(set(header)) < len(header) or "" in header):
            raise ValueError(f"{path}:1: header: columns without a name, or twice the same: {', '.join(header)}")
        while header is not None:
            begin = cells.line_num + 1
            values = _next_cells(path, cells, begin)
            if values is None:
                return
            with located(str(path), begin):
                if values and len(values) != len(header):
                    raise FieldError("line", f"{len(values)} cells under {len(header)} columns")
                row = {column: _cell(column, value) for column, value in zip(header, values, strict=bool(values))}
            if values:  # a blank line has no cells
                yield begin, row


@contextmanager
def _long_cells() -> Iterator[None]:
    """The csv module refuses cells above 128 KiB unless its one global limit is raised."""
    before = csv.field_size_limit(MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _next_cells(path: Path, cells: Iterator[list[str]], line: int) -> list[str] | None:
    try:
        return next(cells, None)
    except csv.Error as error:
        raise ValueError(f"{path}:{line}: line: broken CSV: {error}") from None


def _cell(column: str, value: str) -> Any:
    if value == "":
        return None
    if value.startswith("[") and (column in LIST_COLUMNS or (_may_be_list(column) and value[1:2] in "\"'{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise FieldError(column, f"expected a JSON array: {error}") from None
    if column in NUMBER_COLUMNS and not value.startswith("["):
        try:
            return float(value)
        except ValueError:
            raise FieldError(column, f"expected a number, got {value[:40]!r}") from None
    return value


def _may_be_list(column: str) -> bool:
    """Whether a column has a text, or a list of them, in each cell."""
    return column == "positive" or names_negatives(column)
