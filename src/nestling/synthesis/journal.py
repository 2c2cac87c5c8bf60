"""A journal of all completions, so that no request is sent, or paid for, twice.

The journal is a JSONL file: the first line holds the settings that the requests depend on, each other line a completion
and the id of its document. A completion is written before the next request of the conversation is sent, so a process
that is killed loses only the completions of pending requests.
"""

import json
import os
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from nestling.config.nested import flat, plain
from nestling.disk_errors import named
from nestling.locks import claimed_file
from nestling.synthesis.conversation import ChatRequest, Completion, NoAnswer


class Journal:
    """An open journal, locked against other processes.

    Attributes:
        path: The file.
        completions: Number of completions in the file.
        without_usage: Number of completions for which the server did not report usage.
        tokens_in: Tokens of all prompts.
        tokens_out: Tokens of all completions.
        unanswered: Id of a document -> why a request got no completion since the journal was opened.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self.completions = self.without_usage = self.tokens_in = self.tokens_out = 0
        self.unanswered: dict[int, str] = {}
        self._offsets: defaultdict[int, list[int]] = defaultdict(list)  # of lines, by document; texts stay in the file

    def has(self, document: int) -> bool:
        """Whether there is a completion for a document."""
        return document in self._offsets

    def completions_of(self, document: int) -> Iterator[Completion]:
        """The completions for a document, in the order in which they were received."""
        for offset in self._offsets.get(document, ()):
            self._file.seek(offset)
            line = json.loads(self._file.readline())
            del line["document"]
            yield Completion(**line)

    def add(self, document: int, completion: Completion) -> None:
        """Append a completion; it survives a kill of this process, but is not synced to disk."""
        offset = self._file.seek(0, os.SEEK_END)
        self._write({"document": document, **asdict(completion)})
        self._count(document, offset, completion)

    def record(
        self, document: int, conversation: Generator[ChatRequest, Completion, object]
    ) -> Generator[ChatRequest, Completion, None]:
        """A conversation that takes its completions from the journal as far as there are any, and appends further ones.

        A `NoAnswer` that is thrown into it ends it and is added to `unanswered`.
        """
        recorded = self.completions_of(document)
        try:
            request = next(conversation)
            while True:
                completion = next(recorded, None)
                if completion is None:
                    completion = yield request
                    self.add(document, completion)
                request = conversation.send(completion)
        except StopIteration:
            return
        except NoAnswer as error:
            self.unanswered[document] = str(error)

    def load(self, settings: Mapping[str, object]) -> None:
        """Read the file, and write the settings to it if it holds no completion.

        An incomplete last line, left by a kill, is removed.

        Raises:
            ValueError: A broken line, or completions under other settings.
        """
        journal_settings = None
        for number, offset, line in self._complete_lines():
            try:
                row = json.loads(line)
                if number == 1:
                    journal_settings = row["settings"]
                else:
                    self._count(row.pop("document"), offset, Completion(**row))
            except (ValueError, LookupError, TypeError, AttributeError):
                raise ValueError(
                    f"{self.path}:{number}: not a line of a journal; move the file away to start again"
                ) from None
        if self.completions:
            require_same(self.path, journal_settings, plain(settings))
        else:
            self._file.truncate(0)
            self._write({"settings": plain(settings)})

    def _complete_lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (number, offset, line) of each complete line; an incomplete last line is removed."""
        self._file.seek(0)
        offset = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(offset)
                return
            yield number, offset, line
            offset += len(line)

    def _count(self, document: int, offset: int, completion: Completion) -> None:
        self._offsets[document].append(offset)
        self.completions += 1
        self.without_usage += completion.tokens_in is None or completion.tokens_out is None
        self.tokens_in += completion.tokens_in or 0
        self.tokens_out += completion.tokens_out or 0

    def _write(self, row: Mapping[str, object]) -> None:
        with named(self.path):
            self._file.write(json.dumps(row).encode() + b"\n")  # ASCII, since completions may have lone surrogates
            self._file.flush()


@contextmanager
def open_journal(path: Path, settings: Mapping[str, object]) -> Iterator[Journal]:
    """Open or create a journal.

    Args:
        path: The file.
        settings: Everything that the requests depend on.

    Raises:
        ValueError: It is in use, is not a journal, or was written with other settings (each is named).
    """
    with claimed_file(path) as file:
        journal = Journal(path, file)
        journal.load(settings)
        yield journal


def require_same(path: Path, journal_settings: object, now: object) -> None:
    """Raise ValueError, with each setting that differs, unless the settings are equal."""
    then, current = flat(journal_settings), flat(now)
    different = [key for key in {**then, **current} if then.get(key, "(absent)") != current.get(key, "(absent)")]
    if different:
        lines = [f"  {key}: {then.get(key, '(absent)')} then, {current.get(key, '(absent)')} now" for key in different]
        raise ValueError(
            "\n".join([f"the answers in {path} were given with other settings:", *lines])
            + "\nuse those settings, or choose another --output"
        )
