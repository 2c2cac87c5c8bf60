"""The consistency filter of E5 (arXiv 2212.03533): a pair is trusted if its positive is retrieved near the top."""

import numpy as np

from nestling.mining.lists import Lists, Mask
from nestling.mining.retrieved import Retrieved, Scores


def within_top(retrieved: Retrieved, positives: Lists, scores: Scores, top: int) -> Mask:
    """[n] bool: whether fewer than `top` documents score above a positive; other positives of its query do not count.

    Args:
        retrieved: The top documents of each query: at least `top` that are not positives, or all there are.
        positives: The positives of each query, n of all queries together, as positions in the pool.
        scores: [n] float32, scores of the positives by the same retriever; one with NaN is not within the top.
        top: As in "top 2".
    """
    query, rank = np.nonzero(retrieved.documents >= 0)
    other_scores = np.full(retrieved.scores.shape, -np.inf, np.float32)
    other = ~positives.holds(query, retrieved.documents[query, rank])
    other_scores[query[other], rank[other]] = retrieved.scores[query[other], rank[other]]
    depth = retrieved.documents.shape[1]
    if top > depth:
        return ~np.isnan(scores)
    # Fewer than `top` score above a positive if the `top`-th of them does not.
    last = np.partition(other_scores, depth - top, axis=1)[:, depth - top]
    trusted: Mask = scores >= last[positives.owners]  # False for NaN
    return trusted
