"""The candidates of all queries in flat arrays, with the rank and score that each retriever gave them.

Shapes: Q queries, C candidates of all queries together, query after query.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nestling.mining.lists import Lists
from nestling.mining.retrieved import Retrieved, Scores
from nestling.retrieval.metrics import Integers

Ranks = NDArray[np.int32]


@dataclass(frozen=True)
class Candidates:
    """Candidates; those of a query are ordered by the best rank that any retriever gave them.

    Attributes:
        lists: The candidates of each query, as positions in the pool.
        scores: For each retriever [C] float32; NaN where it did not find the candidate.
        ranks: For each retriever [C] int32, from 1; -1 where it did not find the candidate.
    """

    lists: Lists
    scores: Mapping[str, Scores]
    ranks: Mapping[str, Ranks]

    def __len__(self) -> int:
        return len(self.lists.values)

    @property
    def documents(self) -> Integers:
        """[C] int64, positions in the pool."""
        return self.lists.values

    @property
    def queries(self) -> Integers:
        """[C] int64, the query that each is a candidate of."""
        return self.lists.owners

    @property
    def best_rank(self) -> Ranks:
        """[C] int32, the best rank that any retriever gave."""
        ranks = np.stack(list(self.ranks.values()))
        best: Ranks = np.where(ranks < 0, np.iinfo(np.int32).max, ranks).min(axis=0)
        return best

    def with_scores(self, name: str, scores: Scores) -> "Candidates":
        """A copy in which the scores of one retriever are added or replaced."""
        return replace(self, scores={**self.scores, name: scores})


def union_candidates(retrieved: Mapping[str, Retrieved]) -> Candidates:
    """The union of what several retrievers found for the same queries."""
    num_queries = len(next(iter(retrieved.values())).documents)
    flat = {name: flatten(each) for name, each in retrieved.items()}
    queries = np.concatenate([query for query, _, _, _ in flat.values()])
    documents = np.concatenate([document for _, document, _, _ in flat.values()])
    # Query and document of a pair in one integer, which np.unique handles faster than two.
    span = int(documents.max(initial=0)) + 1
    pairs, first = np.unique(queries * span + documents, return_index=True)
    ranks = np.concatenate([rank for _, _, rank, _ in flat.values()])
    best = np.full(len(pairs), np.iinfo(np.int32).max)
    np.minimum.at(best, np.searchsorted(pairs, queries * span + documents), ranks)
    # Equal ranks are ordered as the retrievers were named.
    order = np.lexsort((first, best, pairs // span))
    place = np.argsort(order)
    scores_of, ranks_of = {}, {}
    for name, (query, document, rank, score) in flat.items():
        at = place[np.searchsorted(pairs, query * span + document)]
        scores_of[name], ranks_of[name] = np.full(len(pairs), np.nan, np.float32), np.full(len(pairs), -1, np.int32)
        scores_of[name][at], ranks_of[name][at] = score, rank
    return Candidates(Lists.grouped((pairs // span)[order], (pairs % span)[order], num_queries), scores_of, ranks_of)


def flatten(retrieved: Retrieved) -> tuple[Integers, Integers, Ranks, Scores]:
    """Query, document, rank and score of everything that a retriever found, four arrays of one length."""
    query, column = np.nonzero(retrieved.documents >= 0)
    ranks = (column + 1).astype(np.int32)
    return query, retrieved.documents[query, column], ranks, retrieved.scores[query, column]
