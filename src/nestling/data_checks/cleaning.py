"""Removal of rows and documents by rule, and writing of the cleaned copy.

Shapes: n rows, D documents over all rows (`SourceRows`).
"""

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nestling.config.cleaning_rules import Rule
from nestling.data_checks import labels
from nestling.data_checks.checks import Checks
from nestling.data_checks.rows import SourceRows
from nestling.files import write_jsonl
from nestling.records.record import Kind, without_none

NO_POSITIVE, NO_DOCUMENT = "no_positive_left", "no_document_left"


@dataclass(frozen=True)
class DropCount:
    """Rows and documents that one rule dropped, of those that the rules before it kept."""

    rule: str
    rows: int
    documents: int


@dataclass
class CleanedCopy:
    """The rows and documents that are kept so far.

    Args:
        rows: All rows of the source.
        keep_row: [n] bool.
        keep_document: [D] bool; documents of dropped rows may be True.
    """

    rows: SourceRows
    keep_row: np.ndarray
    keep_document: np.ndarray

    @property
    def documents(self) -> np.ndarray:
        """[D] bool: the kept documents of kept rows."""
        kept: np.ndarray = self.keep_document & self.keep_row[self.rows.row_of]
        return kept

    def drop(self, rule: str, rows: np.ndarray | None = None, documents: np.ndarray | None = None) -> DropCount:
        """Drop rows ([n] bool), and documents ([D] bool) of the other rows."""
        row = self.keep_row & (False if rows is None else rows)
        self.keep_row = self.keep_row & ~row
        document = self.documents & (False if documents is None else documents)
        self.keep_document = self.keep_document & ~document
        return DropCount(rule, int(row.sum()), int(document.sum()))


def clean(rows: SourceRows, checks: Checks, rules: Collection[Rule]) -> tuple[CleanedCopy, list[DropCount]]:
    """Apply the rules in the order of `Rule`. The documents of graded pairs are never dropped.

    - repeated_rows: rows identical to an earlier one.
    - eval_queries, eval_documents: rows whose query, or a positive, is equal to or a near duplicate of a query, or a
      relevant document, of an evaluation set.
    - short: rows with a short query, and short documents.
    - repeated_documents: documents that are repeated in their row.
    - query_as_document: documents equal to the query of their row.
    - contradictions: negatives that are a positive of the same query in any row.
    - near_documents: near duplicates of an earlier document of the same row; positives come before negatives.
    - near_queries: rows whose query is a near duplicate of an earlier one with the same instruction that is kept.

    Finally, rows that have lost all their positives, or all their documents, are dropped.
    """
    copy = CleanedCopy(rows, np.ones(len(rows), dtype=bool), np.ones(len(rows.row_of), dtype=bool))
    dropped = [*_drop_rows(copy, checks, rules)]
    if not rows.graded:
        dropped += _drop_documents(copy, checks, rules)
    if "near_queries" in rules:
        found = labels.near_queries(rows, checks.near_duplicates["query"], copy.keep_row)
        dropped.append(copy.drop("near_queries", found))
    return copy, [*dropped, *_drop_emptied_rows(copy)]


def evaluation_rows(rows: SourceRows, checks: Checks, kind: Kind) -> np.ndarray:
    """[n] bool: rows whose query, or a positive, is a query or relevant document of an evaluation set."""
    found: np.ndarray = (checks.overlaps["query", kind].match >= 0)[rows.queries.which]
    document = (checks.overlaps["document", kind].match >= 0)[rows.documents.which]
    found[rows.row_of[document & rows.is_positive]] = True
    return found


def _drop_rows(copy: CleanedCopy, checks: Checks, rules: Collection[Rule]) -> Iterator[DropCount]:
    rows = copy.rows
    if "repeated_rows" in rules:
        yield copy.drop("repeated_rows", labels.repeated_rows(rows))
    if "eval_queries" in rules and checks.evaluation:
        yield copy.drop("eval_queries", evaluation_rows(rows, checks, "query"))
    if "eval_documents" in rules and checks.evaluation:
        yield copy.drop("eval_documents", evaluation_rows(rows, checks, "document"))
    if "short" in rules:
        documents = None if rows.graded else checks.short["document"][rows.documents.which]
        yield copy.drop("short", checks.short["query"][rows.queries.which], documents)


def _drop_documents(copy: CleanedCopy, checks: Checks, rules: Collection[Rule]) -> Iterator[DropCount]:
    rows = copy.rows
    if "repeated_documents" in rules:
        yield copy.drop("repeated_documents", documents=labels.repeated_documents(rows))
    if "query_as_document" in rules:
        yield copy.drop("query_as_document", documents=labels.documents_equal_to_query(rows))
    if "contradictions" in rules:
        yield copy.drop("contradictions", documents=labels.contradictions(rows))
    if "near_documents" in rules:
        found = np.zeros(len(rows.row_of), dtype=bool)
        found[labels.near_duplicates_in_row(rows, checks.near_duplicates["document"], copy.documents)[1]] = True
        yield copy.drop("near_documents", documents=found)


def _drop_emptied_rows(copy: CleanedCopy) -> Iterator[DropCount]:
    """Drop rows that lost all their positives, and rows of negatives only that lost all their documents."""
    rows, kept = copy.rows, copy.documents
    positives = np.bincount(rows.row_of[kept & rows.is_positive], minlength=len(rows))
    documents = np.bincount(rows.row_of[kept], minlength=len(rows))
    yield copy.drop(NO_POSITIVE, (positives == 0) & (rows.positives > 0))
    yield copy.drop(NO_DOCUMENT, documents == 0)


def write_copy(copy: CleanedCopy, path: Path) -> None:
    """Write the kept rows as JSONL in the nestling dialect (docs/data.md), atomically."""
    records = copy.rows.records(copy.keep_row, copy.keep_document)
    write_jsonl(path, (without_none(asdict(record)) for record in records))
