"""Score the candidates of a retrieval set with a reranker, split over any number of processes."""

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
from nestling.retrieval.collectives import indices_of_rank, largest_over_ranks, reduce_sum
from nestling.retrieval.metrics import Floats, Integers


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
    """Logits of each query's candidates: Q arrays of float64, aligned with `candidates.positions`, equal on every rank.

    All ranks of torch.distributed must call it with the same arguments (but for `progress`) and share the queries.

    Args:
        reranker: The model.
        retrieval_set: Queries and documents.
        candidates: Which documents to score for each query.
        instruction: Task of the queries; the model's default by default.
        tokens_per_batch: Positions of a chunk; by default what suits the device.
        equal_forwards: For models whose forward is a collective (ZeRO-3, FSDP2): the ranks run equally many chunks.
        progress: Show a bar.
        stats: Counts what this rank scores.
    """
    lists = candidates.positions
    mine = [i for i in indices_of_rank(len(lists)) if len(lists[i])]
    scored = score_groups(
        reranker,
        [Group(retrieval_set.queries[i], SelectedTexts(retrieval_set.documents, lists[i]), instruction) for i in mine],
        tokens_per_batch=tokens_per_batch,
        max_over_ranks=partial(largest_over_ranks, device=reranker.device) if equal_forwards else single_process,
        progress=f"{retrieval_set.name}: candidates" if progress else None,
        stats=stats,
    )
    bounds = np.cumsum([0, *map(len, lists)])  # [Q + 1]
    logits = torch.zeros(int(bounds[-1]), dtype=torch.float64)
    for i, values in zip(mine, scored, strict=True):
        logits[bounds[i] : bounds[i + 1]] = values.double()
    return np.split(reduce_sum(logits, reranker.device).numpy(), bounds[1:-1])


class SelectedTexts(Sequence[str]):
    """A selection of a sequence of texts, which are read only when they are accessed.

    Args:
        texts: All texts.
        indices: [n] int64, which of them are selected, in this order.
    """

    def __init__(self, texts: Sequence[str], indices: Integers) -> None:
        self.texts, self.indices = texts, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return SelectedTexts(self.texts, self.indices[index])
        return self.texts[int(self.indices[index])]

    def __iter__(self) -> Iterator[str]:
        return iter([self.texts[int(index)] for index in self.indices])
