"""An embedder as a first stage: the nearest documents of each query, exact, in memory that does not grow with them.

Of documents that tie the one that comes first in the collection is nearer. A score and a document's place make one
int64 that orders both, so blocks and ranks merge by taking the largest numbers, in whatever order they come.

Shape legend: Q queries, q of one block, W ranks, N documents of the collection, b of one block, k of them kept.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from nestling.distributed.ranks import rank_and_world
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.metrics import Floats, Integers, Run
from nestling.retrieval.ranks import reduce_sum
from nestling.retrieval.search import QUERY_BLOCK, Codec, EmbeddingPrecision, EncodedSet, pad_rows, score_blocks

PLACE_BITS = 32
LAST_PLACE = 2**PLACE_BITS - 1
NOTHING = -(2**63)  # below every key


def search_top(
    encoded: EncodedSet,
    retrieval_set: RetrievalSet,
    depth: int,
    *,
    dim: int | None = None,
    embedding_precision: EmbeddingPrecision = "float32",
) -> Run:
    """The `depth` documents nearest to each query, best first, the same on every rank.

    Documents that are equal to the model are listed each. With torch.distributed initialised all ranks must call it.

    Args:
        encoded: What `encode_set` made of the retrieval set.
        retrieval_set: Gives the ids.
        depth: Documents of a query, all if there are fewer.
        dim: Cut embeddings to their first values; None for all of them.
        embedding_precision: How the vectors are kept, as in `place`.
    """
    assert depth > 0
    found = list(with_copies(nearest_keys(encoded, depth, dim, embedding_precision), encoded.which, depth))
    wanted = {row for rows, _ in found for row in rows.tolist()}
    ids = {row: identifier for row, identifier in enumerate(retrieval_set.document_ids) if row in wanted}
    return {
        query: {ids[row]: score for row, score in zip(rows.tolist(), scores.tolist(), strict=True)}
        for query, (rows, scores) in zip(retrieval_set.query_ids, found, strict=True)
    }


def nearest_keys(
    encoded: EncodedSet, depth: int, dim: int | None = None, embedding_precision: EmbeddingPrecision = "float32"
) -> Integers:
    """[Q, k] int64, descending: `pack` of each query's `depth` best distinct documents, all if there are fewer.

    A distinct document's place is that of the first of its copies, so no copy of another can come between the `depth`
    best documents and be missed.
    """
    codec = Codec.fit(encoded, encoded.queries.shape[1] if dim is None else dim, embedding_precision)
    distinct, first_rows = np.unique(encoded.which, return_index=True)
    places = np.full(len(encoded.documents), LAST_PLACE)
    mine = (distinct >= encoded.first) & (distinct < encoded.first + len(places))
    places[distinct[mine] - encoded.first] = first_rows[mine]

    best = torch.full((len(encoded.queries), min(depth, len(distinct))), NOTHING, device=encoded.device)
    for block in score_blocks(encoded, codec):
        queries = slice(block.first, block.last)
        part = torch.from_numpy(places[block.start : block.start + encoded.block]).to(encoded.device)
        keys = pack(block.scores[: block.last - block.first], pad_rows(part, encoded.block))  # [q, b]
        keys = torch.where(block.copies > 0, keys, NOTHING)  # neither padding nor what an earlier rank has too
        best[queries] = torch.cat([best[queries], keys], dim=1).topk(best.shape[1]).values
    return np.concatenate([over_ranks(part, encoded.device).cpu().numpy() for part in best.split(QUERY_BLOCK)])


def over_ranks(best: Tensor, device: torch.device) -> Tensor:
    """The largest keys of all ranks together: [q, k] to [q, k]."""
    rank, world = rank_and_world()
    every = torch.zeros(world, *best.shape, dtype=torch.int64, device=device)
    every[rank] = best
    return reduce_sum(every, device).transpose(0, 1).flatten(1).topk(best.shape[1]).values


def with_copies(keys: Integers, which: Integers, depth: int) -> Iterator[tuple[Integers, Floats]]:
    """For each query the rows of its `depth` best documents, copies listed each, and their scores.

    `keys` are of the distinct documents, [Q, k]; `which` says for each document of the collection which distinct one
    it is, [N].
    """
    order = np.argsort(which, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(which))])
    for each in keys:
        scores, places = unpack(each)
        spans = [order[starts[kind] : starts[kind + 1]][:depth] for kind in which[places]]
        rows, scores = np.concatenate(spans), np.repeat(scores, [len(span) for span in spans])
        listed = np.lexsort((rows, -scores))[:depth]
        yield rows[listed], scores[listed]


def pack(scores: Tensor, places: Tensor) -> Tensor:
    """Keys that order by score and equal scores by place, the first the largest: [q, b] and [b] to [q, b] int64.

    The bits of a float32 read as an integer order as the float does, once those beside a minus sign are flipped.
    """
    bits = (scores + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    keys: Tensor = (ordered << PLACE_BITS) + (LAST_PLACE - places)
    return keys


def unpack(keys: Integers) -> tuple[Floats, Integers]:
    """Scores and places of keys."""
    ordered = (keys >> PLACE_BITS).astype(np.int32)
    bits = np.where(ordered < 0, ordered ^ np.int32(0x7FFFFFFF), ordered)
    return bits.view(np.float32).astype(np.float64), LAST_PLACE - (keys & LAST_PLACE)
