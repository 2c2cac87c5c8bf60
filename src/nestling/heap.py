"""Returning freed memory to the system.

After thousands of buffers of many sizes, the heap of glibc is twice as large as the memory in use.
"""

import ctypes
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

# Forward passes of chunks between two trims: a trim takes some milliseconds.
CHUNKS = 16


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
