"""Files that survive a kill: a reader sees the old content or the new, never a part."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def replace_text(path: Path, text: str) -> None:
    """Writes `text` (UTF-8) to `path` in one step: aside, forced onto the disk, renamed."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with named(path):
            partial.write_text(text, encoding="utf-8")
            sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)
