"""The documents that a retriever finds for all queries."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestling.mining.lists import Lists
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

    def without(self, own: Lists, depth: int) -> "Retrieved":
        """The top `depth` documents of each query but for those that `own` lists for it.

        k must exceed `depth` by the length of the longest list, so that no other document is missing.
        """
        if not len(own.values):
            return self
        others = Retrieved(self.documents[:, :depth].copy(), self.scores[:, :depth].copy())
        for query in np.flatnonzero(own.counts).tolist():
            kept = np.flatnonzero(~np.isin(self.documents[query], own[query]))[:depth]
            others.documents[query], others.scores[query] = self.documents[query, kept], self.scores[query, kept]
        return others

    @classmethod
    def empty(cls, queries: int, depth: int) -> "Retrieved":
        return cls(np.full((queries, depth), -1), np.full((queries, depth), np.nan, np.float32))
