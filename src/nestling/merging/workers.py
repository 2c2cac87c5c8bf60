"""Threads that each work on a slice of a tensor, without changing a bit of the result.

Sums over a tensor are added up in blocks of a fixed size, for any number of threads and any size of slices.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# Elements whose products are added up in one matrix product. Slices consist of whole blocks, but for a tensor's last.
BLOCK_SIZE = 2**16
# Elements of a slice: 2 MB in float64, of which each thread has a few in memory.
SLICE_SIZE = 4 * BLOCK_SIZE


@dataclass(frozen=True)
class Workers:
    """A pool of threads, and the size of the slices that they work on.

    Args:
        pool: The threads.
        slice_size: Elements of a slice.
    """

    pool: ThreadPoolExecutor
    slice_size: int

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results of `work` on each item, in the items' order."""
        return self.pool.map(work, items)

    def slices(self, elements: int) -> list[tuple[int, int]]:
        """Start and stop of each slice of a tensor with this number of elements."""
        return [(start, min(start + self.slice_size, elements)) for start in range(0, elements, self.slice_size)]


@contextmanager
def worker_threads(threads: int | None = None, slice_size: int = SLICE_SIZE) -> Iterator[Workers]:
    """Threads that end with the block. In each of them torch itself uses one thread.

    Args:
        threads: Number of threads; by default torch.get_num_threads().
        slice_size: Elements of a slice, a multiple of `BLOCK_SIZE`.
    """
    assert slice_size % BLOCK_SIZE == 0, slice_size
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads or before, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield Workers(pool, slice_size)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # a thread that is new to torch takes the number that any thread has set last
