"""Descriptions of the findings, with examples by file and line."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nestling.data_checks import labels
from nestling.data_checks.checks import KINDS, PLURAL, Checks
from nestling.data_checks.cleaning import evaluation_rows
from nestling.data_checks.examples import Example, ExampleBuilder, shortened
from nestling.data_checks.near_duplicates import later_duplicates
from nestling.data_checks.rows import SourceRows
from nestling.records.record import Kind

EVALUATION_TEXTS: dict[Kind, str] = {
    "query": "evaluation queries",
    "document": "relevant documents of evaluation queries",
}


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Args:
        name: Name of the check; that of the rule that drops its occurrences, if there is one.
        what: Description.
        count: Number of occurrences.
        of: Number of rows or texts that were checked.
        unit: What is counted: rows, documents, negatives, …
        examples: Some of the occurrences.
        rule: Rule by which a cleaned copy drops the occurrences; None if they are only reported.
    """

    name: str
    what: str
    count: int
    of: int
    unit: str
    examples: tuple[Example, ...]
    rule: str | None = None


def find_problems(rows: SourceRows, checks: Checks, *, examples: int) -> list[Finding]:
    """The results of all checks, with up to `examples` examples of each; their count may be 0."""
    builder = ExampleBuilder(rows, examples)
    found = [
        *_row_findings(rows, builder),
        *_document_findings(rows, checks, builder),
        *_short_text_findings(checks, builder),
        *_near_duplicate_findings(checks, builder),
    ]
    return [*found, *_overlap_findings(rows, checks, builder)]


def _row_findings(rows: SourceRows, builder: ExampleBuilder) -> Iterator[Finding]:
    def earlier(keys: np.ndarray, row: int, note: str = "") -> Example:
        first = int(np.argmax(keys == keys[row]))
        return Example(rows.place(row), builder.query(row), rows.place(first), builder.query(first), note)

    repeated = labels.repeated_rows(rows)
    examples = builder.first_of(repeated, lambda row: earlier(rows.row_ids, row))
    what = "rows identical to an earlier row"
    yield Finding("repeated_rows", what, int(repeated.sum()), len(rows), "rows", examples, "repeated_rows")
    again = labels.repeated_queries(rows)
    examples = builder.first_of(again & ~repeated, lambda row: earlier(rows.query_ids, row))
    what = "rows with the query of an earlier row, but not identical to one"
    yield Finding("repeated_queries", what, int((again & ~repeated).sum()), len(rows), "rows", examples)
    if rows.graded:
        other = labels.conflicting_scores(rows)
        pair = labels.text_pairs(rows)
        examples = builder.first_of(
            other, lambda row: earlier(pair, row, f"{rows.scores[row]:g} and {rows.scores[pair == pair[row]][0]:g}")
        )
        what = "graded pairs that an earlier row has with a different score"
        yield Finding("other_scores", what, int(other.sum()), len(rows), "rows", examples)


def _document_findings(rows: SourceRows, checks: Checks, builder: ExampleBuilder) -> Iterator[Finding]:
    """Problems of documents within rows, and positives that many rows have."""

    def rule(name: str) -> str | None:
        return None if rows.graded else name  # documents of graded pairs are never dropped

    total = len(rows.row_of)
    repeated = labels.repeated_documents(rows)
    examples = builder.first_of(repeated, builder.document)
    what = "documents repeated in their row"
    name = "repeated_documents"
    yield Finding(name, what, int(repeated.sum()), total, "documents", examples, rule(name))
    equal = labels.documents_equal_to_query(rows)
    examples = builder.first_of(equal, builder.document)
    name = "query_as_document"
    yield Finding(name, "documents equal to their query", int(equal.sum()), total, "documents", examples, rule(name))
    if not rows.graded:
        yield _contradiction_finding(rows, builder)
        yield _near_in_row_finding(rows, checks, builder)
    yield _shared_positive_finding(rows, builder)


def _contradiction_finding(rows: SourceRows, builder: ExampleBuilder) -> Finding:
    found = labels.contradictions(rows)
    pair = labels.text_pairs(rows)

    def make(place: int) -> Example:
        positive = int(np.argmax((pair == pair[place]) & rows.is_positive))
        where = rows.place(int(rows.row_of[positive]))
        example = builder.document(place)
        return Example(example.place, example.text, where, example.other_text, "negative, and positive")

    what = "negatives that are a positive of the same query, in the same row or another"
    total = int((~rows.is_positive).sum())
    return Finding(
        "contradictions", what, int(found.sum()), total, "negatives", builder.first_of(found, make), "contradictions"
    )


