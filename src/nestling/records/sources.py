"""Rows of files and datasets: (line, row) pairs, streamed, with the line each row begins on.

Every reader raises `ValueError("file:line: field: reason")` for what cannot be read.
"""

import codecs
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from nestling.records.fields import Row
from nestling.records.record import FieldError, located

Rows = Iterator[tuple[int, Row]]
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
# Columns whose CSV cells hold JSON arrays, or numbers, whatever the dialect.
LIST_COLUMNS = frozenset(
    (
        "positives",
        "negatives",
        "positive_scores",
        "negative_scores",
        "scores",
        "pos",
        "neg",
        "pos_scores",
        "neg_scores",
        "rejected_response",
        "messages",
        "positive_messages",
        "negative_messages",
        "positive_passages",
        "negative_passages",
    )
)
NUMBER_COLUMNS = frozenset(("score", "label"))
JSON_SPACE = re.compile(r"[ \t\r\n]*")
MAX_CELL = 2**31 - 1
ARRAY_BLOCK = 1 << 20
ROWS_PER_BATCH = 256


def read_rows(path: Path, progress: bool) -> Rows:
    """Rows of a JSONL, JSON array, CSV, TSV (each may end in .gz) or Parquet file.

    Yields (line, row): the 1-based line a row begins on, or the row's number in a Parquet file.
    """
    suffix = file_suffix(path)
    if suffix == ".parquet":
        return read_parquet(path, progress)
    if suffix in (".csv", ".tsv"):
        return read_csv(path, "\t" if suffix == ".tsv" else ",", progress)
    if suffix == ".json" and _begins_with_bracket(path):
        return read_json_array(path, progress)
    return read_jsonl(path, progress)


def file_suffix(path: Path) -> str:
    """The suffix that tells the format, without .gz; "" if it is none that can be read."""
    name = path.name.lower()
    known = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
    return known.removesuffix(".gz")


def read_lines(path: Path, progress: bool = False) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file with their 1-based numbers; a byte order mark is skipped, .gz is unpacked."""
    with _open(path) as (stream, raw), _bar(path, progress) as bar:
        for number, line in enumerate(_guarded(path, stream), start=1):
            try:
                decoded = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: line: invalid UTF-8 at byte {error.start} of the line") from None
            if number % ROWS_PER_BATCH == 0:
                bar.update(raw.tell() - bar.n)
            yield number, decoded


def read_jsonl(path: Path, progress: bool = False) -> Rows:
    """Objects of a JSONL file, one a line; blank lines are skipped."""
    for number, line in read_lines(path, progress):
        if line.isspace():
            continue
        with located(str(path), number):
            row = _parse(line)
        yield number, row


def read_json_array(path: Path, progress: bool = False) -> Rows:
    """Objects of one JSON array, decoded one at a time from a sliding window."""
    window = _Window(_blocks(path, progress))
    opened = False
    while True:
        with located(str(path), window.line):
            mark = window.mark()
        line = window.line
        with located(str(path), line):
            if opened and mark == "]":
                break
            window.expect(mark, "," if opened else "[")
            if not opened and window.mark() == "]":
                break
            opened = True
            window.mark()
        line = window.line
        with located(str(path), line):
            row = window.decode()
        yield line, row
    window.at += 1
    with located(str(path), window.line):
        if window.mark():
            raise FieldError("line", "broken JSON: more text after the end of the array")


class _Window:
    """A sliding window over a JSON text that knows the line it has come to."""

    def __init__(self, blocks: Iterator[str]) -> None:
        self.blocks, self.buffer, self.at, self.line = blocks, "", 0, 1

    def more(self, blocks: int = 1) -> bool:
        """Drop what was read and add up to so many blocks."""
        text = "".join(itertools.islice(self.blocks, blocks))
        self.buffer, self.at = self.buffer[self.at :] + text, 0
        return bool(text)

    def mark(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            space = JSON_SPACE.match(self.buffer, self.at)
            assert space is not None
            self._move(space.end())
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self.more():
                return ""

    def expect(self, mark: str, wanted: str) -> None:
        if mark != wanted:
            raise FieldError("line", f"broken JSON: expected {wanted!r}, got {mark or 'the end'!r}")
        self.at += 1

    def decode(self) -> Row:
        """The object that begins here; a cut-off one is tried again with twice as many blocks each time."""
        blocks = 1
        while True:
            try:
                row, end = json.JSONDecoder().raw_decode(self.buffer, self.at)
            except (ValueError, RecursionError) as error:
                reason = _reason(error, self.at)
                if not self.more(blocks):
                    raise FieldError("line", f"broken JSON: {reason}") from None
                blocks *= 2
            else:
                self._move(end)
                return _check_object(row)

    def _move(self, to: int) -> None:
        self.line += self.buffer.count("\n", self.at, to)
        self.at = to


def _blocks(path: Path, progress: bool) -> Iterator[str]:
    lines, decoder = 1, codecs.getincrementaldecoder("utf-8-sig")()
    with _open(path) as (stream, raw), _bar(path, progress) as bar:
        for block in iter(lambda: stream.read(ARRAY_BLOCK), b""):
            try:
                yield decoder.decode(block)
            except UnicodeDecodeError as error:
                at = lines + block.count(b"\n", 0, error.start)
                raise ValueError(f"{path}:{at}: line: invalid UTF-8") from None
            lines += block.count(b"\n")
            bar.update(raw.tell() - bar.n)


def read_csv(path: Path, delimiter: str, progress: bool = False) -> Rows:
    """Rows of a CSV file with a header; an empty cell is absent, list columns hold JSON arrays."""
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


def read_parquet(path: Path, progress: bool = False) -> Rows:
    """Rows of a Parquet file, a few hundred in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            batches = file.iter_batches(batch_size=ROWS_PER_BATCH)
            yield from _number(batches, file.metadata.num_rows, progress)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}:1: file: not a readable Parquet file: {error}") from None


