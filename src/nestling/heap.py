"""The C library keeps what was freed: after thousands of buffers of many sizes its heap is twice what is used."""

import ctypes
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

# Chunks of a model's forward between two trims: a trim costs some milliseconds.
CHUNKS = 16


def trim_heap() -> None:
    """Give back to the system what is free; does nothing where the C library cannot (it is not glibc)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)


def trimming(items: Iterable[Item]) -> Iterator[Item]:
    """The same items; the heap is trimmed after every `CHUNKS` of them have been worked on."""
    for count, item in enumerate(items, start=1):
        yield item
        if count % CHUNKS == 0:
            trim_heap()
