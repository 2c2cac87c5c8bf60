"""How many mined negatives are false, by relevance judgements (qrels) that mining did not use."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nestling.mining.candidates import Candidates
from nestling.mining.lists import Lists, Mask, expand
from nestling.mining.pool import Pool, flat_values
from nestling.mining.query_set import QuerySet
from nestling.records.load import load_records
from nestling.records.record import text_id
from nestling.records.table import RecordTable
from nestling.retrieval.metrics import Integers


@dataclass(frozen=True)
class FalseNegativeCounts:
    """Negatives counted against relevance judgements.

    Attributes:
        total: All negatives.
        of_judged_queries: Those whose query has judgements.
        judged: Those of them that have a judgement themselves.
        false: Those of them that are judged relevant.
    """

    total: int
    of_judged_queries: int = 0
    judged: int = 0
    false: int = 0

    def __str__(self) -> str:
        return (
            f"{self.false:,} of the {self.of_judged_queries:,} negatives of judged queries are relevant "
            f"({self.false_fraction:.2%}), of {self.judged:,} that were judged themselves "
            f"({self.false_fraction_of_judged:.2%})"
        )

    @property
    def false_fraction(self) -> float:
        """False negatives among the negatives of judged queries: a lower bound, since most are not judged."""
        return self.false / max(self.of_judged_queries, 1)

    @property
    def false_fraction_of_judged(self) -> float:
        """False negatives among the negatives that are judged."""
        return self.false / max(self.judged, 1)


@dataclass(frozen=True)
class RelevanceJudgements:
    """The judgements of a BEIR folder, matched to the queries and the pool by text.

    Attributes:
        relevant: For each query the documents with a grade above 0, as positions in the pool.
        irrelevant: Those with a grade of 0 or less.
        queries: [Q] bool, the queries that have judgements.
    """

    relevant: Lists
    irrelevant: Lists
    queries: Mask

    @classmethod
    def read(cls, folder: str | Path, split: str, query_set: QuerySet, pool: Pool) -> "RelevanceJudgements":
        """Raises ValueError if no query has judgements, and whatever `load_records` raises."""
        table = load_records(folder, split=split, allow_no_positives=True, progress=False)
        # A BEIR folder has no instructions: its judgements hold for a text, whatever the instruction of the query is.
        wanted = np.fromiter(map(text_id, query_set.texts), np.int64, len(query_set))
        order = np.argsort(table.query_ids, kind="stable")
        begin, end = (np.searchsorted(table.query_ids, wanted, side, order) for side in ("left", "right"))
        if not (end > begin).any():
            raise ValueError(
                f"--judgements {folder}: split {split!r} judges none of the {len(query_set):,} queries, for instance "
                f"{query_set.texts[0][:60]!r}"
            )
        # Several, where queries with different ids have the same text.
        rows = [order[first:last] for first, last in zip(begin.tolist(), end.tolist(), strict=True)]
        return cls(
            lists_of(table, "positive_ids", rows, pool), lists_of(table, "negative_ids", rows, pool), end > begin
        )

    def count(self, candidates: Candidates, negatives: Integers) -> FalseNegativeCounts:
        """Count negatives that are judged and relevant. `negatives` are indices of candidates."""
        queries, documents = candidates.queries[negatives], candidates.documents[negatives]
        relevant = self.relevant.holds(queries, documents)
        false = int(relevant.sum())
        return FalseNegativeCounts(
            total=len(negatives),
            of_judged_queries=int(self.queries[queries].sum()),
            judged=int((relevant | self.irrelevant.holds(queries, documents)).sum()),
            false=false,
        )


def lists_of(table: RecordTable, name: str, rows: Sequence[Integers], pool: Pool) -> Lists:
    """For each query the documents of a column, as positions in the pool; documents that it lacks are left out.

    Args:
        table: The records of judged queries.
        name: The column, positive_ids or negative_ids.
        rows: For each query its records.
        pool: The documents.
    """
    lengths = table.positive_ids if name == "positive_ids" else table.negative_ids
    offsets = np.cumsum([0, *(len(lengths(row)) for row in range(len(table)))])
    documents = pool.find(flat_values(table, name))
    which, record = expand(np.arange(len(rows)), Lists.of(rows))
    of_record, listed = expand(record, Lists(offsets, documents))
    known = listed >= 0
    return Lists.grouped(which[of_record[known]], listed[known], len(rows))
