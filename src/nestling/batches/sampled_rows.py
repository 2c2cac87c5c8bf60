"""The rows of a global batch with the documents sampled from them, and the tensors that losses need about them.

Shapes: Q queries and N documents of the global batch, P known positives of a query, G documents of a query.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nestling.losses.negatives import BatchStructure
from nestling.records.table import RecordTable


@dataclass(frozen=True)
class SampledRow:
    """A row of the global batch with the positives and hard negatives that were sampled from it.

    Args:
        row: Index of the row in its table.
        positives: Indices of the sampled positives among those of the row.
        negatives: Indices of the sampled hard negatives among those of the row.
    """

    row: int
    positives: list[int]
    negatives: list[int]

    @property
    def documents(self) -> int:
        """Number of sampled documents."""
        return len(self.positives) + len(self.negatives)

    def document_ids(self, table: RecordTable) -> np.ndarray:
        """Text ids of the sampled documents, positives first."""
        return np.concatenate(
            [table.positive_ids(self.row)[self.positives], table.negative_ids(self.row)[self.negatives]]
        )


def teacher_scores(table: RecordTable, sampled_rows: Sequence[SampledRow], local: slice) -> tuple[Tensor, Tensor]:
    """Documents of each query of this rank and their teacher scores: `group` and `teacher` of an `EmbedBatch`."""
    starts = np.cumsum([0, *(sampled.documents for sampled in sampled_rows)])[local]
    width = max(sampled.documents for sampled in sampled_rows[local])
    group = torch.full((len(starts), width), -1, dtype=torch.int64)
    teacher = torch.zeros(len(starts), width)
    for i, (start, sampled) in enumerate(zip(starts.tolist(), sampled_rows[local], strict=True)):
        record = table[sampled.row]
        assert record.positive_scores is not None
        scores = [record.positive_scores[j] for j in sampled.positives]
        scores += [(record.negative_scores or ())[j] for j in sampled.negatives]
        group[i, : sampled.documents] = torch.arange(start, start + sampled.documents)
        teacher[i, : sampled.documents] = torch.tensor(scores)
    return group, teacher


def batch_structure(table: RecordTable, sampled_rows: Sequence[SampledRow], local: slice) -> BatchStructure:
    """The structure of the global batch, with the (query, positive) pairs of the `local` queries.

    A pair weighs 1 / (Q x positives of its query): the loss is the mean over queries of the mean over their positives.
    """
    owner = np.repeat(np.arange(len(sampled_rows)), [sampled.documents for sampled in sampled_rows])
    is_negative = np.concatenate(
        [np.repeat([False, True], [len(sampled.positives), len(sampled.negatives)]) for sampled in sampled_rows]
    )
    documents = np.concatenate([sampled.document_ids(table) for sampled in sampled_rows])
    pairs = np.flatnonzero(~is_negative & (owner >= local.start) & (owner < local.stop))
    positives = np.array([len(sampled.positives) for sampled in sampled_rows])
    return BatchStructure(
        query=torch.from_numpy(owner[pairs]),
        positive=torch.from_numpy(pairs),
        weight=torch.from_numpy((1 / (len(sampled_rows) * positives[owner[pairs]])).astype(np.float32)),
        owner=torch.from_numpy(owner),
        is_negative=torch.from_numpy(is_negative),
        query_text=torch.from_numpy(table.query_ids[[sampled.row for sampled in sampled_rows]]),
        document_text=torch.from_numpy(documents.astype(np.int64)),
        known_positives=known_positives_in_batch(table, sampled_rows, documents),
    )


def known_positives_in_batch(table: RecordTable, sampled_rows: Sequence[SampledRow], documents: np.ndarray) -> Tensor:
    """Text ids of each query's known positives that are in the batch, [Q, P] int64 padded with -1.

    Args:
        table: The dataset.
        sampled_rows: The rows of the global batch.
        documents: [N] text ids of the batch's documents.
    """
    present = np.unique(documents)
    known = [np.intersect1d(table.known_positives(sampled.row), present) for sampled in sampled_rows]
    result = torch.full((len(sampled_rows), max(len(each) for each in known)), -1, dtype=torch.int64)
    for i, each in enumerate(known):
        result[i, : len(each)] = torch.from_numpy(each)
    return result


def graded_scores(table: RecordTable, rows: Sequence[int]) -> Tensor:
    """Labels of graded pairs, [Q] float32."""
    return torch.tensor([float(table[row].score or 0.0) for row in rows])
