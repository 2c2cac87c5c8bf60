"""Files that survive a kill: a reader sees the old content or the new, never a part."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Writes `text` (UTF-8) to `path` in one step: aside, forced onto the disk, renamed."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)
