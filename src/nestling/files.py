"""Files that survive a kill: a reader sees the old content or the new, never a part."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Name the file in an OSError without one: a write to an open file on a full disk does not say which it was."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """A file to write UTF-8 text to that becomes `path` in one step at the end, forced onto the disk, or never."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with named(path), partial.open("w", encoding="utf-8") as stream:
            yield stream
        with named(path):
            sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Writes `text` to `path` as `writing` does."""
    with writing(path) as stream:
        stream.write(text)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line to `path` as `writing` does."""
    with writing(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