def _near_in_row_finding(rows: SourceRows, checks: Checks, builder: ExampleBuilder) -> Finding:
    earlier, after = labels.near_duplicates_in_row(
        rows, checks.near_duplicates["document"], np.ones(len(rows.row_of), dtype=bool)
    )
    examples = tuple(
        Example(
            rows.place(int(rows.row_of[second])),
            builder.text("document", int(rows.documents.which[second])),
            rows.place(int(rows.row_of[first])),
            builder.text("document", int(rows.documents.which[first])),
            "negative that nearly equals a positive" if rows.is_positive[first] > rows.is_positive[second] else "",
        )
        for first, second in zip(earlier[: builder.limit].tolist(), after[: builder.limit].tolist(), strict=True)
    )
    false = int((rows.is_positive[earlier] & ~rows.is_positive[after]).sum())
    what = "documents that are near duplicates of an earlier one of their row"
    what += f", {false:,} of them negatives that nearly equal a positive" if false else ""
    return Finding("near_in_row", what, len(after), len(rows.row_of), "documents", examples, "near_documents")


def _shared_positive_finding(rows: SourceRows, builder: ExampleBuilder) -> Finding:
    rows_per_positive = labels.rows_per_positive(rows)
    most = np.argsort(-rows_per_positive, kind="stable")[: builder.limit]
    examples = tuple(
        Example(
            builder.place("document", i), builder.text("document", i), note=f"positive of {rows_per_positive[i]:,} rows"
        )
        for i in most.tolist()
        if rows_per_positive[i] > 1
    )
    most_often = int(rows_per_positive.max(initial=0))
    what = "positives of more than one row" + (f", one of {most_often:,} rows" if most_often > 1 else "")
    return Finding(
        "shared_positives",
        what,
        int((rows_per_positive > 1).sum()),
        int((rows_per_positive > 0).sum()),
        "positives",
        examples,
    )


def _short_text_findings(checks: Checks, builder: ExampleBuilder) -> Iterator[Finding]:
    for kind in KINDS:
        short, many = checks.short[kind], PLURAL[kind]
        examples = builder.first_of(short, lambda i, kind=kind: Example(builder.place(kind, i), builder.text(kind, i)))  # type: ignore[misc]
        what = f"short {many}: too few characters, or no letter or digit"
        yield Finding(f"short_{many}", what, int(short.sum()), len(short), f"distinct {many}", examples, "short")


def _near_duplicate_findings(checks: Checks, builder: ExampleBuilder) -> Iterator[Finding]:
    for kind in KINDS:
        pairs, many = checks.near_duplicates[kind], PLURAL[kind]
        count = len(checks.short[kind])
        found = int(later_duplicates(pairs, np.ones(count, dtype=bool)).sum())
        what = f"{many} that are near duplicates of an earlier one" + (f" ({len(pairs):,} pairs)" if len(pairs) else "")
        rule = "near_queries" if kind == "query" else None
        yield Finding(f"near_{many}", what, found, count, f"distinct {many}", builder.pairs(kind, pairs), rule)


def _overlap_findings(rows: SourceRows, checks: Checks, builder: ExampleBuilder) -> Iterator[Finding]:
    """Training texts of each kind that are evaluation texts of each kind, and the rows that contain them."""
    for own, other in checks.overlaps:
        yield _overlap_finding(checks, own, other, builder)
    for kind in checks.evaluation:
        found = evaluation_rows(rows, checks, kind)
        what = f"rows whose query or a positive is one of the {EVALUATION_TEXTS[kind]}"
        name = f"eval_{PLURAL[kind]}"
        yield Finding(name, what, int(found.sum()), len(rows), "rows", (), name)


def _overlap_finding(checks: Checks, own: Kind, other: Kind, builder: ExampleBuilder) -> Finding:
    overlap, texts, many = checks.overlaps[own, other], checks.evaluation[other], PLURAL[own]
    found = overlap.match >= 0

    def make(i: int) -> Example:
        match = int(overlap.match[i])
        note = "equal" if overlap.equal[i] else f"similarity {overlap.similarity[i]:.3f}"
        other_text = shortened(texts.texts[match])
        return Example(builder.place(own, i), builder.text(own, i), texts.locations[match], other_text, note)

    equal = int(overlap.equal.sum())
    what = f"training {many} that are {EVALUATION_TEXTS[other]}"
    what += f" ({equal:,} equal, {int(found.sum()) - equal:,} near duplicates)" if found.any() else ""
    name = f"{own}_in_evaluation_{PLURAL[other]}"
    return Finding(name, what, int(found.sum()), len(found), f"distinct {many}", builder.first_of(found, make))
