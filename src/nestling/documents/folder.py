"""The files of a folder, in an order that depends on their names only."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from nestling.documents.refusals import Dropped


def walk(folder: Path) -> Iterator[Path | Dropped]:
    """The regular files of a folder and its subfolders; what else is there is told, and not opened.

    Links are not followed: they would lead out of the folder, or in circles. Names that begin with a dot are left out.
    """
    waiting = sorted(folder.iterdir(), reverse=True)
    while waiting:
        path = waiting.pop()
        shown = shown_path(path, folder)
        try:
            mode = path.lstat().st_mode
            if path.name.startswith("."):
                yield Dropped(shown, "hidden")
            elif stat.S_ISLNK(mode):
                yield Dropped(shown, "symbolic link")
            elif stat.S_ISDIR(mode):
                waiting += sorted(path.iterdir(), reverse=True)
            elif stat.S_ISREG(mode):
                yield path
            else:
                yield Dropped(shown, "no regular file")
        except OSError as error:
            yield Dropped(shown, "cannot be opened", error.strerror or "")


def shown_path(path: Path, folder: Path) -> str:
    """The path relative to the folder, with / between names and bytes that are no UTF-8 as escapes."""
    return os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "backslashreplace")
