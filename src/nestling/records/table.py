"""The rows of a dataset, read from a memory-mapped Arrow file."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from nestling.records.record import Record
from nestling.records.store import open_batches
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
# The known positives of a query text lie in the first row with that text; `first_row` says which it is.
SCHEMA = pa.schema([*CONTENT, pa.field("first_row", pa.int64()), pa.field("known_positives", _IDS)])


class RecordTable:
    """The rows of one dataset. Texts stay in the file; pickles as a path, so that workers map it anew.

    Args:
        path: Arrow file of schema `SCHEMA`, with its `LoadSummary` as metadata.
        name: The dataset's name.
        instruction: Instruction of rows that have none of their own.

    Attributes:
        summary: What loading read, kept and dropped.
        graded: Every row is a graded pair.
        has_scores: Every row holds teacher scores for all its documents.
        max_positives: Most positives in a row; 0 if every row has negatives only.
        max_negatives: Most hard negatives in a row.
    """

    def __init__(self, path: Path, name: str, instruction: str | None = None) -> None:
        self.path, self.name, self.instruction = path, name, instruction
        batches, meta = open_batches(path)
        self.summary = LoadSummary.from_json(meta)
        # One dict of columns a batch: making a column object anew for every row costs more than reading it.
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
        """[n] int64, the identity of each row's query."""
        return np.concatenate([columns["query_id"].to_numpy() for columns in self._columns])

    @cached_property
    def identity(self) -> str:
        """Fingerprint of all texts and which row has them, teacher scores aside."""
        digest = xxhash.xxh3_128()
        for columns in self._columns:
            digest.update(columns["query_id"].to_numpy())
            for name in ("positive_ids", "negative_ids"):
                digest.update(columns[name].value_lengths().to_numpy())
                digest.update(columns[name].flatten().to_numpy())
        return digest.hexdigest()

    def score_range(self) -> tuple[float, float]:
        """Lowest and highest score of any pair or document; (0, 0) where there are none."""
        found = [
            pc.min_max(column.flatten() if name.endswith("scores") else column).as_py()
            for columns in self._columns
            for name, column in columns.items()
            if name in ("score", "positive_scores", "negative_scores")
        ]
        values = [value for each in found for value in each.values() if value is not None]
        return min(values, default=0.0), max(values, default=0.0)

    def positive_ids(self, index: int) -> np.ndarray:
        """[P] int64, the identities of a row's positives, aligned with them; P is 0 in rows of negatives only."""
        columns, row = self._locate(index)
        return _ids(columns["positive_ids"][row])

    def negative_ids(self, index: int) -> np.ndarray:
        """[M] int64, the identities of a row's hard negatives, aligned with them."""
        columns, row = self._locate(index)
        return _ids(columns["negative_ids"][row])

    def known_positives(self, index: int) -> np.ndarray:
        """Sorted unique int64: all positives that any row of the dataset has for the row's query text."""
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
