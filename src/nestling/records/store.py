"""The cache folder: Arrow files that are written to a temporary file, renamed, and checked when they are used again."""

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from nestling.disk_errors import WRITING_ONLY, WriteError
from nestling.files import file_stamp, sync
from nestling.locks import claim
from nestling.records.arrow_files import is_valid_file

# Part of every cache key: raise it when a reader, a rule for dropping rows or a schema changes.
READER_VERSION = 8
MAX_HASHED = 64 << 20  # bytes, which take some 10 ms


def default_cache() -> Path:
    """The cache folder: $NESTLING_CACHE, or ~/.cache/nestling."""
    return Path(os.environ.get("NESTLING_CACHE") or Path.home() / ".cache" / "nestling")


def file_state(path: Path) -> tuple[str | int, ...]:
    """The path of a file and values that change when its content does.

    Of files up to `MAX_HASHED` bytes these are a hash of the content, so that a copy or a new date converts nothing
    again; larger ones are not read, and have their `file_stamp`.
    """
    name, size = str(path.resolve()), path.stat().st_size
    if size > MAX_HASHED:
        return name, *file_stamp(path)
    with path.open("rb") as stream:
        return name, size, hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


def digest(key: Any) -> str:
    """A short hash of a value that is serialisable as JSON."""
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=10).hexdigest()


def cached(name: str, cache_key: Any, cache_dir: Path | None, build: Callable[[Path], None]) -> Path:
    """Path of the cached Arrow file for a key, which is built unless a valid one exists.

    Several processes may build it at once: each writes a temporary file and renames it, the last one wins, and all
    have the same content. If `build` fails, no file is left.

    Args:
        name: Beginning of the file name, for people who look into the folder.
        cache_key: Everything that the content depends on; must be serialisable as JSON.
        cache_dir: The folder; None for `default_cache()`.
        build: Writes the file to the path that it is given.
    """
    folder = cache_dir or default_cache()
    path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)[:60]}-{digest([READER_VERSION, cache_key])}.arrow"
    if not is_valid_file(path):
        with writable(folder), scratch_file(folder) as scratch:
            build(scratch)
            sync(scratch)
            os.replace(scratch, path)
            sync(folder)
    return path


@contextmanager
def scratch_file(folder: Path) -> Iterator[Path]:
    """The path of a temporary file in `folder`, deleted at the end of the block unless it was renamed."""
    with claim(folder / f"building-{secrets.token_hex(4)}") as path:
        yield path


class CacheError(WriteError):
    """The cache folder is not writable or has no space left."""


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Create the folder; an error of writing it, or a file in it, becomes a CacheError with advice."""
    writable_folder = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable_folder = os.access(folder, os.W_OK | os.X_OK)
        if not writable_folder:
            raise PermissionError(errno.EACCES, "permission denied")
        yield
    except OSError as error:
        if isinstance(error, CacheError) or (writable_folder and error.errno not in WRITING_ONLY):
            raise
        advice = "free space there, or set NESTLING_CACHE or cache_dir to a folder that can be written"
        reason = os.strerror(error.errno) if error.errno else error  # the text of pyarrow repeats it
        raise CacheError(error.errno, f"cannot write the cache folder {folder}: {reason}; {advice}") from None
