"""Exact nearest-neighbour search: blocks of queries against blocks of documents, in bounded memory.

A score and a document's position are packed into one int64 key that orders by score, then position
(`nestling.retrieval.nearest.pack`). So the results of blocks and ranks merge by taking the largest keys, and of equal
scores the first document wins. Most scores of a block are never sorted: documents are divided into groups, and only
groups whose highest score reaches the lowest score kept so far are examined.

Shape legend: Q queries, q of one block, b documents of a block, k kept, g groups of a block, D dimensions, P pairs.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from nestling.mining.retrieved import Retrieved, Scores
from nestling.mining.vectors import Vectors
from nestling.retrieval.collectives import indices_of_rank
from nestling.retrieval.metrics import Floats, Integers
from nestling.retrieval.nearest import NO_KEY, pack, top_over_ranks, unpack
from nestling.retrieval.search import pad_rows

QUERY_BLOCK = 1024
# Pairs of `products` whose embeddings are in memory at a time.
PAIR_BLOCK = 8192
# Documents of a group.
GROUP = 32
# The width of a block of documents is a multiple of this.
WIDTH_STEP = 8 * GROUP


def nearest(queries: Vectors, documents: Vectors, size: int, depth: int, device: torch.device) -> Retrieved:
    """The `depth` nearest documents of each query, best first, the same on every rank; all ranks must call it.

    Args:
        queries: Q embeddings.
        documents: At least `size` embeddings.
        size: Only the first `size` documents are searched.
        depth: Documents of a query; fewer are found if `size` is smaller.
        device: Where scores are computed, in float32, and where ranks communicate.
    """
    retrieved = Retrieved.empty(len(queries), depth)
    count = -(-size // documents.shard_size)
    own_blocks = indices_of_rank(count)
    # All blocks have one width, since the last bit of a score depends on the shape of the product.
    width = min(-(-size // (count * WIDTH_STEP)) * WIDTH_STEP, documents.shard_size)
    for first in range(0, len(queries), QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, len(queries))
        query_block = queries.span(first, last, device)
        best = torch.full((last - first, min(depth, size)), NO_KEY, device=device)
        for number in own_blocks:
            start = number * width
            block = documents.span(start, min(start + width, size), device)
            scores = query_block @ (block if len(block) == width else pad_rows(block, width)).T
            scores[:, len(block) :] = -torch.inf
            best = merge(best, scores, start)
        keys = top_over_ranks(best, device).cpu().numpy()
        top = slice(first, last), slice(keys.shape[1])
        retrieved.documents[top], retrieved.scores[top] = read_keys(keys)
    return retrieved


def merge(best: Tensor, scores: Tensor, start: int) -> Tensor:
    """The largest k of the keys kept so far and those of a block's documents: [q, k] and [q, b] to [q, k].

    1. The highest score of each group of documents; the documents of a group are `groups` apart.
    2. A threshold that k documents reach: the lowest score kept, or, while fewer than k are kept, the k-th best group.
    3. The documents that reach it, in the groups that reach it, become keys and compete with the kept ones.
    """
    kept, (count, width) = best.shape[1], scores.shape
    groups = -(-width // GROUP)
    if groups * GROUP > width:
        scores = pad(scores, [0, groups * GROUP - width], value=-torch.inf)
    grouped = scores.view(count, GROUP, groups)
    tops = grouped.amax(dim=1)  # [q, g]
    threshold = lowest_score(best)
    if kept <= groups and not bool(threshold.isfinite().all()):
        threshold = torch.maximum(threshold, tops.topk(kept).values[:, -1])
    query, group = (tops >= threshold[:, None]).nonzero(as_tuple=True)
    values = grouped[query, :, group]  # [groups that reach the threshold, GROUP]
    which, member = ((values >= threshold[query, None]) & (values > -torch.inf)).nonzero(as_tuple=True)
    keys = pack(values[which, member], start + member * groups + group[which])
    return torch.cat([best, group_by_query(keys, query[which], count)], dim=1).topk(kept).values


def lowest_score(best: Tensor) -> Tensor:
    """[q] float32, the score of the lowest of k keys; -inf where fewer are kept."""
    scores, _ = unpack(best[:, -1].cpu().numpy())
    full = (best[:, -1] != NO_KEY).cpu().numpy()
    return torch.from_numpy(np.where(full, scores, -np.inf).astype(np.float32)).to(best.device)


def group_by_query(keys: Tensor, query: Tensor, count: int) -> Tensor:
    """[q, the most keys of any query] from keys and the query of each, ascending; padded with NO_KEY."""
    sizes = torch.bincount(query, minlength=count)
    table = torch.full((count, int(sizes.max())), NO_KEY, device=keys.device)
    table[query, torch.arange(len(keys), device=keys.device) - (sizes.cumsum(0) - sizes)[query]] = keys
    return table


def read_keys(keys: Integers) -> tuple[Integers, Floats]:
    """Documents and scores of keys; -1 and NaN for NO_KEY."""
    scores, documents = unpack(keys)
    return np.where(keys == NO_KEY, -1, documents), np.where(keys == NO_KEY, np.nan, scores)


def products(left: Vectors, left_positions: Integers, right: Vectors, right_positions: Integers) -> Scores:
    """[P] float32, dot products of pairs: of left[left_positions[i]] with right[right_positions[i]]."""
    scores = np.empty(len(left_positions), np.float32)
    for start in range(0, len(scores), PAIR_BLOCK):
        part = slice(start, start + PAIR_BLOCK)
        scores[part] = (left.take(left_positions[part]) * right.take(right_positions[part])).sum(dim=1).numpy()
    return scores
