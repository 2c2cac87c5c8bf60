"""From a plan to the prompts and labels of a rank: what a worker reads and tokenises for a reranker.

Shapes: Q queries, n prompts of a chunk, G most documents of a query in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nestling.batches.groups import GroupChunk, Part, cut_parts, positions_of, split_group
from nestling.batches.packing import AnyChunk, to_chunk
from nestling.batches.pair_prompts import PairTokenizer
from nestling.batches.sampling import BatchIndices, RowSampler, Source
from nestling.records.record import Record
from nestling.records.table import RecordTable


@dataclass(frozen=True)
class Labels:
    """What the prompts of a chunk are to give.

    Args:
        targets: [n] float32 relevance from 0 to 1.
        teacher: [n] float32 scores of a teacher; None where the data has none.
        group: [Q, G] int64, which of the prompts are each query's, padded with -1.
    """

    targets: Tensor
    teacher: Tensor | None
    group: Tensor

    def lists(self) -> tuple[list[float], list[float] | None]:
        """Targets and teacher scores."""
        return self.targets.tolist(), None if self.teacher is None else self.teacher.tolist()

    def to(self, device: torch.device) -> "Labels":
        teacher = None if self.teacher is None else self.teacher.to(device)
        return Labels(self.targets.to(device), teacher, self.group.to(device))


@dataclass(frozen=True)
class RerankBatch:
    """A rank's prompts of a global batch, in chunks, and what is to come out.

    Args:
        chunks: The prompts, those of long groups first.
        labels: Of each chunk.
        queries: Queries of the global batch.
        pairs: Prompts of the global batch.
        tokens: Tokens of this rank's prompts.
        truncated: Queries and documents of this rank that were cut.
    """

    chunks: list[AnyChunk]
    labels: list[Labels]
    queries: int
    pairs: int
    tokens: int
    truncated: int

    @property
    def positions(self) -> int:
        """Positions of this rank that run through the model; beginnings that are shared count once."""
        return sum(chunk.positions for chunk in self.chunks)

    def groups(self) -> "list[Labelled]":
        """The prompts of each query, or of its part in a chunk, with their labels."""
        return [
            Labelled(
                [prompts[i] for i in rows],
                [targets[i] for i in rows],
                None if teacher is None else [teacher[i] for i in rows],
            )
            for chunk, labels in zip(self.chunks, self.labels, strict=True)
            for prompts, targets, teacher in [(prompts_of(chunk), *labels.lists())]
            for rows in ([i for i in row if i >= 0] for row in labels.group.tolist())
        ]

    def to(self, device: torch.device) -> "RerankBatch":
        moved = [chunk.to(device) for chunk in self.chunks]
        return replace(self, chunks=moved, labels=[each.to(device) for each in self.labels])


@dataclass(frozen=True)
class Labelled:
    """Prompts of one query with their labels.

    Args:
        prompts: Token ids.
        targets: Relevance from 0 to 1.
        teacher: A teacher's scores, or None.
    """

    prompts: Part
    targets: list[float]
    teacher: list[float] | None

    def split(self, budget: int, *, share: bool) -> "Iterator[Labelled]":
        """Parts of at most `budget` positions, for losses that look at each document by itself."""
        start = 0
        for prompts in split_group(self.prompts, budget, share=share):
            own = slice(start, start + len(prompts))
            yield Labelled(prompts, self.targets[own], None if self.teacher is None else self.teacher[own])
            start = own.stop


class RerankCollator(Dataset[RerankBatch]):
    """This rank's RerankBatch of a plan, as a dataset whose index is a plan.

    Groups go to ranks so that all have about the same number of characters to read; texts of other ranks are not
    tokenised.

    Args:
        sources: The datasets, as the batch_sampler has them.
        row_sampler: What is drawn from each row, as the batch_sampler does.
        tokenizer: Makes prompts within budgets.
        query_max_length: Tokens of a query.
        document_max_length: Tokens of a document.
        chunk_tokens: Positions of a chunk.
        share: Whether the prompts of a query run their common beginning once.
        packed: Whether the model reads packed chunks.
        whole_groups: Whether the loss compares the documents of a query, which then stay in one chunk.
        soft: Whether the data's scores are the targets.
        rank: This process.
        world_size: Processes; divides the batch size.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        row_sampler: RowSampler,
        tokenizer: PairTokenizer,
        *,
        query_max_length: int,
        document_max_length: int,
        chunk_tokens: int,
        share: bool,
        packed: bool,
        whole_groups: bool = False,
        soft: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sources = sources
        self.row_sampler = row_sampler
        self.tokenizer = tokenizer
        self.query_max_length = query_max_length
        self.document_max_length = document_max_length
        self.chunk_tokens = chunk_tokens
        self.share = share
        self.packed = packed
        self.whole_groups = whole_groups
        self.soft = soft
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, indices: BatchIndices) -> RerankBatch:
        table = self.sources[indices.source].table
        drawn = [
            drawn_record(table, self.row_sampler, *visit)
            for visit in zip(indices.rows, indices.row_epochs, strict=True)
        ]
        mine = deal([characters(each) for each in drawn], self.world_size)[self.rank]
        groups, truncated = self._tokenize([drawn[i] for i in mine])
        return RerankBatch(
            *self.chunks(groups, self.chunk_tokens),
            queries=len(drawn),
            pairs=sum(len(each.positives) + len(each.negatives) for each in drawn),
            tokens=sum(len(prompt) for group in groups for prompt in group.prompts),
            truncated=truncated,
        )

    def again(self, batch: RerankBatch, chunk_tokens: int) -> RerankBatch:
        """The same prompts in chunks of another size."""
        chunks, labels = self.chunks(batch.groups(), chunk_tokens)
        return replace(batch, chunks=chunks, labels=labels).to(batch.chunks[0].input_ids.device)

    def chunks(self, groups: Sequence[Labelled], chunk_tokens: int) -> tuple[list[AnyChunk], list[Labels]]:
        """Groups in chunks of at most `chunk_tokens` positions, or of one group that has more and must stay whole."""
        # Padded prompts share nothing, and lie best beside prompts of their length.
        budget = chunk_tokens if self.packed else 1
        parts = [
            part
            for group in groups
            for part in ([group] if self.whole_groups else group.split(budget, share=self.share))
        ]
        parts.sort(key=lambda part: positions_of(part.prompts, share=self.share), reverse=True)
        chunks: list[AnyChunk] = []
        labels: list[Labels] = []
        prompts = [part.prompts for part in parts]
        for rows in cut_parts(prompts, chunk_tokens, share=self.share, packed=self.packed):
            own, parts = parts[: len(rows)], parts[len(rows) :]
            chunks.append(to_chunk(rows, share=self.share, packed=self.packed))
            labels.append(join_labels(own))
        return chunks, labels

    def _tokenize(self, records: Sequence[Record]) -> tuple[list[Labelled], int]:
        """The records' prompts and labels, and how many queries and documents were cut."""
        groups, truncated = [], 0
        for record in records:
            found = self.tokenizer(
                record.query,
                record.positives + record.negatives,
                instruction=record.instruction,
                query_max_length=self.query_max_length,
                document_max_length=self.document_max_length,
            )
            groups.append(Labelled(found.ids, *label(record, soft=self.soft)))
            truncated += found.truncated_query + found.truncated_documents
        return groups, truncated


