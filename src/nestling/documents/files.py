"""The files of a folder, read into a journal."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import xxhash

from nestling.disk_errors import named
from nestling.documents.archives import is_archive, members
from nestling.documents.chunks import Chunker
from nestling.documents.documents import Reading, read_document
from nestling.documents.folder import shown_path, walk
from nestling.documents.journal import Journal
from nestling.documents.kinds import kind_of
from nestling.documents.refusals import Dropped

PIECE = 1 << 20  # bytes that are hashed at a time


@dataclass
class Listing:
    """What is in a folder.

    Args:
        files: Path of each file that may hold documents, as it is shown -> the file.
        dropped: What else is there.
    """

    files: dict[str, Path] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)


def list_folder(folder: Path) -> Listing:
    """The files of a folder that may hold documents, by their names."""
    listing = Listing()
    for found in walk(folder):
        if isinstance(found, Dropped):
            listing.dropped.append(found)
            continue
        shown = shown_path(found, folder)
        if is_archive(shown) or kind_of(shown):
            listing.files[shown] = found
        else:
            listing.dropped.append(Dropped(shown, "kind of file that is not read", found.suffix))
    return listing


def read_files(listing: Listing, journal: Journal, chunker: Chunker, limit: int, done: Callable[[], object]) -> int:
    """Read the files that the journal does not have with their present content; returns how many there were.

    Args:
        listing: The files; those that cannot be read are moved to what is dropped.
        journal: Has what they give, after.
        chunker: How documents are cut.
        limit: Bytes of a document.
        done: Called after each file.
    """
    read = 0
    for shown, path in list(listing.files.items()):
        try:
            with path.open("rb") as file:
                with named(path):
                    digest = _digest(file)
                if not journal.has(shown, digest):
                    journal.add(shown, digest, _readings(shown, path, file, chunker, limit))
                    read += 1
        except OSError as error:
            if error.filename != str(path):  # of the journal
                raise
            listing.dropped.append(Dropped(shown, "cannot be read", error.strerror or ""))
            del listing.files[shown]
        done()
    return read


def _readings(shown: str, path: Path, file: BinaryIO, chunker: Chunker, limit: int) -> Iterator[Reading]:
    file.seek(0)
    with named(path):
        for member in members(shown, file, limit):
            yield read_document(member, chunker, limit)


def _digest(file: BinaryIO) -> str:
    digest = xxhash.xxh3_128()
    while data := file.read(PIECE):
        digest.update(data)
    return digest.hexdigest()
