"""The development sets of a run, read and shown before any weights load."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from nestling.batches.sampling import Source
from nestling.config import CandidateData, DevData, EmbedConfig, RerankConfig
from nestling.records.beir import load_retrieval_set
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.candidates import Candidates, evaluate_candidates, open_candidates
from nestling.training.data import train_reads
from nestling.training.leaks import leak_note

Recipe = TypeVar("Recipe", EmbedConfig, RerankConfig)


@dataclass(frozen=True)
class RerankDevSet:
    """A development set with the candidates that a reranker orders.

    Args:
        retrieval_set: Queries, documents and judgements.
        candidates: Of each query, from a first stage.
        instruction: Task of the queries; None for the model's own.
    """

    retrieval_set: RetrievalSet
    candidates: Candidates
    instruction: str | None

    @cached_property
    def first_stage(self) -> dict[str, float]:
        """Metrics of the candidates in their own order."""
        return evaluate_candidates(self.candidates.first_stage_scores, self.candidates, self.retrieval_set)

    @property
    def depth(self) -> int:
        """Candidates of the query that has most."""
        return max(len(rows) for rows in self.candidates.positions)


def with_held_out(config: Recipe, sources: Sequence[Source]) -> Recipe:
    """The settings with the rows that `dev_share` holds out among the dev sets; their task is that of their dataset."""
    kind = DevData if isinstance(config, EmbedConfig) else CandidateData
    held_out: list[Any] = [
        kind(str(source.held_out), instruction=read.row_instruction or source.table.instruction)
        for source, read in zip(sources, train_reads(sources), strict=True)
        if source.held_out is not None
    ]
    return replace(config, dev=[*config.dev, *held_out])


def load_dev_set(dev: DevData, sources: Sequence[Source], *, show: bool) -> RetrievalSet:
    """Read a development set; `show` prints what was read, and how many of its queries the sources train on."""
    retrieval_set = load_retrieval_set(dev.path, dev.split)
    if show:
        print(retrieval_set.summary, flush=True)
        note = leak_note(retrieval_set, sources)
        if note is not None:
            print(f"  warning: {note}", flush=True)
    return replace(retrieval_set, name=dev.name) if dev.name else retrieval_set


def load_rerank_dev_set(dev: CandidateData, sources: Sequence[Source], *, show: bool) -> RerankDevSet:
    """Read a development set and its candidates; `show` prints as above, and the metrics of their first order."""
    retrieval_set = load_dev_set(dev, sources, show=show)
    candidates = open_candidates(dev.candidates, retrieval_set, dev.depth)
    dev_set = RerankDevSet(retrieval_set, candidates, dev.instruction)
    if show:
        print(f"  {dev.candidates}: {candidates}", flush=True)
        order = ", ".join(f"{name} {value:.4f}" for name, value in dev_set.first_stage.items())
        print(f"  their order: {order}", flush=True)
    return dev_set
