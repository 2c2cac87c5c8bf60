"""Records with mined negatives, and their JSON objects in the dialects of several libraries."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nestling.mining.pool import flat_values
from nestling.mining.result import MiningResult
from nestling.mining.retrieved import Scores
from nestling.records.record import Record, without_none
from nestling.records.table import RecordTable
from nestling.retrieval.metrics import Integers

Dialect = Literal["nestling", "sentence-transformers", "flagembedding"]


@dataclass(frozen=True)
class WriteCounts:
    """Counts of the records that were made.

    Attributes:
        records: Records that were made.
        negatives: Their negatives.
        without_negatives: Records of these that have no negative.
        untrusted: Positives left out because they failed the consistency filter.
        dropped: Records left out because no other positive remained.
        added: Positives added because the judge held a candidate relevant.
    """

    records: int = 0
    negatives: int = 0
    without_negatives: int = 0
    untrusted: int = 0
    dropped: int = 0
    added: int = 0

    def __str__(self) -> str:
        text = f"{self.records:,} rows, {self.negatives:,} negatives"
        if self.without_negatives:
            text += f"; {self.without_negatives:,} rows have none"
        if self.untrusted:
            text += (
                f"; {self.untrusted:,} positives not consistent, which left {self.dropped:,} rows without any: dropped"
            )
        if self.added:
            text += f"; {self.added:,} positives added that the judge held relevant"
        return text


class MinedRecords:
    """The records of a table with mined negatives, made one at a time by iteration.

    Args:
        table: The records that were mined.
        result: What was mined.
        positive_scores: The scores to write of `result.positives`, [n] float32.
        candidate_scores: The scores to write of `result.candidates`, [C] float32.
    """

    def __init__(
        self, table: RecordTable, result: MiningResult, positive_scores: Scores, candidate_scores: Scores
    ) -> None:
        self._table, self._result = table, result
        self._positive_scores, self._candidate_scores = positive_scores, candidate_scores
        counts = np.array([len(table.positive_ids(row)) for row in range(len(table))], dtype=np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        queries = np.repeat(result.query_set.query_of_record, counts)
        # For each positive of each record its index in `result.positives`.
        self._positives = result.positives.lists.find(queries, result.pool.find(flat_values(table, "positive_ids")))
        self._counts = dict.fromkeys(vars(WriteCounts()), 0)

    def __iter__(self) -> Iterator[tuple[Record, dict[str, Any]]]:
        """Each record, with the ids, ranks and scores of its documents."""
        for row in range(len(self._table)):
            made = self._make(row)
            if made is not None:
                yield made

    @property
    def written(self) -> WriteCounts:
        """Counts of the records made so far."""
        return WriteCounts(**self._counts)

    def _make(self, row: int) -> tuple[Record, dict[str, Any]] | None:
        """The record of a row of the table with its details; None if none of its positives is trusted."""
        result, query = self._result, int(self._result.query_set.query_of_record[row])
        record = self._table[row]
        indices = self._positives[self._offsets[row] : self._offsets[row + 1]]
        kept = result.positives.trusted[indices]
        self._counts["untrusted"] += int((~kept).sum())
        added, negatives = result.relabelled[query], result.negatives[query]
        if not kept.any():
            self._counts["dropped"] += 1
            return None
        self._counts["records"] += 1
        self._counts["negatives"] += len(negatives)
        self._counts["without_negatives"] += not len(negatives)
        self._counts["added"] += len(added)
        positives = [text for text, keep in zip(record.positives, kept.tolist(), strict=True) if keep]
        positive_scores = np.concatenate([self._positive_scores[indices[kept]], self._candidate_scores[added]])
        negative_scores = self._candidate_scores[negatives]
        scored = not (np.isnan(positive_scores).any() or np.isnan(negative_scores).any())
        made = Record(
            query=record.query,
            positives=(*positives, *self._texts(added)),
            negatives=tuple(self._texts(negatives)),
            positive_scores=as_floats(positive_scores) if scored else None,
            negative_scores=as_floats(negative_scores) if scored else None,
            instruction=record.instruction,
        )
        return made, self._details(indices[kept], added, negatives)

    def _texts(self, candidates: Integers) -> list[str]:
        return [self._result.pool.texts[i] for i in self._result.candidates.documents[candidates].tolist()]

    def _details(self, positives: Integers, added: Integers, negatives: Integers) -> dict[str, Any]:
        """The field `mined` of a record: ids, ranks and scores of its documents, given as indices."""
        result = self._result
        own = [
            {
                "id": result.pool.id_of(int(result.positives.lists.values[i])),
                "scores": known_scores(result.positives.scores, i),
            }
            for i in positives.tolist()
        ]
        return {
            "positives": own + self._candidate_details(added),
            "negatives": self._candidate_details(negatives),
        }

    def _candidate_details(self, candidates: Integers) -> list[dict[str, Any]]:
        result = self._result
        return [
            {
                "id": result.pool.id_of(int(result.candidates.documents[i])),
                "ranks": {name: int(ranks[i]) for name, ranks in result.candidates.ranks.items() if ranks[i] > 0},
                "scores": known_scores(result.candidates.scores, i),
            }
            for i in candidates.tolist()
        ]


def known_scores(scores: Mapping[str, Scores], index: int) -> dict[str, float]:
    """By scorer the score at an index, without those that are NaN."""
    return {name: round(float(each[index]), 6) for name, each in scores.items() if not np.isnan(each[index])}


def as_floats(scores: Scores) -> tuple[float, ...]:
    """Scores for JSON, rounded to 6 decimals, since float32 has no more than about seven digits."""
    return tuple(round(float(score), 6) for score in scores)


def in_dialect(record: Record, dialect: Dialect) -> Iterator[dict[str, Any]]:
    """The JSON objects of a record in a dialect of docs/data.md; sentence-transformers takes one for each positive."""
    if dialect == "sentence-transformers":
        for i, positive in enumerate(record.positives):
            row: dict[str, Any] = {"anchor": record.query, "positive": positive}
            row |= {f"negative_{j}": text for j, text in enumerate(record.negatives, start=1)}
            if record.positive_scores is not None and record.negative_scores is not None:
                row["scores"] = [record.positive_scores[i], *record.negative_scores]
            yield without_none(row | {"instruction": record.instruction})
        return
    names = ("positives", "negatives", "positive_scores", "negative_scores", "instruction")
    theirs = names if dialect == "nestling" else ("pos", "neg", "pos_scores", "neg_scores", "prompt")
    yield without_none(
        {"query": record.query} | {their: getattr(record, ours) for ours, their in zip(names, theirs, strict=True)}
    )
