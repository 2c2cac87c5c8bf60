"""Texts by id, of corpus.jsonl or queries.jsonl of a BEIR folder or of another corpus, cached in an Arrow file."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nestling.records import fields
from nestling.records.arrow_files import open_batches, write_batches
from nestling.records.fields import NumberedRows, Row, document_text
from nestling.records.json_files import read_jsonl
from nestling.records.record import FieldError, located, text_id
from nestling.records.store import cached, file_state
from nestling.records.texts import Texts

SCHEMA = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("key", pa.int64()), ("file", pa.int64()), ("line", pa.int64())]
)
ROWS_PER_BATCH = 4096
TEXT_PER_BATCH = 32 << 20  # characters; an Arrow text column holds 2 GiB at most

Kind = Literal["corpus", "queries", "documents"]
ID_FIELDS = {"corpus": "_id", "queries": "_id", "documents": "id"}
ReadRows = Callable[[Path, bool], NumberedRows]


@dataclass(frozen=True)
class Collection:
    """The n non-empty texts of one file or several; a position counts them in the order of the files.

    Args:
        path: The Arrow file.
        file_rows: [n] int64, the row of the Arrow file for each position; None if no text is empty.
        keys: [n] int64, sorted `text_id` of the ids.
        positions: [n] int64, the position of the text that each of `keys` belongs to.
        empty_keys: `text_id` of the ids whose text is empty.
        empty_lines: Line of each empty text in its file.
    """

    path: Path
    file_rows: np.ndarray | None
    keys: np.ndarray
    positions: np.ndarray
    empty_keys: np.ndarray
    empty_lines: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def ids(self, positions: np.ndarray | None = None) -> Texts:
        """The ids at some positions, by default at all."""
        return Texts(self.path, "id", self._rows(positions))

    def texts(self, positions: np.ndarray | None = None) -> Texts:
        """The texts at some positions, by default at all."""
        return Texts(self.path, "text", self._rows(positions))

    def find(self, keys: np.ndarray) -> np.ndarray:
        """[m] int64: the position of the text with each key, -1 for an unknown key."""
        if not len(self):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self) - 1)
        return np.where(self.keys[at] == keys, self.positions[at], -1)

    def _rows(self, positions: np.ndarray | None) -> np.ndarray | None:
        if self.file_rows is None:
            return positions
        return self.file_rows if positions is None else self.file_rows[positions]


def open_collection(
    sources: Sequence[Path], kind: Kind, cache_dir: Path | None, progress: bool, read_rows: ReadRows = read_jsonl
) -> Collection:
    """Read the rows (id, `text` and, of documents, `title`) of files, through the cache.

    Empty documents are left out. Raises ValueError for repeated ids and for empty queries.
    """
    name = f"{sources[0].parent.name}-{kind}"
    cache_key = [kind, *map(file_state, sources)]
    path = cached(name, cache_key, cache_dir, lambda file: _build(sources, kind, file, progress, read_rows))
    batches, _ = open_batches(path)
    keys, lines = _column(batches, "key"), _column(batches, "line")
    has_text = np.concatenate([pc.binary_length(batch.column("text")).to_numpy() > 0 for batch in batches])
    kept = keys[has_text]
    order = np.argsort(kept, kind="stable")
    rows = None if has_text.all() else np.flatnonzero(has_text)
    return Collection(path, rows, kept[order], order, keys[~has_text], lines[~has_text])


def _build(sources: Sequence[Path], kind: Kind, path: Path, progress: bool, read_rows: ReadRows) -> None:
    rows: list[tuple[str, str, int, int, int]] = []
    size = 0
    with write_batches(path, SCHEMA) as writer:
        for file, source in enumerate(sources):
            for line, row in read_rows(source, progress):
                with located(str(source), line):
                    id_, content = _read_id(row, ID_FIELDS[kind]), _read_text(row, kind)
                    rows.append((id_, content, text_id(id_), file, line))
                size += len(content)
                if len(rows) == ROWS_PER_BATCH or size >= TEXT_PER_BATCH:
                    writer.write_batch(_batch(sources, rows))
                    rows, size = [], 0
        if rows:
            writer.write_batch(_batch(sources, rows))
    _check_ids(sources, ID_FIELDS[kind], open_batches(path)[0])


def _batch(sources: Sequence[Path], rows: list[tuple[str, str, int, int, int]]) -> Any:
    try:
        return pa.record_batch([pa.array(column) for column in zip(*rows, strict=True)], schema=SCHEMA)
    except UnicodeEncodeError:
        file, line = next((file, line) for _, content, _, file, line in rows if not fields.encodes(content))
        raise ValueError(f"{sources[file]}:{line}: text: half of a surrogate pair; it is no valid text") from None


def _read_id(row: Row, field: str) -> str:
    value = row.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    id_ = fields.text(row, field)
    if not fields.encodes(id_):
        raise FieldError(field, "half of a surrogate pair; it is no valid text")
    return id_


def _read_text(row: Row, kind: Kind) -> str:
    return fields.text(row, "text") if kind == "queries" else document_text(row)


def _check_ids(sources: Sequence[Path], field: str, batches: list[Any]) -> None:
    if not batches:
        raise ValueError(f"{sources[0]}:1: file: holds no rows; expected at least one")
    keys, files, lines = _column(batches, "key"), _column(batches, "file"), _column(batches, "line")
    first = np.zeros(len(keys), dtype=bool)
    first[np.unique(keys, return_index=True)[1]] = True
    if not first.all():
        repeated = int(np.argmin(first))
        earlier = int(np.flatnonzero(keys == keys[repeated])[0])
        place = f"{sources[files[repeated]]}:{lines[repeated]}"
        other = "" if files[earlier] == files[repeated] else f" of {sources[files[earlier]].name}"
        raise ValueError(
            f"{place}: {field}: used twice, first in line {lines[earlier]}{other}; ids must be unique "
            f"({(~first).sum():,} rows repeat one)"
        )


def _column(batches: list[Any], name: str) -> np.ndarray:
    return np.concatenate([batch.column(name).to_numpy() for batch in batches])


def positions(document_ids: Sequence[str], wanted: Iterable[str]) -> dict[str, int]:
    """Where the wanted ids are in the collection; no entry for those that are not. Memory is that of the wanted."""
    wanted = set(wanted)
    return {identifier: row for row, identifier in enumerate(document_ids) if identifier in wanted}
