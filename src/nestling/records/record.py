"""A training record, the hashes of texts and queries, and errors that name a line of a file."""

from dataclasses import dataclass
from typing import Any, Literal

import xxhash

Kind = Literal["query", "document"]  # of a text
LONGEST_FIELD, LONGEST_REASON = 100, 3000  # characters in a message


@dataclass(frozen=True)
class Record:
    """A training record: a query with relevant documents and hard negatives.

    Args:
        query: Text of the query, without its prompt.
        positives: Relevant documents, at least one; data for rerankers may have rows with negatives only.
        negatives: Hard negatives, any number of them.
        positive_scores: Teacher scores aligned with `positives`, or None.
        negative_scores: Teacher scores aligned with `negatives`, or None.
        instruction: Task instruction of the query; None to use that of the dataset.
        score: Similarity label of `query` and `positives[0]` if the record is a graded pair, else None.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    positive_scores: tuple[float, ...] | None = None
    negative_scores: tuple[float, ...] | None = None
    instruction: str | None = None
    score: float | None = None


def without_none(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row that are not None."""
    return {name: value for name, value in row.items() if value is not None}


def text_id(text: str) -> int:
    """Hash of a text: the upper 63 bits of XXH3-64 over its UTF-8 bytes, so that it fits into a non-negative int64.

    The same on every machine and in every run. Raises UnicodeEncodeError for a lone surrogate.
    """
    return xxhash.xxh3_64_intdigest(text.encode()) >> 1


def query_id(text: str, instruction: str | None) -> int:
    """Hash by which queries are equal: of the text and its row's own instruction, or `text_id` of it without one.

    Raises UnicodeEncodeError for a lone surrogate in either.
    """
    if instruction is None:
        return text_id(text)
    return xxhash.xxh3_64_intdigest(text.encode(), seed=text_id(instruction)) >> 1


def cut(text: str, length: int) -> str:
    """The text, or its first `length` characters with an ellipsis, without control characters and in one line."""
    shown = text if len(text) <= length else f"{text[:length]}…"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown)


class FieldError(ValueError):
    """An invalid field of a row; `located` adds file and line of the row. Field and reason are cut if they are long."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{cut(field, LONGEST_FIELD)}: {cut(reason, LONGEST_REASON)}")


class located:  # noqa: N801 - used like contextlib's functions
    """Turn a `FieldError` raised in the block into `ValueError("source:line: field: reason")`.

    A RecursionError, in which nested values may end, becomes one as well. A class rather than a generator with
    `contextmanager`, which takes four times as long: it is entered twice a row.
    """

    __slots__ = ("line", "source")

    def __init__(self, source: str, line: int) -> None:
        self.source, self.line = source, line

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FieldError):
            raise ValueError(f"{self.source}:{self.line}: {error}") from None
        if isinstance(error, RecursionError):
            raise ValueError(f"{self.source}:{self.line}: line: values are nested too deeply") from None
