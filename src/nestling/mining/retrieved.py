"""What a retriever finds for all queries."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestling.retrieval.metrics import Integers

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Retrieved:
    """The first documents of each of Q queries, best first.

    Args:
        rows: [Q, k] int64, documents of the pool; -1 behind the last of a query that has fewer.
        scores: [Q, k] float32; NaN there.
    """

    rows: Integers
    scores: Scores

    @classmethod
    def nothing(cls, queries: int, depth: int) -> "Retrieved":
        return cls(np.full((queries, depth), -1), np.full((queries, depth), np.nan, np.float32))
