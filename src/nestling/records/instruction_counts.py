"""In how many rows of a dataset which instruction of their own stands."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

SHOWN = 3


@dataclass(frozen=True)
class RowInstructions:
    """The instructions that rows have of their own.

    Args:
        rows: Rows that have one.
        distinct: Different ones among them.
        frequent: (instruction, its number of rows) of the most frequent ones, at most `SHOWN`.
    """

    rows: int = 0
    distinct: int = 0
    frequent: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        shown = [f"{text!r} in {count:,}" for text, count in self.frequent]
        more = self.distinct - len(shown)
        left = self.rows - sum(count for _, count in self.frequent)
        return ", ".join(shown + ([f"{more:,} more in {left:,}"] if more else []))


def count_instructions(columns: Iterable[Any]) -> RowInstructions:
    """Of the Arrow arrays of instructions of a dataset's record batches, null for rows without one."""
    counts: Counter[str] = Counter()
    for column in columns:
        for each in pc.value_counts(column.drop_null()).to_pylist():
            counts[each["values"]] += each["counts"]
    return RowInstructions(counts.total(), len(counts), tuple(counts.most_common(SHOWN)))
