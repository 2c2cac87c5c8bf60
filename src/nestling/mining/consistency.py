"""Which pairs to trust: a positive should be among the first of its query (E5, arXiv 2212.03533), and near enough."""

import numpy as np

from nestling.mining.lists import Lists, Mask
from nestling.mining.retrieved import Retrieved, Scores


def among_first(found: Retrieved, positives: Lists, scores: Scores, top: int) -> Mask:
    """[n] bool: whether fewer than `top` documents of the pool score above a positive; other positives do not count.

    Args:
        found: The first documents of each query, at least `top` that are no positives or all there are.
        positives: Documents that are relevant to each query, n together.
        scores: [n] float32, theirs by the same retriever; one without a score is not among the first.
        top: How many places there are.
    """
    query, place = np.nonzero(found.rows >= 0)
    rivals = np.full(found.scores.shape, -np.inf, np.float32)
    other = ~positives.holds(query, found.rows[query, place])
    rivals[query[other], place[other]] = found.scores[query[other], place[other]]
    above = np.sum(rivals[positives.owners] > scores[:, None], axis=1)
    trusted: Mask = ~np.isnan(scores) & (above < top)
    return trusted
