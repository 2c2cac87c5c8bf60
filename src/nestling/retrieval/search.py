"""Exact search: for each relevant document, how many documents score above it and how many equal.

The collection is walked in blocks of fixed shape, so memory does not grow with it, and no document is left out. A
relevant document's own score comes from the very product that it is compared in, not from one of another shape, whose
last bit may differ: documents with equal vectors tie exactly.

Shape legend: Q queries, R relevant documents of all queries, N documents of the collection, n distinct ones of this
rank, b of one block, p relevant documents handled at once, D width of the embeddings, d <= D the dimension that is
evaluated.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from nestling.models.encoding import EncodingStats
from nestling.retrieval.metrics import Floats, Integers, Placements
from nestling.retrieval.ranks import reduce_max, reduce_sum

EmbeddingPrecision = Literal["float32", "int8", "binary"]

QUERY_BLOCK = 256
DOCUMENT_BLOCK = 4096
PAIR_BLOCK = 512


@dataclass(frozen=True)
class EncodedSet:
    """A retrieval set's embeddings, from which every dimension and embedding precision is measured.

    Attributes:
        queries: [Q, D] float32, all of them on every rank.
        documents: [n, D] float32, the distinct documents that this rank encoded; n may be 0.
        copies: [n] int64, how often each of them occurs in the collection; 0 if an earlier rank has it too.
        which: [N] int64, for each document of the collection its index among the documents of all ranks.
        first: Index of documents[0] among the documents of all ranks, in the order of the ranks.
        block: Documents scored at once, the same on every rank.
        offsets: [Q + 1] int64; the relevant documents of query i are relevant[offsets[i]:offsets[i + 1]].
        relevant: [R] int64, indices among the documents of all ranks, never of one with copies 0.
        gains: [R] float64, their judgements.
        device: Where scores are computed, and where ranks communicate.
        query_stats: What encoding the queries took, on all ranks together.
        document_stats: What encoding the documents took.
    """

    queries: Tensor
    documents: Tensor
    copies: Tensor
    which: Integers
    first: int
    block: int
    offsets: Tensor
    relevant: Tensor
    gains: Floats
    device: torch.device
    query_stats: EncodingStats = field(default_factory=EncodingStats)
    document_stats: EncodingStats = field(default_factory=EncodingStats)


def place(encoded: EncodedSet, dim: int, embedding_precision: EmbeddingPrecision = "float32") -> Placements:
    """Where each query's relevant documents stand among all documents; the same on every rank.

    Embeddings are cut to their first `dim` values and normalised again, then kept as a vector store would keep them
    (`Codec`). With torch.distributed initialised all ranks must call it.
    """
    return place_scored(encoded, dim, embedding_precision)[0]


def place_scored(
    encoded: EncodedSet, dim: int, embedding_precision: EmbeddingPrecision = "float32"
) -> tuple[Placements, Floats]:
    """What `place` gives, and the scores of the relevant documents, [R] float64."""
    assert 0 < dim <= encoded.queries.shape[1], f"dim {dim} of {encoded.queries.shape[1]}"
    codec = Codec.fit(encoded, dim, embedding_precision)
    own = torch.zeros(len(encoded.relevant), device=encoded.device)
    for rows in scores_by_block(encoded, codec):
        own[rows.pairs][rows.inside] = rows.scores[rows.inside, rows.column[rows.inside]]
    own = reduce_sum(own, encoded.device)

    counts = torch.zeros(2, len(own), dtype=torch.int64, device=encoded.device)
    for rows in scores_by_block(encoded, codec):
        threshold = own[rows.pairs]
        # Written over, in case a kernel does not repeat itself to the last bit.
        rows.scores[rows.inside, rows.column[rows.inside]] = threshold[rows.inside]
        counts[0, rows.pairs] += torch.where(rows.scores > threshold[:, None], rows.copies, 0).sum(dim=1)
        counts[1, rows.pairs] += torch.where(rows.scores == threshold[:, None], rows.copies, 0).sum(dim=1)
    above, equal = reduce_sum(counts, encoded.device).cpu().numpy()
    return Placements(encoded.offsets.numpy(), encoded.gains, above, equal), own.double().cpu().numpy()


def score_pairs(
    encoded: EncodedSet, queries: Integers, documents: Integers, dim: int, embedding_precision: EmbeddingPrecision
) -> Floats:
    """[p] float64: scores of pairs of a query and a distinct document, in one process.

    Args:
        encoded: The embeddings.
        queries: [p] int64, which of the Q queries.
        documents: [p] int64, which of the n distinct documents.
        dim: As in `place`.
        embedding_precision: As in `place`.
    """
    assert len(encoded.documents) == len(encoded.copies) > encoded.which.max(), "the documents of other ranks lack"
    codec = Codec.fit(encoded, dim, embedding_precision)
    scores = np.empty(len(queries))
    for start in range(0, len(queries), encoded.block):
        part = slice(start, start + encoded.block)
        asked = codec.queries(encoded.queries[queries[part]].to(encoded.device))
        found = codec.documents(encoded.documents[documents[part]].to(encoded.device))
        scores[part] = (asked * found).sum(dim=1).double().cpu().numpy()
    return scores


@dataclass(frozen=True)
class Codec:
    """Vectors as a store keeps them, given back as float32 so that one product serves every embedding precision.

    float32: as they are. int8: documents in 256 steps between the smallest and the largest value that the documents
    have in each dimension, queries in float32, scores between the query and the decoded document (faiss SQ8,
    `sentence_transformers.quantize_embeddings`). binary: signs of both; the product d - 2 * Hamming distance is an
    exact integer, often the same for many documents.
    """

    dim: int
    embedding_precision: EmbeddingPrecision
    low: Tensor
    step: Tensor

    @classmethod
    def fit(cls, encoded: EncodedSet, dim: int, embedding_precision: EmbeddingPrecision) -> "Codec":
        """Calibrate on the documents of all ranks; `low` and `step` are [d] float32, used by int8 only."""
        negative_low = torch.full((dim,), -torch.inf, device=encoded.device)
        high = negative_low.clone()
        if embedding_precision == "int8":
            for start in range(0, len(encoded.documents), encoded.block):  # none on a rank without documents
                vectors = shorten(encoded.documents[start : start + encoded.block].to(encoded.device), dim)
                negative_low = torch.maximum(negative_low, (-vectors).amax(dim=0))
                high = torch.maximum(high, vectors.amax(dim=0))
            negative_low, high = reduce_max(torch.stack([negative_low, high]), encoded.device)
        step = (high + negative_low) / 255
        return cls(dim, embedding_precision, low=-negative_low, step=torch.where(step == 0, 1.0, step))

    def queries(self, embeddings: Tensor) -> Tensor:
        """[Q, D] to [Q, d] float32."""
        vectors = shorten(embeddings, self.dim)
        return signs(vectors) if self.embedding_precision == "binary" else vectors

    def documents(self, embeddings: Tensor) -> Tensor:
        """[n, D] to [n, d] float32."""
        vectors = shorten(embeddings, self.dim)
        if self.embedding_precision == "int8":
            codes = ((vectors - self.low) / self.step).floor().clamp(0, 255)
            return codes * self.step + self.low
        return signs(vectors) if self.embedding_precision == "binary" else vectors


def shorten(embeddings: Tensor, dim: int) -> Tensor:
    """The first `dim` values of each embedding, normalised: [n, D] to [n, d]."""
    return normalize(embeddings[:, :dim], dim=-1)


def signs(vectors: Tensor) -> Tensor:
    """1 where a value is above 0, else -1."""
    return torch.where(vectors > 0, 1.0, -1.0)


@dataclass(frozen=True)
class ScoreRows:
    """Scores of the queries of some relevant documents with one block of documents.

    Attributes:
        pairs: Which of the R relevant documents.
        scores: [p, b] float32, of the query of each of them.
        copies: [b] int64, how often each document of the block occurs; 0 for padding.
        inside: [p] bool, whether the relevant document itself is in the block.
        column: [p] int64, where it is, if inside.
    """

    pairs: slice
    scores: Tensor
    copies: Tensor
    inside: Tensor
    column: Tensor


def scores_by_block(encoded: EncodedSet, codec: Codec) -> Iterator[ScoreRows]:
    """The scores of `score_blocks` for the queries of the relevant documents, some of these at a time."""
    relevant = encoded.relevant.to(encoded.device)
    offsets = encoded.offsets.tolist()
    query_of = torch.repeat_interleave(encoded.offsets.diff()).to(encoded.device)
    for block in score_blocks(encoded, codec):
        for begin in range(offsets[block.first], offsets[block.last], PAIR_BLOCK):
            pairs = slice(begin, min(begin + PAIR_BLOCK, offsets[block.last]))
            column = relevant[pairs] - encoded.first - block.start
            inside = (column >= 0) & (column < encoded.block)
            yield ScoreRows(pairs, block.scores[query_of[pairs] - block.first], block.copies, inside, column)


@dataclass(frozen=True)
class ScoreBlock:
    """Scores of some queries with one block of this rank's documents, both padded to shapes that never change.

    Attributes:
        start: The first of the n documents.
        first: The first of the queries.
        last: The one after the last query; rows of `scores` beyond it are padding.
        scores: [query block, b] float32.
        copies: [b] int64, how often each document occurs; 0 for padding.
    """

    start: int
    first: int
    last: int
    scores: Tensor
    copies: Tensor


def score_blocks(encoded: EncodedSet, codec: Codec) -> Iterator[ScoreBlock]:
    """Score every query with every document of this rank, all queries with one block of documents after another."""
    queries = codec.queries(encoded.queries.to(encoded.device))
    query_block = min(QUERY_BLOCK, len(queries))
    for start in range(0, len(encoded.documents), encoded.block):
        part = slice(start, start + encoded.block)
        documents = pad_rows(codec.documents(encoded.documents[part].to(encoded.device)), encoded.block)
        copies = pad_rows(encoded.copies[part].to(encoded.device), encoded.block)
        for first in range(0, len(queries), query_block):
            last = min(first + query_block, len(queries))
            yield ScoreBlock(start, first, last, pad_rows(queries[first:last], query_block) @ documents.T, copies)


def pad_rows(values: Tensor, count: int) -> Tensor:
    """Append zero rows up to `count`."""
    return pad(values, [0, 0] * (values.dim() - 1) + [0, count - len(values)])
