"""What a vector store does here; each of them has one implementation, through its own client.

Shape legend: b documents of one batch, d dimensions of a table.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nestling.config.search_stores import Store, StoredPrecision

Vectors = NDArray[np.float32]
Batch = tuple[Sequence[str], Vectors]  # b ids, and [b, d] float32
Hits = list[tuple[str, float]]  # ids and scores, best first


class Table(Protocol):
    """A table of ids and normalised vectors with an index on them."""

    def write(self, batches: Iterable[Batch]) -> None:
        """Write all rows."""

    def build_index(self) -> None:
        """Build the index, once all rows are there."""

    def search(self, query: Vectors, count: int) -> Hits:
        """The `count` nearest documents of a query, [d] float32, by their cosines."""

    def bytes(self) -> tuple[int, int]:
        """Size on disk of the rows and of the index on the vectors."""


class VectorStore(Protocol):
    """A store that is open.

    Attributes:
        name: As in the settings.
        precisions: Types in which its index can keep embeddings.
    """

    @property
    def name(self) -> Store: ...

    @property
    def precisions(self) -> Sequence[StoredPrecision]: ...

    def refuses(self, dim: int, precision: StoredPrecision) -> str | None:
        """What its index takes instead of so many dimensions in one of the precisions; None if it takes them."""

    def exists(self, name: str) -> bool:
        """Whether there is a table of this name."""

    def create(self, name: str, dim: int, precision: StoredPrecision) -> Table:
        """An empty table, in place of one that has this name."""
