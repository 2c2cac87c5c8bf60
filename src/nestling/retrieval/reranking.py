"""Rerank the candidates of a retrieval set and measure, over any number of ranks."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from nestling.models.encoding import single_process
from nestling.models.reranker import Reranker
from nestling.models.scoring import Group, ScoringStats, score_groups
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.candidates import Candidates
from nestling.retrieval.metrics import Floats, Integers
from nestling.retrieval.ranks import largest, reduce_sum, rows_of_rank


def rerank(
    reranker: Reranker,
    retrieval_set: RetrievalSet,
    candidates: Candidates,
    *,
    instruction: str | None = None,
    tokens_per_batch: int | None = None,
    equal_forwards: bool = False,
    progress: bool = False,
    stats: ScoringStats | None = None,
) -> list[Floats]:
    """Logits of each query's candidates, Q arrays of float64 aligned with `candidates.rows`, the same on every rank.

    With torch.distributed initialised all ranks must call it with the same arguments (but for `progress`); they share
    the queries. `equal_forwards` is for models whose forward is a collective (ZeRO-3, FSDP2).

    Args:
        reranker: The model.
        retrieval_set: Queries and documents.
        candidates: Which documents to score for each query.
        instruction: Task of the queries; the model's default by default.
        tokens_per_batch: Positions of a chunk; by default what suits the device.
        equal_forwards: The ranks run equally many chunks.
        progress: Show a bar.
        stats: Counts what this rank scores.
    """
    bounds = np.cumsum([0, *(len(rows) for rows in candidates.rows)])  # [Q + 1]
    logits = torch.zeros(int(bounds[-1]), dtype=torch.float64)
    mine = [i for i in rows_of_rank(len(candidates.rows)) if len(candidates.rows[i])]
    groups = [
        Group(retrieval_set.queries[i], Chosen(retrieval_set.documents, candidates.rows[i]), instruction) for i in mine
    ]
    found = score_groups(
        reranker,
        groups,
        tokens_per_batch=tokens_per_batch,
        max_over_ranks=partial(largest, device=reranker.device) if equal_forwards else single_process,
        progress=f"{retrieval_set.name}: candidates" if progress else None,
        stats=stats,
    )
    for i, values in zip(mine, found, strict=True):
        logits[bounds[i] : bounds[i + 1]] = values.double()
    everything = reduce_sum(logits, reranker.device).numpy()
    return np.split(everything, bounds[1:-1])


class Chosen(Sequence[str]):
    """Some of many texts, read when they are asked for.

    Args:
        texts: All of them.
        rows: [n] int64, which.
    """

    def __init__(self, texts: Sequence[str], rows: Integers) -> None:
        self.texts, self.rows = texts, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Chosen(self.texts, self.rows[index])
        return self.texts[int(self.rows[index])]

    def __iter__(self) -> Iterator[str]:
        return iter([self.texts[int(row)] for row in self.rows])
