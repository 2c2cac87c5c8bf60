"""What is not read, and why; and a limit on the time that one document may take."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class RefusedError(Exception):
    """A document cannot be read.

    Args:
        reason: Why, in the same words for all such documents, by which they are counted.
        detail: What is known beyond that.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Dropped:
    """Something that has no part in the corpus.

    Args:
        path: The file, or the member of an archive.
        reason: Why, in the same words wherever it is the same.
        detail: Where in it, or what is known beyond the reason.
        count: How many files, pages, rows or blocks.
    """

    path: str
    reason: str
    detail: str = ""
    count: int = 1

    @classmethod
    def of(cls, path: str, error: RefusedError) -> "Dropped":
        """What an error says about a document."""
        return cls(path, error.reason, error.detail)


class OutOfTime(BaseException):
    """A document took more processor time than it may. No Exception, which libraries catch to read on."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block after so many seconds of this process's own computation.

    It is raised again each further second, for code that catches everything. Only in the main thread.
    """

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
