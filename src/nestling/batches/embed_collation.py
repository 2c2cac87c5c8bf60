"""From a plan to tensors: what a worker reads and tokenises for its rank.

Shapes: Q queries and N documents of the global batch, R rows (query, positive) of this rank, P known positives,
G documents of a query, n distinct texts of this rank, W ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nestling.batches.packing import TokenBatch, pack
from nestling.batches.prompts import Prompts, TextTokenizer
from nestling.batches.sampling import BatchIndices, RowSampler, Source
from nestling.losses.reference import BatchStructure
from nestling.records.table import RecordTable


@dataclass(frozen=True)
class TrainBatch:
    """A rank's texts, and who belongs to whom in the global batch.

    Args:
        tokens: This rank's n distinct texts.
        queries: [Q/W] int64, which of the texts each query of this rank is.
        documents: [N of this rank] int64, likewise each document.
        document_counts: [W] documents of each rank.
        structure: The global batch, with the rows of this rank.
        group: [Q/W, G] int64, documents (of N) of each query of this rank, padded with -1; None without teacher scores.
        teacher: [Q/W, G] float32 teacher scores of these.
        scores: [Q] float32 labels of graded pairs in global order; None for retrieval data.
        in_batch_negatives: Whether documents of other rows are negatives.
        source: Number of the dataset.
        truncated: Texts of this rank that were cut.
    """

    tokens: TokenBatch
    queries: Tensor
    documents: Tensor
    document_counts: list[int]
    structure: BatchStructure
    group: Tensor | None
    teacher: Tensor | None
    scores: Tensor | None
    in_batch_negatives: bool
    source: int
    truncated: int

    def to(self, device: torch.device) -> "TrainBatch":
        return replace(
            self,
            tokens=self.tokens.to(device),
            queries=self.queries.to(device),
            documents=self.documents.to(device),
            structure=BatchStructure(**{name: each.to(device) for name, each in vars(self.structure).items()}),
            group=None if self.group is None else self.group.to(device),
            teacher=None if self.teacher is None else self.teacher.to(device),
            scores=None if self.scores is None else self.scores.to(device),
        )


@dataclass(frozen=True)
class Member:
    """A row of the global batch with what is drawn from it."""

    row: int
    positives: list[int]
    negatives: list[int]

    @property
    def documents(self) -> int:
        return len(self.positives) + len(self.negatives)


class Collator(Dataset[TrainBatch]):
    """This rank's TrainBatch of a plan, as a dataset whose index is a plan.

    Texts of other ranks are neither read nor tokenised, only their identities are read.

    Args:
        sources: The datasets, as the batch_sampler has them.
        row_sampler: What is drawn from each row, as the batch_sampler does.
        tokenizer: Tokenises within a budget.
        prompts: The model's.
        query_max_length: Tokens of a query with its prompt.
        document_max_length: Tokens of a document.
        chunk_tokens: Token budget of a chunk.
        teacher: Whether teacher scores are wanted.
        padding_free: Whether chunks are packed.
        rank: This process.
        world_size: W; divides the batch size.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        row_sampler: RowSampler,
        tokenizer: TextTokenizer,
        prompts: Prompts,
        *,
        query_max_length: int,
        document_max_length: int,
        chunk_tokens: int,
        teacher: bool = False,
        padding_free: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sources = sources
        self.row_sampler = row_sampler
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.query_max_length = query_max_length
        self.document_max_length = document_max_length
        self.chunk_tokens = chunk_tokens
        self.teacher = teacher
        self.padding_free = padding_free
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, indices: BatchIndices) -> TrainBatch:
        source = self.sources[indices.source]
        table = source.table
        members = self._members(indices)
        share = len(members) // self.world_size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        queries, documents = self._texts(table, members[mine])
        tokens, places, truncated = self._tokenize(queries, documents)
        counts = [sum(each.documents for each in members[i * share : (i + 1) * share]) for i in range(self.world_size)]
        group, teacher = self._teacher(table, members, mine) if self.teacher and table.has_scores else (None, None)
        return TrainBatch(
            tokens=tokens,
            queries=places[: len(queries)],
            documents=places[len(queries) :],
            document_counts=counts,
            structure=batch_structure(table, members, mine),
            group=group,
            teacher=teacher,
            scores=graded_scores(table, indices.rows) if table.graded else None,
            in_batch_negatives=source.in_batch_negatives,
            source=indices.source,
            truncated=truncated,
        )

    def texts(self, indices: BatchIndices) -> tuple[list[str], list[str]]:
        """Queries and documents of a plan with their prompts, over all ranks."""
        return self._texts(self.sources[indices.source].table, self._members(indices))

    def _members(self, indices: BatchIndices) -> list[Member]:
        table = self.sources[indices.source].table
        drawn = [
            self.row_sampler(table, row, row_epoch)
            for row, row_epoch in zip(indices.rows, indices.row_epochs, strict=True)
        ]
        return [Member(row, *each) for row, each in zip(indices.rows, drawn, strict=True)]

    def _texts(self, table: RecordTable, members: Sequence[Member]) -> tuple[list[str], list[str]]:
        """Queries and documents of some rows with their prompts."""
        queries: list[str] = []
        documents: list[str] = []
        for member in members:
            record = table[member.row]
            queries.append(self.prompts.query(record.instruction) + record.query)
            drawn = [record.positives[i] for i in member.positives] + [record.negatives[i] for i in member.negatives]
            documents += [self.prompts.document + text for text in drawn]
        return queries, documents

    def _tokenize(self, queries: list[str], documents: list[str]) -> tuple[TokenBatch, Tensor, int]:
        """Pack the distinct texts; also where each of queries + documents stands, and how many were cut."""
        distinct = {text: i for i, text in enumerate(dict.fromkeys(queries))}
        first = self.tokenizer(list(distinct), self.query_max_length)
        others = {text: i for i, text in enumerate(dict.fromkeys(documents))}
        second = self.tokenizer(list(others), self.document_max_length)
        packed = pack(first.ids + second.ids, self.chunk_tokens, self.tokenizer.pad_id, padding_free=self.padding_free)
        places = [distinct[text] for text in queries] + [len(distinct) + others[text] for text in documents]
        return packed, torch.tensor(places, dtype=torch.int64), first.truncated + second.truncated

    def _teacher(self, table: RecordTable, members: Sequence[Member], mine: slice) -> tuple[Tensor, Tensor]:
        """Documents and teacher scores of each query of this rank."""
        starts = np.cumsum([0, *(member.documents for member in members)])[mine]
        width = max(member.documents for member in members[mine])
        group = torch.full((len(starts), width), -1, dtype=torch.int64)
        teacher = torch.zeros(len(starts), width)
        for i, (start, member) in enumerate(zip(starts.tolist(), members[mine], strict=True)):
            record = table[member.row]
            assert record.positive_scores is not None
            scores = [record.positive_scores[j] for j in member.positives]
            scores += [(record.negative_scores or ())[j] for j in member.negatives]
            group[i, : member.documents] = torch.arange(start, start + member.documents)
            teacher[i, : member.documents] = torch.tensor(scores)
        return group, teacher


