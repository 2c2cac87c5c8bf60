"""Two rankings of the same candidates as one: by their ranks, or by a weighted sum of their scores."""

from collections.abc import Sequence

import numpy as np

from nestling.retrieval.metrics import Floats


def reciprocal_rank_fusion(
    first: Sequence[Floats], second: Sequence[Floats], *, constant: float = 60.0
) -> list[Floats]:
    """Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): the sum of 1 / (constant + rank) over both rankings.

    Documents with equal scores take their mean rank.

    Args:
        first: Q arrays of float64, scores of each query's candidates in one ranking.
        second: Q arrays aligned with them, scores in the other.
        constant: The larger, the less the first ranks outweigh the others.
    """
    return [
        1 / (constant + mean_ranks(one)) + 1 / (constant + mean_ranks(other))
        for one, other in zip(first, second, strict=True)
    ]


def mean_ranks(scores: Floats) -> Floats:
    """Rank of each score, from 1 for the highest; equal scores share the mean of their ranks."""
    ascending = np.sort(scores)
    above = len(scores) - np.searchsorted(ascending, scores, side="right")
    equal = len(scores) - above - np.searchsorted(ascending, scores, side="left")
    ranks: Floats = above + (equal + 1) / 2
    return ranks


def weighted_fusion(first: Sequence[Floats], second: Sequence[Floats], weight: float) -> list[Floats]:
    """(1 - weight) z(first) + weight z(second), with z(s) = (s - mean(s)) / std(s) over a query's candidates.

    They are standardised, because cosines and logits differ in scale, and both from query to query. With a weight of 0
    or 1 the order is that of the first or the second scores alone.

    Args:
        first: Q arrays of float64, scores of each query's candidates in one ranking.
        second: Q arrays aligned with them, scores in the other.
        weight: Weight of the second ranking, from 0 to 1.
    """
    return [
        (1 - weight) * standardised(one) + weight * standardised(other)
        for one, other in zip(first, second, strict=True)
    ]


def standardised(scores: Floats) -> Floats:
    """Scores with mean 0 and standard deviation 1; zeros if they are all equal, or if there are none."""
    if len(scores) == 0 or np.ptp(scores) == 0:
        return np.zeros(len(scores))
    result: Floats = (scores - scores.mean()) / scores.std()
    return result
