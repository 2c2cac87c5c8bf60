"""What the model answered, kept as it comes, so that nothing that was answered is ever asked or paid for again.

A file of JSON lines: first the settings that decide what is asked, then a line a reply with the document's identity. A
reply is in the file before the next question is put, so a process that is killed loses only what is on its way.
"""

import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from nestling.config.nested import flat, plain
from nestling.files import named
from nestling.synthesis.conversation import Conversation, NoAnswer, Question, Reply


class Journal:
    """An open journal, which no other process can open.

    Attributes:
        path: The file.
        replies: How many it holds.
        unmetered: Those of them whose tokens the server did not count.
        tokens_in: Tokens of their prompts.
        tokens_out: Tokens of the answers.
        unanswered: Documents that got no answer since it was opened, and why.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self.replies = self.unmetered = self.tokens_in = self.tokens_out = 0
        self.unanswered: dict[int, str] = {}
        self._places: defaultdict[int, list[int]] = defaultdict(list)  # texts stay in the file

    def knows(self, document: int) -> bool:
        """Whether it holds a reply about a document."""
        return document in self._places

    def of(self, document: int) -> Iterator[Reply]:
        """Replies about a document, in the order in which they came."""
        for place in self._places.get(document, ()):
            self._file.seek(place)
            line = json.loads(self._file.readline())
            del line["document"]
            yield Reply(**line)

    def add(self, document: int, reply: Reply) -> None:
        """Write a reply; it survives this process, and only a crash of the machine may take it away."""
        place = self._file.seek(0, os.SEEK_END)
        self._write({"document": document, **asdict(reply)})
        self._count(document, place, reply)

    def recorded(self, document: int, conversation: Conversation) -> Generator[Question, Reply, None]:
        """A conversation that answers from the journal what stands there, and writes down what else it is sent.

        A `NoAnswer` that is thrown into it ends it and is remembered.
        """
        known = self.of(document)
        try:
            question = next(conversation)
            while True:
                reply = next(known, None)
                if reply is None:
                    reply = yield question
                    self.add(document, reply)
                question = conversation.send(reply)
        except StopIteration:
            return
        except NoAnswer as error:
            self.unanswered[document] = str(error)

    def read(self, settings: Mapping[str, object]) -> None:
        """Read what is there, without what a kill left of a last line; begin a file that holds no reply.

        Raises:
            ValueError: A broken line, or replies under other settings.
        """
        self._file.seek(0)
        place, started = 0, None
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(place)
                break
            try:
                row = json.loads(line)
                if number == 1:
                    started = row["settings"]
                else:
                    self._count(row.pop("document"), place, Reply(**row))
            except (ValueError, LookupError, TypeError, AttributeError):
                raise ValueError(
                    f"{self.path}:{number}: not a line of a journal; move the file away to start anew"
                ) from None
            place += len(line)
        if self.replies:
            require_same(self.path, started, plain(settings))
        else:
            self._file.truncate(0)
            self._write({"settings": plain(settings)})

    def _count(self, document: int, place: int, reply: Reply) -> None:
        self._places[document].append(place)
        self.replies += 1
        self.unmetered += reply.tokens_in is None or reply.tokens_out is None
        self.tokens_in += reply.tokens_in or 0
        self.tokens_out += reply.tokens_out or 0

    def _write(self, row: Mapping[str, object]) -> None:
        with named(self.path):
            self._file.write(json.dumps(row).encode() + b"\n")  # in ASCII, which halves of surrogate pairs need
            self._file.flush()


@contextmanager
def open_journal(path: Path, settings: Mapping[str, object]) -> Iterator[Journal]:
    """Begin a journal, or go on with the one that is there.

    Args:
        path: The file.
        settings: What decides which questions are put.

    Raises:
        ValueError: It is in use, is no journal, or was begun with other settings (each is named).
    """
    with path.open("a+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"{path} is in use by another process; wait for it") from None
        journal = Journal(path, file)
        journal.read(settings)
        yield journal


def require_same(path: Path, started: object, now: object) -> None:
    """Raise ValueError, with each setting that differs, unless settings are the same."""
    then, current = flat(started), flat(now)
    different = [key for key in {**then, **current} if then.get(key, "(absent)") != current.get(key, "(absent)")]
    if different:
        lines = [f"  {key}: {then.get(key, '(absent)')} then, {current.get(key, '(absent)')} now" for key in different]
        raise ValueError(
            "\n".join([f"the answers in {path} were given with other settings:", *lines])
            + "\ngo on with those settings, or choose another --output"
        )
