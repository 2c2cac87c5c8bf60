"""Examples of findings, with the location of each as `file:line`."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nestling.data_checks.near_duplicates import NearDuplicatePairs
from nestling.data_checks.rows import SourceRows
from nestling.records.record import Kind

WIDTH = 100  # characters of a text that an example shows


@dataclass(frozen=True)
class Example:
    """One occurrence of a finding.

    Args:
        place: Location as `file:line`.
        text: The text, shortened.
        other_place: Location of the text that it is compared with; empty if there is none.
        other_text: The text that it is compared with, shortened.
        note: A figure such as the similarity.
    """

    place: str
    text: str
    other_place: str = ""
    other_text: str = ""
    note: str = ""


class ExampleBuilder:
    """Builds the examples of findings.

    Args:
        rows: The rows of the dataset.
        limit: Maximum number of examples of a finding.
    """

    def __init__(self, rows: SourceRows, limit: int) -> None:
        self.rows, self.limit = rows, limit
        self.distinct_texts = rows.texts_by_kind

    def first_of(self, found: np.ndarray, make: Callable[[int], Example]) -> tuple[Example, ...]:
        """Examples of the first indices at which `found` [N] bool is True."""
        return tuple(make(i) for i in np.flatnonzero(found)[: self.limit].tolist())

    def text(self, kind: Kind, number: int) -> str:
        """A distinct text, shortened."""
        return shortened(self.distinct_texts[kind].texts[number])

    def place(self, kind: Kind, number: int) -> str:
        """Location of the first occurrence of a distinct text."""
        first = int(self.distinct_texts[kind].first[number])
        return self.rows.place(first if kind == "query" else int(self.rows.row_of[first]))

    def query(self, row: int) -> str:
        """The query of a row, shortened."""
        return self.text("query", int(self.rows.queries.which[row]))

    def document(self, place: int, note: str = "") -> Example:
        """Example of one of the D documents, with the query of its row."""
        row = int(self.rows.row_of[place])
        text = self.text("document", int(self.rows.documents.which[place]))
        return Example(self.rows.place(row), text, "", f"query: {self.query(row)}", note)

    def pairs(self, kind: Kind, pairs: NearDuplicatePairs) -> tuple[Example, ...]:
        """Examples of pairs, evenly spaced from the least similar to the most similar."""
        order = np.argsort(pairs.similarity, kind="stable")
        chosen = np.unique(np.linspace(0, len(order) - 1, self.limit).round().astype(int)) if len(order) else order
        return tuple(
            Example(
                self.place(kind, int(pairs.second[i])),
                self.text(kind, int(pairs.second[i])),
                self.place(kind, int(pairs.first[i])),
                self.text(kind, int(pairs.first[i])),
                f"similarity {pairs.similarity[i]:.3f}",
            )
            for i in order[chosen]
        )


def shortened(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: 4 * WIDTH].split())
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"
