"""Arrays in the cache folder: written aside and renamed, opened as memory maps, refused when a byte has changed."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from nestling.files import named, sync
from nestling.records.store import default_cache, scratch_file, writable

DIGEST_BYTES = 16
READ_BYTES = 1 << 24


def cache_folder(name: str, key: str) -> Path:
    """Where arrays stay for later runs.

    Args:
        name: What they are, for people.
        key: What all of them were made with.
    """
    return default_cache() / "arrays" / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)[:60]}-{key}"


class ArrayCache:
    """Arrays in a folder, each under a key that says what it was made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, key: str) -> "np.ndarray[Any, Any] | None":
        """The array, memory-mapped; None if there is none, or none that is whole."""
        path = self._path(key)
        if not path.is_file() or not is_whole(path):
            return None
        # Copy on write, since torch warns of arrays that it cannot write to; nothing is ever written.
        array: np.ndarray[Any, Any] = np.load(path, mmap_mode="c")
        return array

    def write(self, key: str, array: "np.ndarray[Any, Any]") -> None:
        """Keep an array. Raises CacheError for a full disk or a folder that cannot be written."""
        with writable(self.folder), scratch_file(self.folder) as scratch:
            with named(scratch), scratch.open("wb") as stream:
                np.save(stream, array)
            digest = digest_of(scratch, scratch.stat().st_size)
            with named(scratch), scratch.open("ab") as stream:
                stream.write(digest)
            sync(scratch)
            os.replace(scratch, self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"


def is_whole(path: Path) -> bool:
    """Whether the digest at the end of a file is that of what stands before it (one pass at memory speed)."""
    size = path.stat().st_size - DIGEST_BYTES
    if size <= 0:
        return False
    with path.open("rb") as stream:
        stream.seek(size)
        digest = stream.read()
    return digest_of(path, size) == digest


def digest_of(path: Path, size: int) -> bytes:
    """XXH3-128 of the first `size` bytes of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while size > 0 and (part := stream.read(min(size, READ_BYTES))):
            digest.update(part)
            size -= len(part)
    return digest.digest()
