"""The records of a dataset, in a memory-mapped Arrow file."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from nestling.records.arrow_files import open_batches
from nestling.records.record import Record
from nestling.records.summary import LoadSummary

_TEXTS, _IDS, _SCORES = pa.list_(pa.string()), pa.list_(pa.int64()), pa.list_(pa.float64())
CONTENT = [
    pa.field("query", pa.string()),
    pa.field("positives", _TEXTS),
    pa.field("negatives", _TEXTS),
    pa.field("positive_scores", _SCORES),
    pa.field("negative_scores", _SCORES),
    pa.field("instruction", pa.string()),
    pa.field("score", pa.float64()),
    pa.field("query_id", pa.int64()),
    pa.field("positive_ids", _IDS),
    pa.field("negative_ids", _IDS),
]
# The known positives of a query are stored in the first row with that query, whose index is `first_row`.
SCHEMA = pa.schema([*CONTENT, pa.field("first_row", pa.int64()), pa.field("known_positives", _IDS)])


class RecordTable:
    """The records of one dataset. Texts are read from the file on access; pickles as a path, which workers map again.

    Args:
        path: Arrow file with schema `SCHEMA` and its `LoadSummary` as metadata.
        name: The dataset's name.
        instruction: Instruction of the rows that have none.

    Attributes:
        summary: Counts of the rows and documents read, kept and dropped.
        graded: Whether the rows are graded pairs.
        has_scores: Whether every row has teacher scores for all its documents.
        max_positives: Largest number of positives in a row; 0 if every row has negatives only.
        max_negatives: Largest number of hard negatives in a row.
    """

    def __init__(self, path: Path, name: str, instruction: str | None = None) -> None:
        self.path, self.name, self.instruction = path, name, instruction
        batches, meta = open_batches(path)
        self.summary = LoadSummary.from_json(meta)
        # One dict of columns per record batch: creating a column object for every row costs more than reading the row.
        self._columns = [{field.name: batch.column(field.name) for field in SCHEMA} for batch in batches]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self.graded = bool(batches[0].column("score")[0].is_valid)
        self.has_scores = self.summary.rows_scored == len(self)
        self.max_positives, self.max_negatives = self.summary.max_positives, self.summary.max_negatives

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record:
        columns, row = self._locate(index)
        instruction = columns["instruction"][row].as_py()
        return Record(
            query=columns["query"][row].as_py(),
            positives=tuple(columns["positives"][row].as_py()),
            negatives=tuple(columns["negatives"][row].as_py()),
            positive_scores=_tuple(columns["positive_scores"][row].as_py()),
            negative_scores=_tuple(columns["negative_scores"][row].as_py()),
            instruction=self.instruction if instruction is None else instruction,
            score=columns["score"][row].as_py(),
        )

    @cached_property
    def query_ids(self) -> np.ndarray:
        """[n] int64: `query_id` of the query of each row, of its text and the row's own instruction."""
        return np.concatenate([columns["query_id"].to_numpy() for columns in self._columns])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the texts and instructions of all rows, in order; teacher scores are not included."""
        digest = xxhash.xxh3_128()
        for columns in self._columns:
            digest.update(columns["query_id"].to_numpy())
            for name in ("positive_ids", "negative_ids"):
                digest.update(columns[name].value_lengths().to_numpy())
                digest.update(columns[name].flatten().to_numpy())
        return digest.hexdigest()

    @cached_property
    def has_one_query(self) -> bool:
        """Whether all rows, at least two, have the same query."""
        return len(self) > 1 and bool((self.query_ids == self.query_ids[0]).all())

    @cached_property
    def has_one_positive(self) -> bool:
        """Whether all positives of all rows, at least two, are the same text."""
        ids = [columns["positive_ids"].flatten().to_numpy() for columns in self._columns]
        return len(self) > 1 and len({bound for each in ids if len(each) for bound in (each.min(), each.max())}) == 1

    def score_range(self) -> tuple[float, float]:
        """Lowest and highest score of all graded pairs and documents; (0, 0) without any score."""
        ranges = [
            pc.min_max(column.flatten() if name.endswith("scores") else column).as_py()
            for columns in self._columns
            for name, column in columns.items()
            if name in ("score", "positive_scores", "negative_scores")
        ]
        values = [value for score_range in ranges for value in score_range.values() if value is not None]
        return min(values, default=0.0), max(values, default=0.0)

    def positive_ids(self, index: int) -> np.ndarray:
        """[P] int64: `text_id` of each positive of a row; P is 0 in rows that have negatives only."""
        columns, row = self._locate(index)
        return _ids(columns["positive_ids"][row])

    def negative_ids(self, index: int) -> np.ndarray:
        """[M] int64: `text_id` of each hard negative of a row."""
        columns, row = self._locate(index)
        return _ids(columns["negative_ids"][row])

    def known_positives(self, index: int) -> np.ndarray:
        """Sorted unique int64: ids of all positives that any row of the dataset has for the query of a row."""
        columns, row = self._locate(index)
        columns, row = self._locate(columns["first_row"][row].as_py())
        return _ids(columns["known_positives"][row])

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordTable, (self.path, self.name, self.instruction)

    def _locate(self, index: int) -> tuple[dict[str, Any], int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index = index % len(self)
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._columns[batch], index - int(self._starts[batch])


def _ids(scalar: Any) -> np.ndarray:
    ids: np.ndarray = scalar.values.to_numpy()  # a read-only view of the file
    return ids


def _tuple(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
