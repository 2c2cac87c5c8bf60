"""The documents that a retriever finds for all queries."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestling.retrieval.metrics import Integers

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Retrieved:
    """The top k documents of each of Q queries, best first.

    Args:
        documents: [Q, k] int64, positions in the pool; -1 after the last document of a query that has fewer than k.
        scores: [Q, k] float32; NaN where `documents` is -1.
    """

    documents: Integers
    scores: Scores

    @classmethod
    def empty(cls, queries: int, depth: int) -> "Retrieved":
        return cls(np.full((queries, depth), -1), np.full((queries, depth), np.nan, np.float32))
