"""Numpy arrays in the cache folder: written atomically, memory-mapped, with a digest that detects damage."""

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import xxhash

from nestling.files import sync
from nestling.records.store import default_cache, scratch_file, writable

DIGEST_BYTES = 16
READ_BYTES = 1 << 24


def cache_folder(name: str, key: str) -> Path:
    """The folder of some arrays, the same for later runs.

    Args:
        name: A readable part of the folder's name.
        key: Digest of everything that all of the arrays depend on.
    """
    return default_cache() / "arrays" / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)[:60]}-{key}"


class ArrayCache:
    """Arrays in a folder, each in a file named by a key: a digest of what it was computed from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, key: str) -> "np.ndarray[Any, Any] | None":
        """The array, memory-mapped; None if it is missing, incomplete or damaged."""
        path = self._path(key)
        if not path.is_file() or not is_intact(path):
            return None
        # Mode "c" (copy on write), since torch warns about arrays that it cannot write to; nothing is ever written.
        array: np.ndarray[Any, Any] = np.load(path, mmap_mode="c")
        return array

    def write(self, key: str, array: "np.ndarray[Any, Any]") -> None:
        """Write an array atomically. Raises CacheError for a full disk or a folder that cannot be written."""
        with writable(self.folder), scratch_file(self.folder) as scratch:
            with scratch.open("wb") as stream:
                # To a file object numpy writes by itself, and says of a full disk only that less was written.
                np.save(cast(Any, SimpleNamespace(write=stream.write)), array)
            digest = digest_of(scratch, scratch.stat().st_size)
            with scratch.open("ab") as stream:
                stream.write(digest)
            sync(scratch)
            os.replace(scratch, self._path(key))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"


def is_intact(path: Path) -> bool:
    """Whether the digest at the end of a file matches the bytes before it; reads the whole file."""
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
