"""The candidates of all queries in flat arrays, with who found each of them, where, and with which score.

Shapes: Q queries, C candidates of all queries together, those of a query one after the other.
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
    """Candidates, those of a query ordered by the best rank that any retriever gave them.

    Attributes:
        lists: The documents of the pool that are candidates of each query.
        scores: For each retriever [C] float32; NaN where it did not find the candidate.
        ranks: For each retriever [C] int32, from 1; -1 there.
    """

    lists: Lists
    scores: Mapping[str, Scores]
    ranks: Mapping[str, Ranks]

    def __len__(self) -> int:
        return len(self.lists.values)

    @property
    def rows(self) -> Integers:
        """[C] int64, documents of the pool."""
        return self.lists.values

    @property
    def queries(self) -> Integers:
        """[C] int64, which query each is a candidate of."""
        return self.lists.owners

    @property
    def best_rank(self) -> Ranks:
        """[C] int32, the best rank that a retriever gave."""
        ranks = np.stack(list(self.ranks.values()))
        best: Ranks = np.where(ranks < 0, np.iinfo(np.int32).max, ranks).min(axis=0)
        return best

    def with_scores(self, name: str, scores: Scores) -> "Candidates":
        """The same with a column of scores replaced or added."""
        return replace(self, scores={**self.scores, name: scores})


def unite(found: Mapping[str, Retrieved]) -> Candidates:
    """The union of what retrievers found for the same queries."""
    queries = len(next(iter(found.values())).rows)
    flat = {name: flatten(each) for name, each in found.items()}
    owners = np.concatenate([owner for owner, _, _, _ in flat.values()])
    rows = np.concatenate([row for _, row, _, _ in flat.values()])
    span = int(rows.max(initial=0)) + 1
    keys, first = np.unique(owners * span + rows, return_index=True)
    ranks = np.concatenate([rank for _, _, rank, _ in flat.values()])
    best = np.full(len(keys), np.iinfo(np.int32).max)
    np.minimum.at(best, np.searchsorted(keys, owners * span + rows), ranks)
    # Of equal ranks, the retriever that was named first goes first.
    order = np.lexsort((first, best, keys // span))
    place = np.argsort(order)
    scores_of, ranks_of = {}, {}
    for name, (owner, row, rank, score) in flat.items():
        at = place[np.searchsorted(keys, owner * span + row)]
        scores_of[name], ranks_of[name] = np.full(len(keys), np.nan, np.float32), np.full(len(keys), -1, np.int32)
        scores_of[name][at], ranks_of[name][at] = score, rank
    return Candidates(Lists.grouped((keys // span)[order], (keys % span)[order], queries), scores_of, ranks_of)


def flatten(found: Retrieved) -> tuple[Integers, Integers, Ranks, Scores]:
    """Query, row, rank and score of everything that a retriever found."""
    query, place = np.nonzero(found.rows >= 0)
    return query, found.rows[query, place], (place + 1).astype(np.int32), found.scores[query, place]
