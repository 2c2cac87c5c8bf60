"""Arrow files in the cache folder: written aside and renamed, opened as memory maps, checked when opened."""

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from nestling.files import sync

# Raise it whenever a reader, a rule for drops or a schema changes, so that older files are not used.
READER_VERSION = 2
META = b"nestling"


def default_cache() -> Path:
    """$NESTLING_CACHE, or ~/.cache/nestling."""
    return Path(os.environ.get("NESTLING_CACHE") or Path.home() / ".cache" / "nestling")


def file_state(path: Path) -> tuple[str, int, int]:
    """What tells whether a file has changed: its path, size in bytes and time of change in ns."""
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


def cached(name: str, identity: Any, cache_dir: Path | None, build: Callable[[Path], None]) -> Path:
    """The Arrow file for `identity` (anything JSON can write), built unless a sound one is there.

    `build(path)` writes it. Processes may race: each writes a file of its own and the last rename wins,
    with equal content. What fails in `build` leaves nothing behind.
    """
    folder = cache_dir or default_cache()
    key = hashlib.blake2b(json.dumps([READER_VERSION, identity]).encode(), digest_size=10).hexdigest()
    path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)[:60]}-{key}.arrow"
    if not is_sound(path):
        with writable(folder), scratch_file(folder) as scratch:
            build(scratch)
            sync(scratch)
            os.replace(scratch, path)
            sync(folder)
    return path


@contextmanager
def scratch_file(folder: Path) -> Iterator[Path]:
    """A new file in `folder` that is gone at the end, unless it was renamed."""
    handle, name = tempfile.mkstemp(prefix=".building-", suffix=".arrow", dir=folder)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


class CacheError(OSError):
    """The cache folder cannot be written."""


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Make the folder, and say what to do if it, or a file in it, cannot be written."""
    made = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = os.access(folder, os.W_OK | os.X_OK)
        if not made:
            raise PermissionError(errno.EACCES, "permission denied")
        yield
    except OSError as error:
        if isinstance(error, CacheError) or (made and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
            raise
        advice = "free space there, or set NESTLING_CACHE or cache_dir to a folder that can be written"
        reason = os.strerror(error.errno) if error.errno else error  # pyarrow's own text says it twice
        raise CacheError(error.errno, f"cannot write the cache folder {folder}: {reason}; {advice}") from None


def open_batches(path: Path) -> tuple[list[Any], str]:
    """Record batches of an Arrow file, as views of its memory map, and the text in its metadata."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        return batches, (reader.schema.metadata or {}).get(META, b"").decode()


@contextmanager
def write_batches(path: Path, schema: Any, meta: str = "") -> Iterator[Any]:
    """A writer of record batches into an uncompressed Arrow file, which is what can be memory-mapped."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema.with_metadata({META: meta})) as writer:
        yield writer


def is_sound(path: Path) -> bool:
    """Whether an Arrow file is there, whole and of valid offsets and UTF-8 (one pass at memory speed)."""
    try:
        batches, _ = open_batches(path)
        for batch in batches:
            batch.validate(full=True)
    except (OSError, ValueError):
        return False
    return bool(batches)
