"""How many negatives are false, by judgements that mining did not see."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nestling.mining.candidates import Candidates
from nestling.mining.lists import Lists, Mask
from nestling.mining.pool import Pool, flat_values
from nestling.mining.query_set import QuerySet
from nestling.records.load import load_records
from nestling.records.table import RecordTable
from nestling.retrieval.metrics import Integers


@dataclass(frozen=True)
class Measured:
    """Some negatives against judgements.

    Attributes:
        total: How many there are.
        negatives: How many of them are of queries that were judged.
        judged: How many of these were judged themselves.
        false: How many of these are relevant.
    """

    total: int
    negatives: int = 0
    judged: int = 0
    false: int = 0

    def __str__(self) -> str:
        return (
            f"{self.false:,} of the {self.negatives:,} negatives of judged queries are relevant "
            f"({self.false_fraction:.2%}), of {self.judged:,} that were judged themselves "
            f"({self.false_fraction_of_judged:.2%})"
        )

    @property
    def false_fraction(self) -> float:
        """Of the negatives of judged queries, how many are known to be relevant: a lower bound."""
        return self.false / max(self.negatives, 1)

    @property
    def false_fraction_of_judged(self) -> float:
        """Of the negatives that were judged, how many are relevant."""
        return self.false / max(self.judged, 1)


@dataclass(frozen=True)
class Judgements:
    """What a BEIR folder says of queries and documents, which are known by their texts.

    Attributes:
        relevant: For each query the documents of the pool with a grade above 0.
        irrelevant: Those with 0 or less.
        queries: [Q] bool, which queries were judged.
    """

    relevant: Lists
    irrelevant: Lists
    queries: Mask

    @classmethod
    def read(cls, folder: str | Path, split: str, query_set: QuerySet, pool: Pool) -> "Judgements":
        """Raises ValueError if none of the queries was judged, or as `load_records` does."""
        table = load_records(folder, split=split, allow_no_positives=True, progress=False)
        order = np.argsort(table.query_ids, kind="stable")
        at = np.minimum(np.searchsorted(table.query_ids, query_set.identities, sorter=order), len(table) - 1)
        rows = np.where(table.query_ids[order[at]] == query_set.identities, order[at], -1)
        if not (rows >= 0).any():
            raise ValueError(
                f"--judgements {folder}: split {split!r} judges none of the {len(query_set):,} queries, for instance "
                f"{query_set.texts[0][:60]!r}"
            )
        return cls(
            lists_of(table, "positive_ids", rows, pool),
            lists_of(table, "negative_ids", rows, pool),
            rows >= 0,
        )

    def measure(self, candidates: Candidates, chosen: Integers) -> Measured:
        """Of some candidates, given as positions, how many were judged and how many of them are relevant."""
        queries, rows = candidates.queries[chosen], candidates.rows[chosen]
        false = int(self.relevant.holds(queries, rows).sum())
        return Measured(
            total=len(chosen),
            negatives=int(self.queries[queries].sum()),
            judged=false + int(self.irrelevant.holds(queries, rows).sum()),
            false=false,
        )


def lists_of(table: RecordTable, name: str, rows: Integers, pool: Pool) -> Lists:
    """For each query, in row `rows` of the table or none (-1), the documents of a column that the pool has."""
    lengths = table.positive_ids if name == "positive_ids" else table.negative_ids
    offsets = np.cumsum([0, *(len(lengths(row)) for row in range(len(table)))])
    documents = pool.find(flat_values(table, name))
    spans = [documents[offsets[row] : offsets[row + 1]] if row >= 0 else documents[:0] for row in rows.tolist()]
    return Lists.of([span[span >= 0] for span in spans])
