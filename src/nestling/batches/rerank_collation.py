"""From the indices of a global batch to a rank's prompts and labels: what a DataLoader worker does for a reranker."""

from collections.abc import Sequence
from dataclasses import replace

from torch.utils.data import Dataset

from nestling.batches.packing import AnyChunk, prompts_to_chunk
from nestling.batches.pair_prompts import Pairs
from nestling.batches.prefix_sharing import chunk_groups, group_positions
from nestling.batches.rerank_batch import ChunkLabels, LabelledGroup, RerankBatch, join_labels
from nestling.batches.sampling import BatchIndices, RowSampler, Source
from nestling.records.record import Record
from nestling.records.table import RecordTable


class RerankCollator(Dataset[RerankBatch]):
    """A map-style dataset whose keys are `BatchIndices` and whose items are this rank's `RerankBatch`.

    Queries are assigned to ranks so that all ranks have about equally many characters to read. Texts of other ranks are
    read from the table but not tokenised.

    Args:
        sources: The datasets, as the batch sampler has them.
        row_sampler: Chooses the positives and negatives of each row, as the batch sampler does.
        tokenizer: Makes prompts within the length limits.
        query_max_length: Tokens of a query.
        document_max_length: Tokens of a document.
        chunk_tokens: Positions of a chunk, at most.
        share_prefix: Whether the tokens that the prompts of a query begin with run once.
        padding_free: Whether the model reads packed chunks instead of padded ones.
        whole_groups: Whether the loss compares the documents of a query, which must then be in the same chunk.
        teacher_targets: Whether the scores in the data are the targets, instead of 1 for positives and 0 for negatives.
        rank: Rank of this process.
        world_size: Number of ranks; divides the batch size.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        row_sampler: RowSampler,
        tokenizer: Pairs,
        *,
        query_max_length: int,
        document_max_length: int,
        chunk_tokens: int,
        share_prefix: bool,
        padding_free: bool,
        whole_groups: bool = False,
        teacher_targets: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sources = sources
        self.row_sampler = row_sampler
        self.tokenizer = tokenizer
        self.query_max_length = query_max_length
        self.document_max_length = document_max_length
        self.chunk_tokens = chunk_tokens
        self.share_prefix = share_prefix
        self.padding_free = padding_free
        self.whole_groups = whole_groups
        self.teacher_targets = teacher_targets
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, indices: BatchIndices) -> RerankBatch:
        table = self.sources[indices.source].table
        records = [
            sampled_record(table, self.row_sampler, row, row_epoch)
            for row, row_epoch in zip(indices.rows, indices.row_epochs, strict=True)
        ]
        local = balance_over_ranks([text_size(record) for record in records], self.world_size)[self.rank]
        groups, truncated = self._tokenize([records[i] for i in local])
        return RerankBatch(
            *self.chunks(groups, self.chunk_tokens),
            queries=len(records),
            pairs=sum(len(record.positives) + len(record.negatives) for record in records),
            tokens=sum(len(prompt) for group in groups for prompt in group.prompts),
            truncated=truncated,
        )

    def rechunk(self, batch: RerankBatch, chunk_tokens: int) -> RerankBatch:
        """The same prompts in chunks of another size."""
        chunks, labels = self.chunks(batch.groups(), chunk_tokens)
        return replace(batch, chunks=chunks, labels=labels).to(batch.chunks[0].input_ids.device)

    def in_smaller_chunks(self, batch: RerankBatch, halvings: int) -> RerankBatch:
        """The same prompts in chunks of a budget that has been halved so many times."""
        return self.rechunk(batch, self.chunk_tokens >> halvings) if halvings else batch

    def chunks(self, groups: Sequence[LabelledGroup], chunk_tokens: int) -> tuple[list[AnyChunk], list[ChunkLabels]]:
        """Chunks of at most `chunk_tokens` positions, or of one group that may not be split, and their labels.

        Groups of more positions come first.
        """
        parts = self._split(groups, chunk_tokens)
        parts.sort(key=lambda part: group_positions(part.prompts, share_prefix=self.share_prefix), reverse=True)
        chunks: list[AnyChunk] = []
        labels: list[ChunkLabels] = []
        prompts = [part.prompts for part in parts]
        for chunk in chunk_groups(
            prompts, chunk_tokens, share_prefix=self.share_prefix, padding_free=self.padding_free
        ):
            labelled, parts = parts[: len(chunk)], parts[len(chunk) :]
            chunks.append(prompts_to_chunk(chunk, share_prefix=self.share_prefix, padding_free=self.padding_free))
            labels.append(join_labels(labelled))
        return chunks, labels

    def _split(self, groups: Sequence[LabelledGroup], chunk_tokens: int) -> list[LabelledGroup]:
        """The groups, or the parts of them that may go into different chunks."""
        if self.whole_groups:
            return list(groups)
        # Padded prompts share no prefix and pad least beside prompts of equal length: each is a part of its own.
        max_positions = chunk_tokens if self.padding_free else 1
        return [part for group in groups for part in group.split(max_positions, share_prefix=self.share_prefix)]

    def _tokenize(self, records: Sequence[Record]) -> tuple[list[LabelledGroup], int]:
        """The records' prompts with their labels, and how many queries and documents were truncated."""
        groups, truncated = [], 0
        for record in records:
            tokenized = self.tokenizer(
                record.query,
                record.positives + record.negatives,
                instruction=record.instruction,
                query_max_length=self.query_max_length,
                document_max_length=self.document_max_length,
            )
            labels = targets_and_teacher(record, teacher_targets=self.teacher_targets)
            groups.append(LabelledGroup(tokenized.ids, *labels))
            truncated += tokenized.truncated_query + tokenized.truncated_documents
        return groups, truncated


def sampled_record(table: RecordTable, row_sampler: RowSampler, row: int, row_epoch: int) -> Record:
    """A row with only the positives and negatives that the sampler chooses from it."""
    record = table[row]
    positives, negatives = row_sampler(table, row, row_epoch)
    return replace(
        record,
        positives=tuple(record.positives[i] for i in positives),
        negatives=tuple(record.negatives[i] for i in negatives),
        positive_scores=None if record.positive_scores is None else tuple(record.positive_scores[i] for i in positives),
        negative_scores=None if record.negative_scores is None else tuple(record.negative_scores[i] for i in negatives),
    )


def targets_and_teacher(record: Record, *, teacher_targets: bool) -> tuple[list[float], list[float] | None]:
    """Targets and teacher scores of a record's positives and negatives; a graded pair's target is its score."""
    if record.score is not None:
        return [record.score], [record.score]
    targets = [1.0] * len(record.positives) + [0.0] * len(record.negatives)
    if (record.positive_scores is None and record.positives) or (record.negative_scores is None and record.negatives):
        return targets, None
    teacher = [*(record.positive_scores or ()), *(record.negative_scores or ())]
    return (teacher if teacher_targets else targets), teacher


def text_size(record: Record) -> int:
    """Characters of a record's prompts, each a query and a document; an estimate of the work that it makes."""
    documents = record.positives + record.negatives
    return sum(map(len, documents)) + len(record.query) * len(documents)


def balance_over_ranks(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """For each rank the indices of its items, ascending: equally many for each rank, of about equal total size.

    Items are dealt from the largest to the smallest, to the ranks in order and then in reverse order.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    assigned: list[list[int]] = [[] for _ in range(ranks)]
    for turn, i in enumerate(order):
        rounds, position = divmod(turn, ranks)
        assigned[position if rounds % 2 == 0 else ranks - 1 - position].append(i)
    return [sorted(each) for each in assigned]
