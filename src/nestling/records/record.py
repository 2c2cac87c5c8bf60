"""One training row, the identity of a text, and the errors that point into a file."""

from dataclasses import dataclass
from typing import Any

import xxhash


@dataclass(frozen=True)
class Record:
    """A query with what is relevant to it and what is not.

    Args:
        query: The query's text, without prompt.
        positives: Relevant documents, at least one; in data for rerankers there may be none beside negatives.
        negatives: Hard negatives, any number of them.
        positive_scores: Teacher scores aligned with `positives`, or None.
        negative_scores: Teacher scores aligned with `negatives`, or None.
        instruction: Task instruction of the query, or None for the dataset's.
        score: Similarity of `query` and `positives[0]` if the row is a graded pair, else None.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    positive_scores: tuple[float, ...] | None = None
    negative_scores: tuple[float, ...] | None = None
    instruction: str | None = None
    score: float | None = None


def without_none(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row that hold something, as a line of JSON has them."""
    return {name: value for name, value in row.items() if value is not None}


def text_id(text: str) -> int:
    """Identity of a text: the upper 63 bits of XXH3-64 over its UTF-8 bytes, so never negative.

    Equal on every machine and in every run. Raises UnicodeEncodeError for a lone surrogate.
    """
    return xxhash.xxh3_64_intdigest(text.encode()) >> 1


class FieldError(ValueError):
    """A field of a row is not as it should be; `located` adds where the row is."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")


class located:  # noqa: N801 - used like contextlib's functions
    """Turn a `FieldError` raised inside into `ValueError("source:line: field: reason")`.

    A class, since every row passes through two of these and a generator takes four times as long.
    """

    __slots__ = ("line", "source")

    def __init__(self, source: str, line: int) -> None:
        self.source, self.line = source, line

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FieldError):
            raise ValueError(f"{self.source}:{self.line}: {error}") from None
