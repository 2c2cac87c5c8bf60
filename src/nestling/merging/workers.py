"""Threads that work on pieces of tensors, and how tensors are cut, so that neither changes a bit of the result."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")

# Elements over which products are added up at once; pieces are made of whole blocks.
BLOCK = 2**16
# Elements of a piece. In float64 it is 2 MB, and a few are in memory at a time.
PIECE = 4 * BLOCK


@dataclass(frozen=True)
class Workers:
    """Some threads.

    Args:
        pool: The threads.
        piece: Elements that each works on at a time.
    """

    pool: ThreadPoolExecutor
    piece: int

    def map(self, work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
        """What `work` makes of each, in their order."""
        return self.pool.map(work, pieces)

    def pieces(self, elements: int) -> list[tuple[int, int]]:
        """Where the pieces of so many elements start and stop."""
        return [(start, min(start + self.piece, elements)) for start in range(0, elements, self.piece)]


@contextmanager
def working(threads: int | None = None, piece: int = PIECE) -> Iterator[Workers]:
    """Threads for the length of the block, as many as torch would use by default; each computes alone.

    Args:
        threads: How many.
        piece: Elements that each works on at a time, a multiple of `BLOCK`.
    """
    assert piece % BLOCK == 0, piece
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads or before, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield Workers(pool, piece)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # threads that torch has not seen yet take the number that was set last
