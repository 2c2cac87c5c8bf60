"""Digests of files and folders by content, kept beside size, time and inode so that a file is read once."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

from nestling.files import replace_text

Known = dict[str, tuple[tuple[int, int, int], str]]


class Digests:
    """Digests of content; an earlier one is believed while the file has the same size, time of change and inode.

    Args:
        file: JSON file to keep them in.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.known = file, read_known(file)

    def of(self, path: Path) -> str | None:
        """Digest of a file, or of names and contents in a folder, hidden ones left out; None if nothing is there."""
        if path.is_dir():
            listed = [f"{each.relative_to(path).as_posix()} {self.of(each)}" for each in files_in(path)]
            return xxhash.xxh3_128_hexdigest("\n".join(listed).encode())
        return self.of_file(path) if path.is_file() else None

    def of_file(self, path: Path) -> str:
        """Digest of a file's content."""
        name, found = str(path.absolute()), path.stat()
        stamp = (found.st_size, found.st_mtime_ns, found.st_ino)
        if name not in self.known or self.known[name][0] != stamp:
            with path.open("rb") as stream:
                self.known[name] = (stamp, hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest())
        return self.known[name][1]

    def save(self) -> None:
        """Write the digests of files that are still there."""
        self.known = {name: each for name, each in self.known.items() if Path(name).exists()}
        replace_text(self.file, json.dumps(self.known, indent=0) + "\n")


def files_in(folder: Path) -> Iterator[Path]:
    """All files, in the order of their names; links are followed, as they are in a model of the hub's cache."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root) / name for name in sorted(names) if not name.startswith("."))


def read_known(file: Path) -> Known:
    """What was kept; nothing if there is no such file."""
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    return {name: (tuple(stamp), digest) for name, (stamp, digest) in content.items()}
