"""Rows of numbers that a server answered, in memory-mapped files that a killed process leaves usable.

Beside the numbers lies a hash of each row. A row counts only if it has its hash, so that one that was written in part,
or never, is asked for again. Files are named by the keys of all rows; those of other keys in the same folder give what
they have of the same keys, and are removed.
"""

from pathlib import Path
from typing import Self

import numpy as np
import xxhash

from nestling.files import replacing
from nestling.records.store import digest
from nestling.retrieval.metrics import Floats, Integers

KINDS = ("keys", "rows", "sums")


class VectorFile:
    """Rows of `width` float32 numbers, by keys.

    Args:
        stem: Path of the three files without their endings.
        keys: [n] int64, of each row a hash of what was asked.
        width: Numbers in a row.

    Attributes:
        rows: [n, width] float32, memory-mapped.
    """

    def __init__(self, stem: Path, keys: Integers, width: int) -> None:
        self._paths = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in KINDS}
        self.keys = keys
        if not self._paths["keys"].is_file():
            for kind, size in (("rows", 4 * width), ("sums", 8)):
                with self._paths[kind].open("wb") as stream:
                    stream.truncate(len(keys) * size)
            with replacing(self._paths["keys"]) as partial:  # last: from here on the other two have their sizes
                partial.write_bytes(keys.tobytes())
        self.rows = np.memmap(self._paths["rows"], np.float32, "r+", shape=(len(keys), width))
        self._sums = np.memmap(self._paths["sums"], np.uint64, "r+", shape=(len(keys),))

    @classmethod
    def open(cls, folder: Path, keys: Integers, width: int) -> Self:
        """The file of these keys in a folder, with what other files there have of the same ones."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f"{digest(xxhash.xxh3_128_hexdigest(keys.tobytes()))}-{width}"
        opened = cls(stem, keys, width)
        others = [path.with_suffix("") for path in folder.glob(f"*-{width}.keys") if path.stem != stem.name]
        positions = {key: i for i, key in enumerate(keys.tolist())} if others else {}
        for each in others:
            other = cls(each, np.fromfile(each.with_suffix(".keys"), dtype=np.int64), width)
            for i in other.known().tolist():
                if (row := positions.get(int(other.keys[i]))) is not None:
                    opened.put(row, other.rows[i])
            other.remove()
        return opened

    def known(self) -> Integers:
        """Indices of the rows that have been answered, ascending."""
        sums = enumerate(self._sums.tolist())
        return np.array([i for i, known in sums if known and known == row_sum(self.rows[i])], dtype=np.int64)

    def put(self, index: int, row: Floats) -> None:
        """Write a row, then its hash."""
        self.rows[index] = row
        self._sums[index] = row_sum(self.rows[index])

    def forget(self) -> None:
        """Have all rows asked for again."""
        self._sums[:] = 0

    def remove(self) -> None:
        """Remove the files; the rows can be read as long as this object is there."""
        for path in self._paths.values():
            path.unlink(missing_ok=True)


def row_sum(row: Floats) -> int:
    """A hash of a row of numbers, never 0."""
    return xxhash.xxh3_64_intdigest(row.tobytes()) or 1


def text_key(*texts: str) -> int:
    """A signed 64-bit hash of some texts."""
    return xxhash.xxh3_64_intdigest("\0".join(texts).encode("utf-8", "surrogatepass")) - (1 << 63)
