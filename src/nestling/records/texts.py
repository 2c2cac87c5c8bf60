"""A sequence of texts in a memory-mapped Arrow file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from nestling.records.arrow_files import open_batches

TEXTS_PER_BLOCK = 1024


class Texts(Sequence[str]):
    """The texts of one column of an Arrow file, or some of them; a column of lists is flattened.

    An int index gives a text; a slice, or a list or array of positions, gives a list of texts. Texts are read from the
    file on access, by iteration in blocks. Pickles as a path and rows.

    Args:
        path: The Arrow file.
        column: Name of the column.
        rows: [n] int64, positions of the texts in the (flattened) column, in order; None for all.
    """

    def __init__(self, path: Path, column: str, rows: np.ndarray | None = None) -> None:
        self._path, self._column, self._rows = path, column, rows
        columns = [batch.column(column) for batch in open_batches(path)[0]]
        self._chunks = [array.flatten() if pa.types.is_list(array.type) else array for array in columns]
        self._starts = np.cumsum([0, *map(len, self._chunks)])  # [chunks + 1]

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: "slice | Sequence[int] | np.ndarray") -> list[str]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._take(np.arange(*index.indices(len(self)), dtype=np.int64))
        if isinstance(index, list | tuple | np.ndarray):
            return self._take(np.asarray(index, dtype=np.int64))
        return self._take(np.array([index], dtype=np.int64))[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), TEXTS_PER_BLOCK):
            yield from self[start : start + TEXTS_PER_BLOCK]

    def at(self, positions: np.ndarray) -> Iterator[str]:
        """The texts at [n] positions, read in blocks."""
        for start in range(0, len(positions), TEXTS_PER_BLOCK):
            yield from self[positions[start : start + TEXTS_PER_BLOCK]]

    def __reduce__(self) -> tuple[Any, ...]:
        return Texts, (self._path, self._column, self._rows)

    def _take(self, positions: np.ndarray) -> list[str]:
        positions = np.where(positions < 0, positions + len(self), positions)
        if len(positions) and (positions.min() < 0 or positions.max() >= len(self)):
            raise IndexError(f"position out of range for {len(self)} texts")
        rows = positions if self._rows is None else self._rows[positions]
        chunk_of = np.searchsorted(self._starts, rows, side="right") - 1
        texts = np.empty(len(rows), dtype=object)
        for chunk in np.unique(chunk_of):
            at = np.flatnonzero(chunk_of == chunk)
            texts[at] = self._chunks[chunk].take(pa.array(rows[at] - self._starts[chunk])).to_pylist()
        return texts.tolist()
