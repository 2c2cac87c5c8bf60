"""Mined records as rows of JSONL, in our own dialect or in others'."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nestling.mining.mined import Mined
from nestling.mining.pool import flat_values
from nestling.mining.retrieved import Scores
from nestling.records.record import Record, without_none
from nestling.records.table import RecordTable
from nestling.retrieval.metrics import Integers

Dialect = Literal["nestling", "sentence-transformers", "flagembedding"]


@dataclass(frozen=True)
class Written:
    """How many rows went where.

    Attributes:
        rows: Rows to write.
        negatives: Their negatives.
        without_negatives: How many have none.
        doubted: Positives that a consistency filter took out.
        dropped: Rows that had no other.
        added: Negatives that became positives, over all rows.
    """

    rows: int = 0
    negatives: int = 0
    without_negatives: int = 0
    doubted: int = 0
    dropped: int = 0
    added: int = 0

    def __str__(self) -> str:
        text = f"{self.rows:,} rows, {self.negatives:,} negatives"
        if self.without_negatives:
            text += f"; {self.without_negatives:,} rows have none"
        if self.doubted:
            text += (
                f"; {self.doubted:,} positives not consistent, which left {self.dropped:,} rows without any: dropped"
            )
        if self.added:
            text += f"; {self.added:,} positives added that the judge held relevant"
        return text


class MinedRows:
    """The rows of a table with mined negatives.

    Args:
        table: The records that were mined for.
        mined: What was found.
        positive_scores: Scores to write, [n] float32 of `mined.positives`.
        candidate_scores: Scores to write, [C] float32 of `mined.candidates`.

    Attributes:
        written: Counts while rows are made.
    """

    def __init__(self, table: RecordTable, mined: Mined, positive_scores: Scores, candidate_scores: Scores) -> None:
        self._table, self._mined = table, mined
        self._positive_scores, self._candidate_scores = positive_scores, candidate_scores
        counts = np.array([len(table.positive_ids(row)) for row in range(len(table))], dtype=np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        owners = np.repeat(mined.asked.of_row, counts)
        # Where each positive of each row stands among the positives of its query.
        self._places = mined.positives.lists.find(owners, mined.pool.find(flat_values(table, "positive_ids")))
        self.counts = dict.fromkeys(vars(Written()), 0)

    def __iter__(self) -> Iterator[tuple[Record, dict[str, Any]]]:
        """Each record with what explains it."""
        for row in range(len(self._table)):
            made = self._make(row)
            if made is not None:
                yield made

    @property
    def written(self) -> Written:
        return Written(**self.counts)

    def _make(self, row: int) -> tuple[Record, dict[str, Any]] | None:
        mined, query = self._mined, int(self._mined.asked.of_row[row])
        record = self._table[row]
        places = self._places[self._offsets[row] : self._offsets[row + 1]]
        kept = mined.positives.trusted[places]
        self.counts["doubted"] += int((~kept).sum())
        added, negatives = mined.relabelled[query], mined.negatives[query]
        if not kept.any():
            self.counts["dropped"] += 1
            return None
        self.counts["rows"] += 1
        self.counts["negatives"] += len(negatives)
        self.counts["without_negatives"] += not len(negatives)
        self.counts["added"] += len(added)
        positives = [text for text, keep in zip(record.positives, kept.tolist(), strict=True) if keep]
        positive_scores = np.concatenate([self._positive_scores[places[kept]], self._candidate_scores[added]])
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
        return made, self._explain(places[kept], added, negatives)

    def _texts(self, candidates: Integers) -> list[str]:
        return [self._mined.pool.texts[row] for row in self._mined.candidates.rows[candidates].tolist()]

    def _explain(self, places: Integers, added: Integers, negatives: Integers) -> dict[str, Any]:
        mined = self._mined
        positives = [
            {"id": mined.pool.id_of(int(mined.positives.lists.values[i])), "scores": known(mined.positives.scores, i)}
            for i in places.tolist()
        ]
        return {"positives": positives + self._facts(added), "negatives": self._facts(negatives)}

    def _facts(self, candidates: Integers) -> list[dict[str, Any]]:
        mined = self._mined
        return [
            {
                "id": mined.pool.id_of(int(mined.candidates.rows[i])),
                "ranks": {name: int(ranks[i]) for name, ranks in mined.candidates.ranks.items() if ranks[i] > 0},
                "scores": known(mined.candidates.scores, i),
            }
            for i in candidates.tolist()
        ]


def known(scores: Mapping[str, Scores], index: int) -> dict[str, float]:
    """The scores at an index that are known."""
    return {name: round(float(each[index]), 6) for name, each in scores.items() if not np.isnan(each[index])}


def as_floats(scores: Scores) -> tuple[float, ...]:
    """As the JSON of an embedder's or reranker's scores should hold them: float32 has seven digits."""
    return tuple(round(float(score), 6) for score in scores)


def in_dialect(record: Record, dialect: Dialect) -> Iterator[dict[str, Any]]:
    """A record as rows of a dialect that docs/data.md shows; sentence-transformers' have one positive each."""
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
