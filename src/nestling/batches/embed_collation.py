"""From the indices of a global batch to a rank's tensors: what a DataLoader worker does for an embedder.

Shapes: Q queries and N documents of the global batch, W ranks, n distinct texts of this rank, R (query, positive) pairs
of this rank, P known positives of a query, G documents of a query.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nestling.batches.packing import TokenBatch, pack
from nestling.batches.prompts import Prompts, TextTokenizer
from nestling.batches.random_texts import RandomTexts
from nestling.batches.sampled_rows import SampledRow, batch_structure, graded_scores, teacher_scores
from nestling.batches.sampling import BatchIndices, RowSampler, Source
from nestling.losses.negatives import BatchStructure

# A prompt and the text behind it.
Prompted = tuple[str, str]


@dataclass(frozen=True)
class EmbedBatch:
    """The texts of this rank, and which documents belong to which query in the global batch.

    Args:
        tokens: The n distinct texts of this rank.
        queries: [Q/W] int64, index into the texts of each query of this rank.
        documents: [documents of this rank] int64, index into the texts of each document of this rank.
        document_counts: [W], number of documents of each rank.
        structure: Queries and documents of the global batch, with the (query, positive) pairs of this rank.
        group: [Q/W, G] int64, indices into the N documents of those that belong to each query of this rank, padded with
            -1; None without teacher scores.
        teacher: [Q/W, G] float32 teacher scores of these documents; None without.
        scores: [Q] float32 labels of graded pairs, of the whole batch; None for retrieval data.
        in_batch_negatives: Whether documents of other queries are negatives.
        source: Index of the dataset.
        truncated: Texts of this rank that were truncated.
        guide: [Q, G] and [N, G] float32 embeddings of queries and documents of the whole batch by a guide; or None.
        teacher_vectors: The same by a teacher; or None.
        retained: [Q/W] int64 each, the index into the texts of each random text of this rank, and its row in
            `RandomTexts`; or None.
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
    guide: tuple[Tensor, Tensor] | None = None
    teacher_vectors: tuple[Tensor, Tensor] | None = None
    retained: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device) -> "EmbedBatch":
        return replace(
            self,
            tokens=self.tokens.to(device),
            queries=self.queries.to(device),
            documents=self.documents.to(device),
            structure=BatchStructure(**{name: tensor.to(device) for name, tensor in vars(self.structure).items()}),
            group=None if self.group is None else self.group.to(device),
            teacher=None if self.teacher is None else self.teacher.to(device),
            scores=None if self.scores is None else self.scores.to(device),
            guide=both_to(self.guide, device),
            teacher_vectors=both_to(self.teacher_vectors, device),
            retained=both_to(self.retained, device),
        )

    def in_smaller_chunks(self, halvings: int) -> "EmbedBatch":
        """The same texts, in chunks that have been halved so many times."""
        tokens = self.tokens
        for _ in range(halvings):
            tokens = tokens.halved()
        return replace(self, tokens=tokens)


def both_to(tensors: tuple[Tensor, Tensor] | None, device: torch.device) -> tuple[Tensor, Tensor] | None:
    return None if tensors is None else (tensors[0].to(device), tensors[1].to(device))


