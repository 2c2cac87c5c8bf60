"""What was read of each file, so that a file is read again only when it has changed.

The journal is a JSONL file. Its first line holds the settings that the chunks depend on; then each file has a line with
its path and the hash of its content, a line for each of its documents, and a line that ends it. What a killed process
has left of a file is removed.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nestling.disk_errors import named
from nestling.documents.documents import Reading
from nestling.files import replacing
from nestling.locks import claimed_file

BEGIN, END = b'{"file": ', b'{"end": '
PIECE = 1 << 20  # bytes that are copied at a time


@dataclass(frozen=True)
class Entry:
    """Where a file's lines are in the journal.

    Args:
        digest: Hash of the file's content.
        offset: Where its first line begins.
        end: Where its last line ends.
    """

    digest: str
    offset: int
    end: int


class Journal:
    """An open journal, locked against other processes.

    Attributes:
        path: The file.
        entries: Path of a file -> where its latest lines are.
        size: Bytes of the journal.
        began_anew: Whether an earlier one had other settings.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self.entries: dict[str, Entry] = {}
        self.size, self.began_anew = 0, False

    def has(self, path: str, digest: str) -> bool:
        """Whether a file was read with this content."""
        return path in self.entries and self.entries[path].digest == digest

    def add(self, path: str, digest: str, readings: Iterable[Reading]) -> None:
        """Append what a file's documents give; it survives a kill of this process, but is not synced to disk."""
        offset = self._file.seek(0, os.SEEK_END)
        self._write({"file": path, "digest": digest})
        for reading in readings:
            self._write(reading.to_json())
        self._write({"end": path})
        self._file.flush()
        self.size = self._file.tell()
        self.entries[path] = Entry(digest, offset, self.size)

    def readings(self, path: str) -> Iterator[Reading]:
        """What a file's documents give."""
        entry = self.entries[path]
        self._file.seek(entry.offset)
        self._file.readline()
        while not (line := self._file.readline()).startswith(END):
            at = self._file.tell()
            yield Reading.from_json(json.loads(line))
            self._file.seek(at)

    def load(self, settings: Mapping[str, object]) -> None:
        """Read the file; begin it anew if its settings are others.

        Raises:
            ValueError: It is no journal.
        """
        self._file.seek(0)
        first = self._file.readline()
        found = self._settings(first) if first.endswith(b"\n") else None
        if found == json.loads(json.dumps(settings)):
            self._load_entries(len(first))
            return
        self.began_anew = found is not None
        self._file.truncate(0)
        self._write({"settings": settings})
        self._file.flush()
        self.size = self._file.tell()

    def _settings(self, line: bytes) -> Any:
        try:
            return json.loads(line)["settings"]
        except (ValueError, LookupError, TypeError):
            raise ValueError(f"{self.path}: not a journal of documents; move it away") from None

    def _load_entries(self, offset: int) -> None:
        self.size = offset
        path, digest, begin = "", "", 0
        for line in self._file:
            if line.startswith(BEGIN) and line.endswith(b"\n"):
                content = json.loads(line)
                path, digest, begin = content["file"], content["digest"], offset
            offset += len(line)
            if line.startswith(END) and line.endswith(b"\n"):
                self.entries[path] = Entry(digest, begin, offset)
                self.size = offset
        self._file.truncate(self.size)

    def _write(self, content: Mapping[str, object]) -> None:
        with named(self.path):
            self._file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")


@contextmanager
def open_journal(path: Path, settings: Mapping[str, object]) -> Iterator[Journal]:
    """Open or create a journal; ValueError if it is in use, or no journal."""
    with claimed_file(path) as file:
        journal = Journal(path, file)
        journal.load(settings)
        yield journal


def compact(path: Path, journal: Journal, paths: Iterable[str]) -> None:
    """Write the journal anew with the entries of some files only; it is not to be used after."""
    with path.open("rb") as source, replacing(path) as partial, partial.open("wb") as target:
        target.write(source.readline())
        for entry in map(journal.entries.__getitem__, paths):
            source.seek(entry.offset)
            for begin in range(entry.offset, entry.end, PIECE):
                target.write(source.read(min(PIECE, entry.end - begin)))
