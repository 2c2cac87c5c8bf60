"""The documents in a file: the file itself, or the members of an archive, which are never written to disk."""

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import IO, BinaryIO, cast

from nestling.documents.refusals import Dropped, RefusedError

# Endings and how what is behind them is opened; a tar behind a compression is recognised by TAR.
Opener = Callable[[IO[bytes]], IO[bytes]]
GZIP = cast(Opener, partial(gzip.open, mode="rb"))
BZ2 = cast(Opener, partial(bz2.open, mode="rb"))
XZ = cast(Opener, partial(lzma.open, mode="rb"))
COMPRESSIONS = {".gz": GZIP, ".tgz": GZIP, ".bz2": BZ2, ".tbz2": BZ2, ".xz": XZ, ".txz": XZ}
TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError, NotImplementedError)
DEPTH = 3  # archives inside archives
MEMBERS = 1_000_000
INSIDE = "!/"
# An archive may unpack to so many times what one document may have.
TIMES = 16


@dataclass(frozen=True)
class Member:
    """A document's content.

    Args:
        path: Path of the file; behind `INSIDE` the name in an archive.
        data: Its bytes.
    """

    path: str
    data: bytes


class Limited:
    """Reads a stream as far as the archive that it belongs to may unpack; RefusedError beyond."""

    def __init__(self, stream: IO[bytes], left: list[int]) -> None:
        self.stream, self.left = stream, left

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        data = self.stream.read(size)
        self.left[0] -= len(data)
        if self.left[0] < 0:
            raise RefusedError("archive unpacks to too much", "the rest of it is not read")
        return data


def is_archive(path: str) -> bool:
    """Whether a name is that of an archive or a compressed file."""
    return path.lower().endswith((".zip", *TAR, *COMPRESSIONS))


def members(path: str, file: BinaryIO, limit: int) -> Iterator[Member | Dropped]:
    """The documents of an open file, in their order there.

    Args:
        path: The file's path, as it is shown.
        file: It can be sought in.
        limit: Bytes of a document; an archive may unpack to `TIMES` as much.
    """
    yield from _members(path, file, limit, [TIMES * limit], 0)


def _members(path: str, file: IO[bytes], limit: int, left: list[int], depth: int) -> Iterator[Member | Dropped]:
    if not is_archive(path):
        yield _read(path, file, limit)
        return
    if depth == DEPTH:
        yield Dropped(path, "archive too deep in archives")
        return
    try:
        for name, stream in _opened(path, file, left):
            inside = path + INSIDE + name.encode("utf-8", "backslashreplace").decode()
            if isinstance(stream, str):
                yield Dropped(inside, stream)
            elif is_archive(name):
                whole = _read(inside, stream, limit)
                yield from (
                    [whole]
                    if isinstance(whole, Dropped)
                    else _members(inside, io.BytesIO(whole.data), limit, left, depth + 1)
                )
            else:
                yield _read(inside, stream, limit)
    except RefusedError as error:
        if depth:
            raise  # the whole archive has had its share, not this one alone
        yield Dropped.of(path, error)
    except DAMAGED as error:
        yield Dropped(path, "damaged archive", str(error))


def _read(path: str, file: "IO[bytes] | Limited", limit: int) -> Member | Dropped:
    data = file.read(limit + 1)
    return Dropped(path, "too large", f"more than {limit:,} bytes") if len(data) > limit else Member(path, data)


def _opened(path: str, file: IO[bytes], left: list[int]) -> "Iterator[tuple[str, Limited | str]]":
    """Names of an archive with their streams, or with the reason why a member is not read."""
    seen: set[str] = set()
    lower = path.lower()
    listed = _zip_members(file, left) if lower.endswith(".zip") else _tar_members(path, file, left)
    if not lower.endswith((".zip", *TAR)):
        listed = iter([(PurePosixPath(path).stem, Limited(_decompressed(path, file), left))])
    for number, (name, stream) in enumerate(listed):
        if number == MEMBERS:
            raise RefusedError("archive has too many members", f"the first {MEMBERS:,} are read")
        yield name, _refusal(name, seen) or stream
        seen.add(name)


def _refusal(name: str, seen: set[str]) -> str | None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or name.startswith(("/", "\\")):
        return "name leads out of its archive"
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return "hidden"
    return "name twice in its archive" if name in seen else None


def _decompressed(path: str, file: IO[bytes]) -> IO[bytes]:
    suffix = PurePosixPath(path.lower()).suffix
    return COMPRESSIONS[suffix](file) if suffix in COMPRESSIONS else file


def _tar_members(path: str, file: IO[bytes], left: list[int]) -> "Iterator[tuple[str, Limited | str]]":
    # As a stream, so that also what is skipped counts.
    limited = cast(IO[bytes], Limited(_decompressed(path, file), left))
    with tarfile.open(fileobj=limited, mode="r|") as archive:
        for info in archive:
            if info.isfile():
                stream = archive.extractfile(info)
                assert stream is not None
                yield info.name, Limited(stream, [1 << 62])
            elif not info.isdir():
                yield info.name, "symbolic link" if info.issym() or info.islnk() else "no regular file"


def _zip_members(file: IO[bytes], left: list[int]) -> "Iterator[tuple[str, Limited | str]]":
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.flag_bits & 1:
                yield info.filename, "encrypted"
            elif stat.S_ISLNK(info.external_attr >> 16):
                yield info.filename, "symbolic link"
            elif not info.is_dir():
                with archive.open(info) as stream:
                    yield info.filename, Limited(stream, left)
