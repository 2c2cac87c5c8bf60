"""What was found, in words, with examples that a person can look up."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from nestling.data_checks import labels
from nestling.data_checks.checks import KINDS, PLURAL, Checks, distinct
from nestling.data_checks.cleaning import evaluation_rows
from nestling.data_checks.near import Pairs, later
from nestling.data_checks.rows import SourceRows
from nestling.models.embedder import Kind

WIDTH = 100  # characters of a text that are shown


@dataclass(frozen=True)
class Example:
    """One place where something was found, and the text or place that it is about.

    Args:
        place: `file:line`.
        text: The text, shortened.
        other_place: Where the text is that it is compared with, if with one.
        other_text: That text, shortened.
        note: A figure, such as the similarity.
    """

    place: str
    text: str
    other_place: str = ""
    other_text: str = ""
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of finding.

    Args:
        name: Its name, that of the rule that drops it where there is one.
        what: In words.
        count: How many.
        of: Of how many.
        unit: Of what.
        examples: A few of them.
        rule: The rule of a cleaned copy that leaves these out; None where they are only reported.
    """

    name: str
    what: str
    count: int
    of: int
    unit: str
    examples: tuple[Example, ...]
    rule: str | None = None


def find(rows: SourceRows, checks: Checks, *, examples: int) -> list[Finding]:
    """Everything that was looked for, also what was not found; up to `examples` of each."""
    show = Shown(rows, examples)
    found = [*_rows(rows, show), *_documents(rows, checks, show), *_short(checks, show), *_near(checks, show)]
    return [*found, *_overlaps(rows, checks, show)]


class Shown:
    """Makes examples.

    Args:
        rows: The rows that they are of.
        limit: How many to make of a finding.
    """

    def __init__(self, rows: SourceRows, limit: int) -> None:
        self.rows, self.limit = rows, limit
        self.distinct = distinct(rows)

    def each(self, found: np.ndarray, make: Callable[[int], Example]) -> tuple[Example, ...]:
        """Examples of the first that were found, among [N] bool."""
        return tuple(make(i) for i in np.flatnonzero(found)[: self.limit].tolist())

    def text(self, kind: Kind, number: int) -> str:
        return shortened(self.distinct[kind].texts[number])

    def place(self, kind: Kind, number: int) -> str:
        """Where a distinct text is first."""
        first = int(self.distinct[kind].first[number])
        return self.rows.place(first if kind == "query" else int(self.rows.row_of[first]))

    def query(self, row: int) -> str:
        return self.text("query", int(self.rows.queries.which[row]))

    def document(self, place: int, note: str = "") -> Example:
        """One of the D documents, beside the query of its row."""
        row = int(self.rows.row_of[place])
        text = self.text("document", int(self.rows.documents.which[place]))
        return Example(self.rows.place(row), text, "", f"query: {self.query(row)}", note)

    def pairs(self, kind: Kind, pairs: Pairs) -> tuple[Example, ...]:
        """Pairs from the least similar to the most."""
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
    """The beginning of a text on one line."""
    line = " ".join(text[: 4 * WIDTH].split())
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


def _rows(rows: SourceRows, show: Shown) -> Iterator[Finding]:
    def earlier(keys: np.ndarray, row: int, note: str = "") -> Example:
        first = int(np.argmax(keys == keys[row]))
        return Example(rows.place(row), show.query(row), rows.place(first), show.query(first), note)

    repeated = labels.repeated_rows(rows)
    examples = show.each(repeated, lambda row: earlier(rows.row_ids, row))
    what = "rows equal to an earlier row"
    yield Finding("repeated_rows", what, int(repeated.sum()), len(rows), "rows", examples, "repeated_rows")
    again = labels.repeated_queries(rows)
    examples = show.each(again & ~repeated, lambda row: earlier(rows.queries.which, row))
    what = "rows with the query of an earlier row, but not equal to one"
    yield Finding("repeated_queries", what, int((again & ~repeated).sum()), len(rows), "rows", examples)
    if rows.graded:
        other = labels.other_scores(rows)
        pair = labels.pairs_of_rows(rows)
        examples = show.each(
            other, lambda row: earlier(pair, row, f"{rows.scores[row]:g} and {rows.scores[pair == pair[row]][0]:g}")
        )
        what = "graded pairs that an earlier row has with another score"
        yield Finding("other_scores", what, int(other.sum()), len(rows), "rows", examples)


def _documents(rows: SourceRows, checks: Checks, show: Shown) -> Iterator[Finding]:
    """Faults of documents within rows, and positives that many rows share."""

    def rule(name: str) -> str | None:
        return None if rows.graded else name  # documents of graded pairs are left alone

    total = len(rows.row_of)
    repeated = labels.repeated_documents(rows)
    examples = show.each(repeated, show.document)
    what = "documents that their row has already"
    name = "repeated_documents"
    yield Finding(name, what, int(repeated.sum()), total, "documents", examples, rule(name))
    equal = labels.documents_like_the_query(rows)
    examples = show.each(equal, show.document)
    name = "query_as_document"
    yield Finding(name, "documents equal to their query", int(equal.sum()), total, "documents", examples, rule(name))
    if not rows.graded:
        yield _contradictions(rows, show)
        yield _near_in_row(rows, checks, show)
    yield _shared(rows, show)