class EmbedCollator(Dataset[EmbedBatch]):
    """A dataset, read by DataLoader workers: from the `BatchIndices` of a global batch to this rank's `EmbedBatch`.

    Texts of other ranks are neither read nor tokenised; only their text ids are read.

    Args:
        sources: The datasets, as the batch sampler has them.
        row_sampler: Chooses the positives and negatives of each row, as the batch sampler does.
        tokenizer: Tokenises texts and truncates them.
        prompts: Prefixes of queries and documents.
        query_max_length: Tokens of a query, its prompt included.
        document_max_length: Tokens of a document, its prompt included.
        chunk_tokens: Positions of a chunk, at most.
        teacher: Whether to return teacher scores where the data has them.
        padding_free: Whether chunks are packed instead of padded.
        random_texts: Texts that stand in every batch besides its own; None for none.
        rank: Rank of this process.
        world_size: W, number of ranks; divides the batch size.
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
        random_texts: RandomTexts | None = None,
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
        self.random_texts = random_texts
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, indices: BatchIndices) -> EmbedBatch:
        source = self.sources[indices.source]
        table = source.table
        sampled_rows = self._sampled_rows(indices)
        queries_per_rank = len(sampled_rows) // self.world_size
        by_rank = [slice(i * queries_per_rank, (i + 1) * queries_per_rank) for i in range(self.world_size)]
        local = by_rank[self.rank]
        queries, documents = self._texts(source, sampled_rows[local])
        random_rows = [] if self.random_texts is None else self.random_texts.rows(indices)[local]
        tokens, text_indices, truncated = self._tokenize(queries, documents, self.document_limit(source), random_rows)
        group, teacher = (
            teacher_scores(table, sampled_rows, local) if self.teacher and table.has_scores else (None, None)
        )
        return EmbedBatch(
            tokens=tokens,
            queries=text_indices[: len(queries)],
            documents=text_indices[len(queries) : len(queries) + len(documents)],
            document_counts=[sum(sampled.documents for sampled in sampled_rows[part]) for part in by_rank],
            structure=batch_structure(table, sampled_rows, local),
            group=group,
            teacher=teacher,
            scores=graded_scores(table, indices.rows) if table.graded else None,
            in_batch_negatives=source.in_batch_negatives,
            source=indices.source,
            truncated=truncated,
            retained=(text_indices[-len(random_rows) :], torch.tensor(random_rows)) if random_rows else None,
        )

    def texts(self, indices: BatchIndices) -> tuple[list[str], list[str]]:
        """Queries and documents of a global batch, those of all ranks, with their prompts."""
        queries, documents = self._texts(self.sources[indices.source], self._sampled_rows(indices))
        return list(map("".join, queries)), list(map("".join, documents))

    def document_limit(self, source: Source) -> int:
        """Tokens of a document of a dataset, its prompt included."""
        return self.query_max_length if source.documents_as_queries else self.document_max_length

    def _sampled_rows(self, indices: BatchIndices) -> list[SampledRow]:
        table = self.sources[indices.source].table
        return [
            SampledRow(row, *self.row_sampler(table, row, row_epoch))
            for row, row_epoch in zip(indices.rows, indices.row_epochs, strict=True)
        ]

    def _texts(self, source: Source, sampled_rows: Sequence[SampledRow]) -> tuple[list[Prompted], list[Prompted]]:
        """Queries and documents of some rows, with their prompts."""
        queries: list[Prompted] = []
        documents: list[Prompted] = []
        for sampled in sampled_rows:
            record = source.table[sampled.row]
            query_prompt = self.prompts.query(record.instruction)
            document_prompt = query_prompt if source.documents_as_queries else self.prompts.document
            queries.append((query_prompt, record.query))
            documents += [(document_prompt, record.positives[i]) for i in sampled.positives]
            documents += [(document_prompt, record.negatives[i]) for i in sampled.negatives]
        return queries, documents

    def _tokenize(
        self, queries: list[Prompted], documents: list[Prompted], document_limit: int, random_rows: Sequence[int]
    ) -> tuple[TokenBatch, Tensor, int]:
        """Tokenise each distinct text once, documents to at most `document_limit` tokens; random texts are tokenised.

        Returns:
            The distinct texts; [queries + documents + random texts] int64, the index of the text of each; the number
            of texts that were truncated.
        """
        query_index = {text: i for i, text in enumerate(dict.fromkeys(queries))}
        document_index = {text: i for i, text in enumerate(dict.fromkeys(documents))}
        query_tokens = self.tokenizer(list(map("".join, query_index)), self.query_max_length)
        document_tokens = self.tokenizer(list(map("".join, document_index)), document_limit)
        ids, prompts = query_tokens.ids + document_tokens.ids, [prompt for prompt, _ in (*query_index, *document_index)]
        if self.random_texts is not None:
            ids += [self.random_texts.ids[row] for row in random_rows]
            prompts += [self.random_texts.prompt] * len(random_rows)
        batch = pack(
            ids,
            self.chunk_tokens,
            self.tokenizer.pad_id,
            padding_free=self.padding_free,
            pooled_from=self.tokenizer.pooled_from(prompts),
        )
        text_indices = [query_index[text] for text in queries]
        text_indices += [len(query_index) + document_index[text] for text in documents]
        text_indices += range(len(ids) - len(random_rows), len(ids))
        truncated = query_tokens.truncated + document_tokens.truncated
        return batch, torch.tensor(text_indices, dtype=torch.int64), truncated
