"""Exact search: for each relevant document, how many documents of the collection score higher and how many the same.

Queries and documents are multiplied in blocks of fixed shape, so memory does not grow with the collection, and every
document is compared with every query. The score of a relevant document is taken from the same matrix product that it is
compared in. A product of another shape could differ in the last bit, and documents with equal vectors would not tie.

Shape legend: Q queries, q of one block, R relevant documents of all queries (pairs of a query and a document), p pairs
handled at once, N documents of the collection, n distinct documents that this process encoded, b documents of one
block, D width of the embeddings, d <= D the dimension that is evaluated. "Rank" means a process of torch.distributed
here, but for `RelevantRanks`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from nestling.models.encoding import EncodingStats
from nestling.retrieval.collectives import reduce_max, reduce_sum
from nestling.retrieval.metrics import Floats, Integers, RelevantRanks

EmbeddingPrecision = Literal["float32", "int8", "binary"]

QUERY_BLOCK = 256
DOCUMENT_BLOCK = 4096
PAIR_BLOCK = 512


@dataclass(frozen=True)
class EncodedSet:
    """Full-size float32 embeddings of a retrieval set, those of the documents split over ranks.

    Attributes:
        queries: [Q, D] float32, all of them on every rank.
        documents: [n, D] float32, the distinct documents that this rank encoded; n may be 0.
        copies: [n] int64, how often each of them occurs in the collection; 0 if an earlier rank has encoded it too.
        distinct_index: [N] int64, for each document of the collection its index among the distinct documents of all
            ranks, those of rank 0 first.
        first_document: Index of documents[0] among the distinct documents of all ranks.
        block_size: Documents scored at once, the same on every rank.
        offsets: [Q + 1] int64; the relevant documents of query i are relevant[offsets[i]:offsets[i + 1]].
        relevant: [R] int64, indices among the distinct documents of all ranks, never of one with copies 0.
        gains: [R] float64, their relevance grades.
        own: [Q] int64, the document with the id of the query, which is no result of it, among the distinct documents of
            all ranks; -1 for none.
        device: Where scores are computed, and where ranks communicate.
        query_stats: Counts and time of encoding the queries, summed over the ranks.
        document_stats: Counts and time of encoding the documents.
    """

    queries: Tensor
    documents: Tensor
    copies: Tensor
    distinct_index: Integers
    first_document: int
    block_size: int
    offsets: Tensor
    relevant: Tensor
    gains: Floats
    own: Tensor
    device: torch.device
    query_stats: EncodingStats = field(default_factory=EncodingStats)
    document_stats: EncodingStats = field(default_factory=EncodingStats)


def relevant_ranks(encoded: EncodedSet, dim: int, embedding_precision: EmbeddingPrecision = "float32") -> RelevantRanks:
    """Rank the relevant documents of each query among all documents; the same on every process.

    Embeddings are truncated to their first `dim` values, normalised again, and quantised as a vector store would do
    (`Quantizer`). With torch.distributed initialised all ranks must call it.
    """
    return relevant_ranks_and_scores(encoded, dim, embedding_precision)[0]


def relevant_ranks_and_scores(
    encoded: EncodedSet, dim: int, embedding_precision: EmbeddingPrecision = "float32"
) -> tuple[RelevantRanks, Floats]:
    """What `relevant_ranks` returns, and the scores of the relevant documents, [R] float64."""
    assert 0 < dim <= encoded.queries.shape[1], f"dim {dim} of {encoded.queries.shape[1]}"
    quantizer = Quantizer.fit(encoded, dim, embedding_precision)
    relevant_scores = torch.zeros(len(encoded.relevant), device=encoded.device)
    for block in pair_score_blocks(encoded, quantizer):
        relevant_scores[block.pairs][block.inside] = block.scores[block.inside, block.column[block.inside]]
    relevant_scores = reduce_sum(relevant_scores, encoded.device)

    counts = torch.zeros(2, len(relevant_scores), dtype=torch.int64, device=encoded.device)
    for block in pair_score_blocks(encoded, quantizer):
        threshold = relevant_scores[block.pairs]
        # Written over, in case a kernel does not repeat itself to the last bit.
        block.scores[block.inside, block.column[block.inside]] = threshold[block.inside]
        counts[0, block.pairs] += torch.where(block.scores > threshold[:, None], block.copies, 0).sum(dim=1)
        counts[1, block.pairs] += torch.where(block.scores == threshold[:, None], block.copies, 0).sum(dim=1)
        own, of_own = block.scores[block.own_inside, block.own_column[block.own_inside]], threshold[block.own_inside]
        counts[0, block.pairs][block.own_inside] -= (own > of_own).long()
        counts[1, block.pairs][block.own_inside] -= (own == of_own).long()
    above, equal = reduce_sum(counts, encoded.device).cpu().numpy()
    ranks = RelevantRanks(encoded.offsets.numpy(), encoded.gains, above, equal)
    return ranks, relevant_scores.double().cpu().numpy()


def score_pairs(
    encoded: EncodedSet, queries: Integers, documents: Integers, dim: int, embedding_precision: EmbeddingPrecision
) -> Floats:
    """Scores of pairs of a query and a distinct document, [p] float64, where one process encoded all documents.

    Args:
        encoded: The embeddings.
        queries: [p] int64, which of the Q queries.
        documents: [p] int64, which of the n distinct documents.
        dim: As in `relevant_ranks`.
        embedding_precision: As in `relevant_ranks`.
    """
    assert len(encoded.documents) == len(encoded.copies) > encoded.distinct_index.max(), (
        "documents of other ranks are missing"
    )
    quantizer = Quantizer.fit(encoded, dim, embedding_precision)
    scores = np.empty(len(queries))
    for start in range(0, len(queries), encoded.block_size):
        part = slice(start, start + encoded.block_size)
        query_vectors = quantizer.queries(encoded.queries[queries[part]].to(encoded.device))
        document_vectors = quantizer.documents(encoded.documents[documents[part]].to(encoded.device))
        scores[part] = (query_vectors * document_vectors).sum(dim=1).double().cpu().numpy()
    return scores


@dataclass(frozen=True)
class Quantizer:
    """Quantises vectors as a vector store does and decodes them to float32, so that every precision is one product.

    - float32: vectors are kept as they are.
    - int8: each dimension of the documents is quantised to 256 steps between its smallest and largest value over the
      documents; queries stay float32 and are scored against the decoded documents (faiss SQ8,
      `sentence_transformers.quantize_embeddings`).
    - binary: signs of queries and documents, as -1 and 1. The product, d - 2 * Hamming distance, is an exact integer
      and often the same for many documents.

    Attributes:
        dim: Dimension to which embeddings are truncated, d.
        embedding_precision: One of the above.
        low: [d] float32, smallest value of each dimension; used by int8 only.
        step: [d] float32, width of a quantisation step; used by int8 only.
    """

    dim: int
    embedding_precision: EmbeddingPrecision
    low: Tensor
    step: Tensor

    @classmethod
    def fit(cls, encoded: EncodedSet, dim: int, embedding_precision: EmbeddingPrecision) -> "Quantizer":
        """Calibrate on the documents of all ranks, which must all call it."""
        negative_low = torch.full((dim,), -torch.inf, device=encoded.device)
        high = negative_low.clone()
        if embedding_precision == "int8":
            for start in range(0, len(encoded.documents), encoded.block_size):  # none on a rank without documents
                vectors = truncate_embeddings(
                    encoded.documents[start : start + encoded.block_size].to(encoded.device), dim
                )
                negative_low = torch.maximum(negative_low, (-vectors).amax(dim=0))
                high = torch.maximum(high, vectors.amax(dim=0))
            negative_low, high = reduce_max(torch.stack([negative_low, high]), encoded.device)
        step = (high + negative_low) / 255
        return cls(dim, embedding_precision, low=-negative_low, step=torch.where(step == 0, 1.0, step))

    def queries(self, embeddings: Tensor) -> Tensor:
        """Truncate and quantise query embeddings: [Q, D] to [Q, d] float32."""
        vectors = truncate_embeddings(embeddings, self.dim)
        return signs(vectors) if self.embedding_precision == "binary" else vectors

    def documents(self, embeddings: Tensor) -> Tensor:
        """Truncate, quantise and decode document embeddings: [n, D] to [n, d] float32."""
        vectors = truncate_embeddings(embeddings, self.dim)
        if self.embedding_precision == "int8":
            codes = ((vectors - self.low) / self.step).floor().clamp(0, 255)
            return codes * self.step + self.low
        return signs(vectors) if self.embedding_precision == "binary" else vectors


def truncate_embeddings(embeddings: Tensor, dim: int) -> Tensor:
    """The first `dim` values of each embedding, normalised again: [n, D] to [n, d]."""
    return normalize(embeddings[:, :dim], dim=-1)


def signs(vectors: Tensor) -> Tensor:
    """1.0 where a value is above 0, else -1.0."""
    return torch.where(vectors > 0, 1.0, -1.0)


@dataclass(frozen=True)
class PairScores:
    """For p pairs of a query and a relevant document, the scores of the query with one block of documents.

    Attributes:
        pairs: Which of the R pairs.
        scores: [p, b] float32, scores of the query of each pair.
        copies: [b] int64, how often each document of the block occurs in the collection; 0 for padding.
        inside: [p] bool, whether the relevant document of the pair is in the block.
        column: [p] int64, its index in the block where `inside`.
        own_inside: [p] bool, whether the document with the id of the query is in the block.
        own_column: [p] int64, its index in the block where `own_inside`.
    """

    pairs: slice
    scores: Tensor
    copies: Tensor
    inside: Tensor
    column: Tensor
    own_inside: Tensor
    own_column: Tensor


def pair_score_blocks(encoded: EncodedSet, quantizer: Quantizer) -> Iterator[PairScores]:
    """Each block of `score_blocks`, with the scores of a query repeated for each of its relevant documents."""
    relevant, own = encoded.relevant.to(encoded.device), encoded.own.to(encoded.device)
    offsets = encoded.offsets.tolist()
    query_of = torch.repeat_interleave(encoded.offsets.diff()).to(encoded.device)
    for block in score_blocks(encoded, quantizer):
        for begin in range(offsets[block.first_query], offsets[block.end_query], PAIR_BLOCK):
            pairs = slice(begin, min(begin + PAIR_BLOCK, offsets[block.end_query]))
            query, first = query_of[pairs], encoded.first_document + block.first_document
            column, own_column = relevant[pairs] - first, own[query] - first
            scores = block.scores[query - block.first_query]
            inside, own_inside = ((each >= 0) & (each < encoded.block_size) for each in (column, own_column))
            yield PairScores(pairs, scores, block.copies, inside, column, own_inside, own_column)


@dataclass(frozen=True)
class ScoreBlock:
    """Scores of a block of queries with a block of this rank's documents, both padded to shapes that never change.

    Attributes:
        first_document: Index of the first document of the block among the n documents.
        first_query: Index of the first query of the block.
        end_query: Index after the last query of the block; `scores` beyond it are padding.
        scores: [q, b] float32.
        copies: [b] int64, how often each document occurs in the collection; 0 for padding.
    """

    first_document: int
    first_query: int
    end_query: int
    scores: Tensor
    copies: Tensor


def score_blocks(encoded: EncodedSet, quantizer: Quantizer) -> Iterator[ScoreBlock]:
    """Score every query with every document of this rank: for each block of documents, all blocks of queries."""
    queries = quantizer.queries(encoded.queries.to(encoded.device))
    query_block = min(QUERY_BLOCK, len(queries))
    for start in range(0, len(encoded.documents), encoded.block_size):
        part = slice(start, start + encoded.block_size)
        documents = pad_rows(quantizer.documents(encoded.documents[part].to(encoded.device)), encoded.block_size)
        copies = pad_rows(encoded.copies[part].to(encoded.device), encoded.block_size)
        for first in range(0, len(queries), query_block):
            end = min(first + query_block, len(queries))
            yield ScoreBlock(start, first, end, pad_rows(queries[first:end], query_block) @ documents.T, copies)


def pad_rows(values: Tensor, count: int) -> Tensor:
    """Append zeros along the first dimension, up to a length of `count`."""
    return pad(values, [0, 0] * (values.dim() - 1) + [0, count - len(values)])
