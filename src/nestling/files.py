"""Atomic writing of files: after a kill, a file has its old content or its new content, never a part of it."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from nestling.disk_errors import named
from nestling.locks import claim


def sync(path: Path) -> None:
    """fsync of a file or of a folder (which holds the names of its files)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_stamp(path: Path) -> tuple[int, int, int, int]:
    """(size in bytes, time of modification and time of change in ns, inode) of a file.

    Its content is unchanged while they are. The time of modification alone is not enough, since `rsync -t`, `tar x` and
    `cp -p` set it to that of another file; nothing but the clock sets the time of change.
    """
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which is synced and renamed to `path` at the end of the block.

    If the block raises an error, the temporary file is removed and `path` is unchanged.

    Raises:
        ValueError: Another process writes `path`.
        WriteError: It could not be written.
    """
    with named(path), claim(path) as partial:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """Open the temporary file of `replacing` as UTF-8 text."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as stream:
        yield stream


def replace_text(path: Path, text: str) -> None:
    """Write a text to a file, atomically."""
    with writing(path) as stream:
        stream.write(text)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line to a file, atomically."""
    with writing(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
