"""Digests of the content of files and folders, cached by `file_stamp`."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

from nestling.files import file_stamp, replace_text
from nestling.run_files import reading

CachedDigests = dict[str, tuple[tuple[int, ...], str]]


class Digests:
    """Digests of content; a cached one is used while the `file_stamp` of the file is unchanged.

    Args:
        file: JSON file of the cache.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.cached = file, read_cached_digests(file)

    def digest_of(self, path: Path, *, links: bool = True) -> str | None:
        """Digest of a file, or of names and contents of a folder without hidden files; None if it does not exist.

        Of what a folder has and cannot be read, or is no file, the name counts; without `links` of links, too.
        """
        if path.is_dir():
            files = files_in(path, links=links)
            read = ((each, None if each.is_symlink() and not links else self.digest_if_read(each)) for each in files)
            lines = [f"{each.relative_to(path).as_posix()} {digest}" for each, digest in read]
            return xxhash.xxh3_128_hexdigest(os.fsencode("\n".join(lines)))  # names may be of any bytes
        return self.digest_of_file(path) if path.is_file() else None

    def digest_if_read(self, path: Path) -> str | None:
        """Digest of a file; None for one that is gone meanwhile or may not be read, and for what is none."""
        try:
            return self.digest_of_file(path) if path.is_file() else None
        except OSError:
            return None

    def digest_of_file(self, path: Path) -> str:
        """Digest of the content of a file."""
        name, stamp = str(path.absolute()), file_stamp(path)
        if name not in self.cached or self.cached[name][0] != stamp:
            with path.open("rb") as stream:
                self.cached[name] = (stamp, hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest())
        return self.cached[name][1]

    def save(self) -> None:
        """Write the cache, without files that no longer exist."""
        self.cached = {name: each for name, each in self.cached.items() if Path(name).exists()}
        replace_text(self.file, json.dumps(self.cached, indent=0) + "\n")


def files_in(folder: Path, *, links: bool) -> Iterator[Path]:
    """All files of a folder, sorted by name, and links to folders that are not entered.

    Links are followed if `links` says so, which models in the cache of the hub consist of, but to no folder twice: in
    circles that would have no end.
    """
    entered = {os.path.realpath(folder)}
    for root, folders, names in os.walk(folder, followlinks=links):
        files = [name for name in names if not name.startswith(".")]
        below = sorted(name for name in folders if not name.startswith("."))
        folders.clear()
        for name in below:
            path = Path(root) / name
            real = os.path.realpath(path)
            (files if real in entered or (path.is_symlink() and not links) else folders).append(name)
            entered.add(real)
        yield from (Path(root) / name for name in sorted(files))


def read_cached_digests(file: Path) -> CachedDigests:
    """Read the cache; empty if there is no such file."""
    if not file.is_file():
        return {}
    with reading(file, "remove it"):
        content = json.loads(file.read_text(encoding="utf-8"))
        return {name: (tuple(stamp), digest) for name, (stamp, digest) in content.items()}
