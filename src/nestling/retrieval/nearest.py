"""The k nearest documents of each query by an embedder, exact, in memory that does not grow with the collection.

Ties go to the document that comes first in the collection. A score and a document's position in the collection are
packed into one int64 key that orders by both, so blocks of documents, and the results of several ranks, are merged by
keeping the largest keys, in whatever order they come.

Shape legend: Q queries, q of one block, W ranks, N documents of the collection, b of one block, k of them kept.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from nestling.distributed.ranks import rank_and_world
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.collectives import reduce_sum
from nestling.retrieval.metrics import Floats, Integers, Run
from nestling.retrieval.search import QUERY_BLOCK, EmbeddingPrecision, EncodedSet, Quantizer, pad_rows, score_blocks

POSITION_BITS = 32
LAST_POSITION = 2**POSITION_BITS - 1
NO_KEY = -(2**63)  # where there is no document; below every key


def search_top(
    encoded: EncodedSet,
    retrieval_set: RetrievalSet,
    depth: int,
    *,
    dim: int | None = None,
    embedding_precision: EmbeddingPrecision = "float32",
) -> Run:
    """The `depth` documents nearest to each query and their scores, best first; the same on every rank.

    A document with the id of the query (`own_documents`) is not among them. Documents with equal tokens were encoded as
    one, but each of them is listed. With torch.distributed initialised all ranks must call it.

    Args:
        encoded: What `encode_set` returned for the retrieval set.
        retrieval_set: Gives the ids and own documents.
        depth: Documents of a query; all documents if there are fewer.
        dim: Dimension to which embeddings are truncated; None for the full one.
        embedding_precision: Precision of the vectors, as in `relevant_ranks`.
    """
    assert depth > 0
    own = retrieval_set.own_documents
    keys = nearest_keys(encoded, depth + bool((own >= 0).any()), dim, embedding_precision)
    hits = list(with_copies(keys, encoded.distinct_index, depth, own))
    wanted = {position for documents, _ in hits for position in documents.tolist()}
    ids = {position: identifier for position, identifier in enumerate(retrieval_set.document_ids) if position in wanted}
    return {
        query: {ids[position]: score for position, score in zip(documents.tolist(), scores.tolist(), strict=True)}
        for query, (documents, scores) in zip(retrieval_set.query_ids, hits, strict=True)
    }


def nearest_keys(
    encoded: EncodedSet, depth: int, dim: int | None = None, embedding_precision: EmbeddingPrecision = "float32"
) -> Integers:
    """Keys (`pack`) of each query's `depth` best distinct documents, all if there are fewer: [Q, k] int64, descending.

    The position of a distinct document is that of its first copy. So a document among the `depth` best, copies counted,
    is always a copy of one of the `depth` best distinct documents.
    """
    quantizer = Quantizer.fit(encoded, encoded.queries.shape[1] if dim is None else dim, embedding_precision)
    distinct, first_copies = np.unique(encoded.distinct_index, return_index=True)
    positions = np.full(len(encoded.documents), LAST_POSITION)
    mine = (distinct >= encoded.first_document) & (distinct < encoded.first_document + len(positions))
    positions[distinct[mine] - encoded.first_document] = first_copies[mine]

    best = torch.full((len(encoded.queries), min(depth, len(distinct))), NO_KEY, device=encoded.device)
    for block in score_blocks(encoded, quantizer):
        queries = slice(block.first_query, block.end_query)
        part = torch.from_numpy(positions[block.first_document : block.first_document + encoded.block_size])
        part = pad_rows(part.to(encoded.device), encoded.block_size)
        keys = pack(block.scores[: block.end_query - block.first_query], part)  # [q, b]
        # Copies are 0 for padding and for documents that an earlier rank has encoded too.
        keys = torch.where(block.copies > 0, keys, NO_KEY)
        best[queries] = torch.cat([best[queries], keys], dim=1).topk(best.shape[1]).values
    return np.concatenate([top_over_ranks(part, encoded.device).cpu().numpy() for part in best.split(QUERY_BLOCK)])


def top_over_ranks(best: Tensor, device: torch.device) -> Tensor:
    """Merge the keys of all ranks, which must all call it, and keep the k largest of each query: [q, k] to [q, k]."""
    rank, world = rank_and_world()
    every = torch.zeros(world, *best.shape, dtype=torch.int64, device=device)
    every[rank] = best
    return reduce_sum(every, device).transpose(0, 1).flatten(1).topk(best.shape[1]).values


def with_copies(
    keys: Integers, distinct_index: Integers, depth: int, own: Integers
) -> Iterator[tuple[Integers, Floats]]:
    """For each query the positions of its `depth` best documents, every copy listed, and their scores.

    Args:
        keys: [Q, k] int64, keys of the best distinct documents.
        distinct_index: [N] int64, for each document of the collection which distinct document it is.
        depth: Documents of a query.
        own: [Q] int64, the position of a document that is left out for each query, or -1.
    """
    order = np.argsort(distinct_index, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(distinct_index))])
    for query_keys, own_document in zip(keys, own, strict=True):
        scores, positions = unpack(query_keys)
        copies = [order[starts[kind] : starts[kind + 1]][: depth + 1] for kind in distinct_index[positions]]
        documents, scores = np.concatenate(copies), np.repeat(scores, [len(each) for each in copies])
        best = np.lexsort((documents, -scores))
        best = best[documents[best] != own_document][:depth]
        yield documents[best], scores[best]


def pack(scores: Tensor, positions: Tensor) -> Tensor:
    """Keys that order by score, and equal scores by position, a lower one being a larger key.

    The bits of a float32, read as an integer, have the order of the float once all bits but the sign of a negative
    number are flipped.

    Args:
        scores: [q, b] float32.
        positions: [b] int64, or any shape that broadcasts with that of the scores; from 0 to `LAST_POSITION`.

    Returns:
        Keys, int64, in the shape of the scores.
    """
    bits = (scores + 0.0).view(torch.int32)  # adding 0.0 makes -0.0 equal to 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    keys: Tensor = (ordered << POSITION_BITS) + (LAST_POSITION - positions)
    return keys


def unpack(keys: Integers) -> tuple[Floats, Integers]:
    """Scores, float64, and positions, int64, of keys."""
    ordered = (keys >> POSITION_BITS).astype(np.int32)
    bits = np.where(ordered < 0, ordered ^ np.int32(0x7FFFFFFF), ordered)
    return bits.view(np.float32).astype(np.float64), LAST_POSITION - (keys & LAST_POSITION)
