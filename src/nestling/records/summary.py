"""Counts of the rows and documents that were read, kept and dropped."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field

from nestling.records.instruction_counts import RowInstructions

FIELDS_SHOWN = 20


@dataclass(frozen=True)
class Drop:
    """The number of rows or documents dropped for one reason, and the first of them as `file:line`."""

    reason: str
    count: int
    example: str


class DropCounter:
    """Counts dropped rows and documents by reason, with the location of the first for each reason."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        if count:
            self._counts[reason] += count
            self._examples.setdefault(reason, example)

    def drops(self) -> tuple[Drop, ...]:
        return tuple(Drop(reason, count, self._examples[reason]) for reason, count in self._counts.items())


@dataclass(frozen=True)
class LoadSummary:
    """Counts of one load; `str(summary)` is the text to print.

    Args:
        source: File, folder or dataset id that was read.
        dialect: Name of the dialect its rows are written in.
        rows_read: Rows in the source (queries with a judgement, for a BEIR folder).
        rows_kept: Rows in the table.
        rows_scored: Kept rows with teacher scores for all their documents.
        rows_without_positives: Kept rows that have negatives only.
        rows_with_negatives: Kept rows that have hard negatives.
        positives: Positives over all kept rows.
        negatives: Hard negatives over all kept rows.
        max_positives: Largest number of positives in a row.
        max_negatives: Largest number of hard negatives in a row.
        drops: Dropped rows and documents, by reason.
        ignored: (unknown field, number of rows that have it) pairs.
        instructions: Instructions that kept rows have of their own.
    """

    source: str
    dialect: str
    rows_read: int
    rows_kept: int
    rows_scored: int = 0
    rows_without_positives: int = 0
    rows_with_negatives: int = 0
    positives: int = 0
    negatives: int = 0
    max_positives: int = 0
    max_negatives: int = 0
    drops: tuple[Drop, ...] = ()
    ignored: tuple[tuple[str, int], ...] = ()
    instructions: RowInstructions = field(default_factory=RowInstructions)

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.dialect}): {self.rows_read:,} rows read, {self.rows_kept:,} kept"]
        lines.append(
            f"  {self.positives:,} positives (at most {self.max_positives:,} a row), "
            f"{self.negatives:,} hard negatives (at most {self.max_negatives:,} a row)"
        )
        if self.rows_scored:
            lines.append(f"  teacher scores in {self.rows_scored:,} of {self.rows_kept:,} rows")
        if self.rows_without_positives:
            lines.append(f"  only negatives in {self.rows_without_positives:,} of {self.rows_kept:,} rows")
        if self.instructions.rows:
            lines.append(f"  instructions of rows: {self.instructions} of {self.rows_kept:,} rows")
        lines += [f"  dropped {drop.count:,}: {drop.reason} (first at {drop.example})" for drop in self.drops]
        lines += [f"  ignored field {field!r} in {count:,} rows" for field, count in self.ignored[:FIELDS_SHOWN]]
        if len(self.ignored) > FIELDS_SHOWN:
            lines.append(f"  ignored {len(self.ignored) - FIELDS_SHOWN:,} more fields")
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "LoadSummary":
        fields = json.loads(text)
        fields["drops"] = tuple(Drop(**drop) for drop in fields["drops"])
        fields["ignored"] = tuple((field, count) for field, count in fields["ignored"])
        frequent = tuple((text, count) for text, count in fields["instructions"].pop("frequent"))
        fields["instructions"] = RowInstructions(**fields["instructions"], frequent=frequent)
        return cls(**fields)
