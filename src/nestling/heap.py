"""Returning freed memory to the system.

After thousands of buffers of many sizes, the heap of glibc is twice as large as the memory in use; more where small
results that stay are cut out of freed buffers of megabytes, which then are too small for the next one.
"""

import ctypes
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

# Forward passes of chunks between two trims: a trim takes some milliseconds.
CHUNKS = 16


# glibc's parameter of mallopt: from which size on it maps a block from the system, and returns it when it is freed.
M_MMAP_THRESHOLD = -3
LARGE_BLOCK = 2**20


def return_large_blocks() -> None:
    """From now on, have each block of a megabyte or more returned to the system as soon as it is freed.

    For work that makes copies of weights one by one: each costs the time of new pages, and the heap does not grow. It
    holds for the rest of the process, and does nothing if the C library is not glibc.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    set_option(M_MMAP_THRESHOLD, LARGE_BLOCK)


def trim_heap() -> None:
    """Return free memory of the heap to the system (malloc_trim); does nothing if the C library is not glibc."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)


def trimming(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items; the heap is trimmed each time the caller has processed `CHUNKS` of them."""
    for count, item in enumerate(items, start=1):
        yield item
        if count % CHUNKS == 0:
            trim_heap()