def _contradictions(rows: SourceRows, show: Shown) -> Finding:
    found = labels.contradictions(rows)
    pair = labels.pairs_of_rows(rows)

    def make(place: int) -> Example:
        positive = int(np.argmax((pair == pair[place]) & rows.is_positive))
        where = rows.place(int(rows.row_of[positive]))
        example = show.document(place)
        return Example(example.place, example.text, where, example.other_text, "negative, and positive")

    what = "negatives that are a positive of the same query, there or in another row"
    total = int((~rows.is_positive).sum())
    return Finding(
        "contradictions", what, int(found.sum()), total, "negatives", show.each(found, make), "contradictions"
    )


def _near_in_row(rows: SourceRows, checks: Checks, show: Shown) -> Finding:
    earlier, after = labels.near_in_row(rows, checks.near["document"], np.ones(len(rows.row_of), dtype=bool))
    examples = tuple(
        Example(
            rows.place(int(rows.row_of[second])),
            show.text("document", int(rows.documents.which[second])),
            rows.place(int(rows.row_of[first])),
            show.text("document", int(rows.documents.which[first])),
            "negative like a positive" if rows.is_positive[first] > rows.is_positive[second] else "",
        )
        for first, second in zip(earlier[: show.limit].tolist(), after[: show.limit].tolist(), strict=True)
    )
    false = int((rows.is_positive[earlier] & ~rows.is_positive[after]).sum())
    what = "documents that nearly equal another of their row"
    what += f", {false:,} of them negatives like a positive" if false else ""
    return Finding("near_in_row", what, len(after), len(rows.row_of), "documents", examples, "near_documents")


def _shared(rows: SourceRows, show: Shown) -> Finding:
    sharing = labels.sharing(rows)
    most = np.argsort(-sharing, kind="stable")[: show.limit]
    examples = tuple(
        Example(show.place("document", i), show.text("document", i), note=f"positive of {sharing[i]:,} rows")
        for i in most.tolist()
        if sharing[i] > 1
    )
    most_often = int(sharing.max(initial=0))
    what = "positives that several rows share" + (f", one by {most_often:,}" if most_often > 1 else "")
    return Finding("shared_positives", what, int((sharing > 1).sum()), int((sharing > 0).sum()), "positives", examples)


def _short(checks: Checks, show: Shown) -> Iterator[Finding]:
    for kind in KINDS:
        short, many = checks.short[kind], PLURAL[kind]
        examples = show.each(short, lambda i, kind=kind: Example(show.place(kind, i), show.text(kind, i)))  # type: ignore[misc]
        what = f"short {many}: few characters, or no letter or digit"
        yield Finding(f"short_{many}", what, int(short.sum()), len(short), f"distinct {many}", examples, "short")


def _near(checks: Checks, show: Shown) -> Iterator[Finding]:
    for kind in KINDS:
        pairs, many = checks.near[kind], PLURAL[kind]
        count = len(checks.short[kind])
        found = int(later(pairs, np.ones(count, dtype=bool)).sum())
        what = f"{many} that nearly equal an earlier one" + (f" ({len(pairs):,} pairs)" if len(pairs) else "")
        rule = "near_queries" if kind == "query" else None
        yield Finding(f"near_{many}", what, found, count, f"distinct {many}", show.pairs(kind, pairs), rule)


def _overlaps(rows: SourceRows, checks: Checks, show: Shown) -> Iterator[Finding]:
    """How many training texts of each kind are evaluation texts of each kind, and the rows that this concerns."""
    for (own, other), overlap in checks.overlaps.items():
        texts, found = checks.evaluation[other], overlap.match >= 0

        def make(i: int) -> Example:
            at = int(overlap.match[i])  # noqa: B023 - called in this round
            note = "equal" if overlap.equal[i] else f"similarity {overlap.similarity[i]:.3f}"  # noqa: B023
            return Example(show.place(own, i), show.text(own, i), texts.places[at], shortened(texts.texts[at]), note)  # noqa: B023

        equal, many = int(overlap.equal.sum()), PLURAL[own]
        meant = "evaluation queries" if other == "query" else "relevant documents of evaluation queries"
        what = f"training {many} that are {meant}"
        what += f" ({equal:,} equal, {int(found.sum()) - equal:,} nearly)" if found.any() else ""
        name = f"{own}_in_evaluation_{PLURAL[other]}"
        yield Finding(name, what, int(found.sum()), len(found), f"distinct {many}", show.each(found, make))
    for kind in checks.evaluation:
        found = evaluation_rows(rows, checks, kind)
        meant = "evaluation queries" if kind == "query" else "relevant documents of evaluation queries"
        what = f"rows whose query or a positive is one of the {meant}"
        name = f"eval_{PLURAL[kind]}"
        yield Finding(name, what, int(found.sum()), len(rows), "rows", (), name)
