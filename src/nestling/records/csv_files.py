"""Rows of CSV and TSV files."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from nestling.records.field_names import names_negatives
from nestling.records.fields import LONGEST_NAME, NumberedRows, shown_names
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
WORDS_OF_DATA = 4
MAX_CELL = 2**31 - 1  # characters


def read_csv(path: Path, delimiter: str, progress: bool = False) -> NumberedRows:
    """Read a CSV file with a header; an empty cell counts as an absent field, list columns hold JSON arrays.

    Its cells are separated by `delimiter` unless the header has none, and semicolons or tabs instead.
    Quotation marks of tab-separated files are part of the text unless each closes its cell (`_is_quoted`).
    """
    delimiter = delimiter_of(path, delimiter)
    with long_cells(), closing(read_lines(path, progress)) as lines:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," or _is_quoted(path) else csv.QUOTE_NONE
        cells = csv.reader((text for _, text in lines), delimiter=delimiter, strict=True, quoting=quoting)
        header, begin = _next_cells(path, cells, 1), 1
        if header and (len(set(header)) < len(header) or "" in header):
            reason = no_names(header) or f"columns without a name, or twice the same: {shown_names(header)}"
            raise ValueError(f"{path}:1: header: {reason}")
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


def delimiter_of(path: Path, usual: str) -> str:
    """What separates the names of a header: the usual delimiter, or the most frequent other one if it has none."""
    header = next((text for _, text in read_lines(path)), "")
    return usual if usual in header else max((usual, ",", ";", "\t"), key=header.count)


def no_names(header: Sequence[str]) -> str | None:
    """What to do about a first line that looks like data; None if it looks like names of columns."""
    data = next((name for name in header if len(name) > LONGEST_NAME or name.count(" ") >= WORDS_OF_DATA - 1), None)
    if data is None:
        return None
    return (
        f"looks like data, not like names of columns: {shown_names([data])}; write a line of names above it, one for "
        f"each of the {len(header)} columns, such as query, positive and negative"
    )


def _is_quoted(path: Path) -> bool:
    """Whether quotation marks around the cells of a tab-separated file are no part of the text.

    They are if as quotes they leave every row as many cells as the header, and none runs over a line and a tab: else
    one that opens a text would swallow rows until the next.
    """
    cells = csv.reader((text for _, text in read_lines(path)), delimiter="\t", strict=True)
    try:
        columns = len(next(cells, ()))
        return not any(row and (len(row) != columns or any(map(_swallows, row))) for row in cells)
    except csv.Error:
        return False


def _swallows(cell: str) -> bool:
    return "\n" in cell and "\t" in cell


@contextmanager
def long_cells() -> Iterator[None]:
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
    column = column.strip().lower()
    if value == "":
        return None
    listed = _may_be_list(column) and value[1:2] in "\"'{" and value.rstrip().endswith("]")
    if value.startswith("[") and (column in LIST_COLUMNS or listed):
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
