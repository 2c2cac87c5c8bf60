"""The nearest documents of many queries, exact: blocks of queries against blocks of documents, bounded in memory.

A score and a document's place make one int64 that orders both (`nestling.retrieval.nearest.pack`), so blocks and ranks
merge by taking the largest, and equal scores go to the document that comes first. Most of a block of scores is never
sorted: only groups of documents whose best reaches the worst that is kept are looked into.

Shape legend: Q queries, q of one block, b documents of a block, k kept, g groups of a block, D dimensions.
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
# Pairs whose embeddings are in memory at a time.
PAIR_BLOCK = 8192
GROUP = 32
EVEN = 8 * GROUP


def nearest(queries: Vectors, documents: Vectors, size: int, depth: int, device: torch.device) -> Retrieved:
    """The `depth` of the first `size` documents that are nearest to each query, best first, the same on every rank.

    Args:
        queries: Q embeddings.
        documents: At least `size`.
        size: Documents that can be found.
        depth: Documents of a query; fewer are found if there are fewer.
        device: Where scores are computed, in float32, and where ranks communicate.
    """
    found = Retrieved.nothing(len(queries), depth)
    count = -(-size // documents.height)
    mine = indices_of_rank(count)
    # Of every product, since the last bit of a score depends on its shape; nearly even, and whole groups.
    width = min(-(-size // (count * EVEN)) * EVEN, documents.height)
    for first in range(0, len(queries), QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, len(queries))
        block = queries.span(first, last, device)
        best = torch.full((last - first, min(depth, size)), NO_KEY, device=device)
        for number in mine:
            start = number * width
            part = documents.span(start, min(start + width, size), device)
            scores = block @ (part if len(part) == width else pad_rows(part, width)).T
            scores[:, len(part) :] = -torch.inf
            best = merge(best, scores, start)
        keys = top_over_ranks(best, device).cpu().numpy()
        found.rows[first:last, : keys.shape[1]], found.scores[first:last, : keys.shape[1]] = read_keys(keys)
    return found


def merge(best: Tensor, scores: Tensor, start: int) -> Tensor:
    """The largest keys of those kept and of a block's documents: [q, k] and [q, b] to [q, k].

    1. The best of each group of documents, which are `groups` apart.
    2. A threshold that k documents reach: the worst that is kept, or the k-th best group if less is kept.
    3. Those of the groups at the threshold that reach it become keys, beside the kept ones.
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
    values = grouped[query, :, group]  # [groups looked into, GROUP]
    which, member = ((values >= threshold[query, None]) & (values > -torch.inf)).nonzero(as_tuple=True)
    keys = pack(values[which, member], start + member * groups + group[which])
    return torch.cat([best, in_rows(keys, query[which], count)], dim=1).topk(kept).values


def lowest_score(best: Tensor) -> Tensor:
    """[q] float32, the score of the worst of k keys; -inf where there are fewer."""
    scores, _ = unpack(best[:, -1].cpu().numpy())
    full = (best[:, -1] != NO_KEY).cpu().numpy()
    return torch.from_numpy(np.where(full, scores, -np.inf).astype(np.float32)).to(best.device)


def in_rows(keys: Tensor, query: Tensor, count: int) -> Tensor:
    """[q, as many as the fullest has]: keys in the rows that they belong to, which ascend; NO_KEY in the gaps."""
    sizes = torch.bincount(query, minlength=count)
    table = torch.full((count, int(sizes.max())), NO_KEY, device=keys.device)
    table[query, torch.arange(len(keys), device=keys.device) - (sizes.cumsum(0) - sizes)[query]] = keys
    return table


def read_keys(keys: Integers) -> tuple[Integers, Floats]:
    """Rows and scores of keys; -1 and NaN for NO_KEY."""
    scores, rows = unpack(keys)
    return np.where(keys == NO_KEY, -1, rows), np.where(keys == NO_KEY, np.nan, scores)


def products(left: Vectors, left_rows: Integers, right: Vectors, right_rows: Integers) -> Scores:
    """[P] float32, the product of each pair of embeddings."""
    found = np.empty(len(left_rows), np.float32)
    for start in range(0, len(found), PAIR_BLOCK):
        part = slice(start, start + PAIR_BLOCK)
        found[part] = (left.take(left_rows[part]) * right.take(right_rows[part])).sum(dim=1).numpy()
    return found