def read_dataset(dataset: Any, progress: bool) -> Rows:
    """Rows of a `datasets.Dataset`, numbered from 1."""
    tables = dataset.with_format("arrow").iter(batch_size=ROWS_PER_BATCH)
    return _number(tables, len(dataset), progress)


def _number(batches: Iterable[Any], total: int, progress: bool) -> Rows:
    numbers = itertools.count(1)
    with tqdm(total=total, unit=" rows", desc="reading", delay=1, disable=not progress) as bar:
        for batch in batches:
            for row in batch.to_pylist():
                yield next(numbers), row
            bar.update(batch.num_rows)


@contextmanager
def _open(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The unpacked stream and the file below it, whose position tells the progress."""
    with path.open("rb") as raw:
        if path.suffix.lower() != ".gz":
            yield raw, raw
        else:
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield io.BufferedReader(unpacked), raw


@contextmanager
def _bar(path: Path, progress: bool) -> Iterator[Any]:
    size = path.stat().st_size
    with tqdm(total=size, unit="B", unit_scale=True, desc=path.name, delay=1, disable=not progress) as bar:
        yield bar


def _guarded(path: Path, stream: IO[bytes]) -> Iterator[bytes]:
    try:
        yield from stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}:1: file: broken gzip data: {error}") from None


def _parse(line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FieldError("line", f"broken JSON: {_reason(error)}") from None
    return _check_object(row)


def _reason(error: Exception, start: int = 0) -> str:
    """What json says of a text that begins at `start`; its own lines and columns count from elsewhere.

    Beside JSONDecodeError that is the ValueError of a number with thousands of digits, and RecursionError.
    """
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg} at character {error.pos - start + 1} of the row"


def _check_object(row: Any) -> Row:
    if not isinstance(row, dict):
        raise FieldError("line", f"expected an object with named fields, got {type(row).__name__}")
    return row


def _begins_with_bracket(path: Path) -> bool:
    return next((line.lstrip()[0] for _, line in read_lines(path) if line.strip()), "") == "["


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
    if column in LIST_COLUMNS and value.startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise FieldError(column, f"expected a JSON array: {error}") from None
    if column in NUMBER_COLUMNS:
        try:
            return float(value)
        except ValueError:
            raise FieldError(column, f"expected a number, got {value[:40]!r}") from None
    return value