def prompts_of(chunk: AnyChunk) -> list[list[int]]:
    """Token ids of a chunk's prompts, in order."""
    if isinstance(chunk, GroupChunk):
        return [prompt for group in chunk.prompts() for prompt in group]
    rows = zip(chunk.input_ids.tolist(), chunk.lengths.tolist(), strict=True)
    return [row[:length] for row, length in rows]


def drawn_record(table: RecordTable, row_sampler: RowSampler, row: int, row_epoch: int) -> Record:
    """A row with the positives and negatives that are drawn from it."""
    record = table[row]
    positives, negatives = row_sampler(table, row, row_epoch)
    return replace(
        record,
        positives=tuple(record.positives[i] for i in positives),
        negatives=tuple(record.negatives[i] for i in negatives),
        positive_scores=None if record.positive_scores is None else tuple(record.positive_scores[i] for i in positives),
        negative_scores=None if record.negative_scores is None else tuple(record.negative_scores[i] for i in negatives),
    )


def label(record: Record, *, soft: bool) -> tuple[list[float], list[float] | None]:
    """Targets and teacher scores of a record's positives and negatives; a graded pair's target is its score."""
    if record.score is not None:
        return [record.score], [record.score]
    hard = [1.0] * len(record.positives) + [0.0] * len(record.negatives)
    if (record.positive_scores is None and record.positives) or (record.negative_scores is None and record.negatives):
        return hard, None
    teacher = [*(record.positive_scores or ()), *(record.negative_scores or ())]
    return (teacher if soft else hard), teacher


def characters(record: Record) -> int:
    """About how much there is to read of a record."""
    documents = record.positives + record.negatives
    return sum(map(len, documents)) + len(record.query) * len(documents)


def deal(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Which groups each rank takes: equally many, of about the same size together; in the order of the batch."""
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    hands: list[list[int]] = [[] for _ in range(ranks)]
    for turn, i in enumerate(order):
        there, back = divmod(turn, ranks)
        hands[back if there % 2 == 0 else ranks - 1 - back].append(i)
    return [sorted(hand) for hand in hands]


def join_labels(parts: Sequence[Labelled]) -> Labels:
    """Labels of the prompts of a chunk; teacher scores if all parts have them."""
    sizes = [len(part.prompts) for part in parts]
    group = torch.full((len(parts), max(sizes)), -1)
    start = 0
    for i, size in enumerate(sizes):
        group[i, :size] = torch.arange(start, start + size)
        start += size
    scores = [part.teacher for part in parts]
    teacher = None if None in scores else torch.tensor([each for own in scores for each in own or ()])
    return Labels(torch.tensor([each for part in parts for each in part.targets]), teacher, group)