def batch_structure(table: RecordTable, members: Sequence[Member], mine: slice) -> BatchStructure:
    """Who belongs to whom in the global batch, with rows for the queries of `mine`.

    A row weighs 1 / (Q x its query's positives): the mean over queries of the mean over positives.
    """
    owner = np.repeat(np.arange(len(members)), [member.documents for member in members])
    is_negative = np.concatenate(
        [np.repeat([False, True], [len(member.positives), len(member.negatives)]) for member in members]
    )
    documents = np.concatenate(
        [
            np.concatenate([table.positive_ids(m.row)[m.positives], table.negative_ids(m.row)[m.negatives]])
            for m in members
        ]
    )
    rows = np.flatnonzero(~is_negative & (owner >= mine.start) & (owner < mine.stop))
    positives = np.array([len(member.positives) for member in members])
    return BatchStructure(
        query=torch.from_numpy(owner[rows]),
        positive=torch.from_numpy(rows),
        weight=torch.from_numpy((1 / (len(members) * positives[owner[rows]])).astype(np.float32)),
        owner=torch.from_numpy(owner),
        is_negative=torch.from_numpy(is_negative),
        query_text=torch.from_numpy(table.query_ids[[member.row for member in members]]),
        document_text=torch.from_numpy(documents.astype(np.int64)),
        known_positives=known_positives_in_batch(table, members, documents),
    )


def known_positives_in_batch(table: RecordTable, members: Sequence[Member], documents: np.ndarray) -> Tensor:
    """Known positives of each query that are in the batch, [Q, P] int64 padded with -1."""
    present = np.unique(documents)
    known = [np.intersect1d(table.known_positives(member.row), present) for member in members]
    result = torch.full((len(members), max(len(each) for each in known)), -1, dtype=torch.int64)
    for i, each in enumerate(known):
        result[i, : len(each)] = torch.from_numpy(each)
    return result


def graded_scores(table: RecordTable, rows: Sequence[int]) -> Tensor:
    """Labels of graded pairs, [Q] float32."""
    return torch.tensor([float(table[row].score or 0.0) for row in rows])
