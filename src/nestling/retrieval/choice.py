"""What a dev set says should be served: which embedder, and whether a reranker helps it and with what weight."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.candidates import Candidates, ranks_in_candidates
from nestling.retrieval.fusion import reciprocal_rank_fusion, weighted_fusion
from nestling.retrieval.metrics import Floats, metrics_per_query
from nestling.retrieval.significance import gain_p, sums_of_groups
from nestling.run_files import reading

METRIC = "nDCG@10"
# Weights of the reranker that are tried.
WEIGHTS = [step / 10 for step in range(11)]
# The highest p value of a gain at which a reranker is used: it costs time at every query, and a gain that other queries
# would not show is none.
MAX_P = 0.05


@dataclass(frozen=True)
class Choice:
    """What to serve.

    Attributes:
        data: Name of the dev set.
        queries: Number of its queries.
        embedders: nDCG@10 of each embedding model alone, by directory or hub id, the one before training first.
        embedder: The best of them, the first of equal ones; None where BM25 finds the documents.
        depth: Documents of a query that the reranker reads.
        groups: Number of groups of queries that are alike, which the p values go by; None where each is on its own.
        weights: nDCG@10 of the chosen embedder's documents with each weight of the reranker, of `WEIGHTS`; None without
            a reranker.
        p_values: Of the gain with each weight, corrected for the choice among them (`gain_p`) and among `checkpoints`.
        checkpoints: Of the reranker's run, those that this dev set chose among; 1 where it chose none.
        reranker: Directory or hub id of the reranker if it surely helps, else None.
        rerank_weight: The best of the weights whose p value is at most `MAX_P`, the smallest of equal ones, for
            `weighted_fusion`; 0 without a reranker.
    """

    data: str
    queries: int
    embedders: dict[str, float]
    embedder: str | None
    depth: int
    groups: int | None = None
    weights: list[float] | None = None
    p_values: list[float] | None = None
    checkpoints: int = 1
    reranker: str | None = None
    rerank_weight: float = 0.0

    def trained(self, kind: str) -> bool:
        """Whether the embedder, if `kind` says so, is another than before training; else whether a reranker is used."""
        return self.embedder != next(iter(self.embedders), None) if kind == "embedder" else self.reranker is not None

    def lines(self) -> Iterator[str]:
        """The choice in sentences."""
        groups = f" in {self.groups:,} {'group' if self.groups == 1 else 'groups'}" if self.groups is not None else ""
        where = f"{METRIC} on {self.queries:,} dev queries{groups} of {self.data}"
        if self.embedder is not None:
            measured = ", ".join(f"{model} {value:.4f}" for model, value in self.embedders.items())
            yield f"chosen embedder: {self.embedder} ({where}: {measured})"
        if self.weights is not None:
            yield f"chosen reranker: {self.of_reranker(self.weights)} ({where}: {self.tried()})"

    def of_reranker(self, weights: Sequence[float]) -> str:
        """The reranker that was chosen, or why there is none."""
        if self.reranker is not None:
            return f"{self.reranker} with weight {self.rerank_weight:g} on the first {self.depth} documents"
        if max(weights) <= weights[0]:
            return "none, for it does not help at any weight"
        if self.groups is not None and 0.5**self.groups > MAX_P:
            return f"none, for no gain is sure on so few groups of queries, {self.groups}"
        return "none, for its gain is not sure at any weight"

    def tried(self) -> str:
        """What was measured without the reranker, and with it at the chosen weight, else the best one."""
        assert self.weights is not None
        assert self.p_values is not None
        alone, *others = self.weights
        at = WEIGHTS.index(self.rerank_weight) if self.reranker is not None else 1 + int(np.argmax(others))
        best = f"{self.weights[at]:.4f} with {'it' if self.reranker is not None else f'weight {WEIGHTS[at]:g}'}"
        chosen = f", of {self.checkpoints} checkpoints measured on it" if self.checkpoints > 1 else ""
        return f"{alone:.4f} without, {best}, p = {self.p_values[at]:.3g}{chosen}"

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Choice":
        """Read what scripts/choose.py wrote. Raises ValueError for another file."""
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected what scripts/choose.py --output wrote")
        with reading(path, "write it again with scripts/choose.py"):
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(**content)


# Both rankings of a query's candidates as one: (first scores, second scores) -> scores.
Fusion = Callable[[Sequence[Floats], Sequence[Floats]], list[Floats]]


def fusion_of(weight: str | float | None) -> Fusion:
    """How the reranker's scores are fused with the first stage's.

    Args:
        weight: The reranker's, or the file of a `Choice` that holds it; None fuses ranks.
    """
    if weight is None:
        return reciprocal_rank_fusion
    number = Choice.read(Path(weight)).rerank_weight if isinstance(weight, str) else float(weight)
    return partial(weighted_fusion, weight=number)


def measure_weights(scores: Sequence[Floats], candidates: Candidates, data: RetrievalSet) -> Floats:
    """nDCG@10 of each query with each of `WEIGHTS`: [Q, W] float64.

    Args:
        scores: Q arrays of float64 of the reranker, aligned with `candidates.positions`.
        candidates: The documents, with the first stage's scores.
        data: Says which documents are relevant.
    """
    assert candidates.scores is not None
    fused = (weighted_fusion(candidates.scores, scores, weight) for weight in WEIGHTS)
    ranks = (ranks_in_candidates(each, candidates, data) for each in fused)
    return np.stack([metrics_per_query(each)[METRIC] for each in ranks], axis=1)


def choose(
    embedders: dict[str, float],
    *,
    data: RetrievalSet,
    depth: int,
    reranker: str | None = None,
    scores: Sequence[Floats] | None = None,
    candidates: Candidates | None = None,
    checkpoints: int = 1,
) -> Choice:
    """Choose by nDCG@10, in favour of less.

    The model before training is chosen where others are not better, and no reranker where no weight's gain is sure.

    Args:
        embedders: nDCG@10 of each embedding model, by directory or hub id, the one before training first; may be empty.
        data: The dev set.
        depth: Documents of a query that the reranker read.
        reranker: Directory or hub id of the reranker.
        scores: The reranker's, aligned with `candidates`.
        candidates: The first documents of the best embedder.
        checkpoints: Among how many of the reranker's this dev set has chosen before; p values are that many times as
            large, for the best of several gains looks larger than it is.
    """
    embedder = best_of(embedders) if embedders else None
    count = len(set(data.groups)) if data.groups is not None else None
    found = Choice(data.name, len(data.queries), embedders, embedder, depth, count)
    if reranker is None:
        return found
    assert scores is not None
    assert candidates is not None
    per_query = measure_weights(scores, candidates, data)
    means, p_values = per_query.mean(axis=0), gain_p(sums_of_groups(per_query - per_query[:, :1], data.groups))
    p_values = np.minimum(1.0, checkpoints * p_values)
    found = replace(found, weights=means.tolist(), p_values=p_values.tolist(), checkpoints=checkpoints)
    best = int(np.argmax(np.where(p_values <= MAX_P, means, means[0])))
    return replace(found, reranker=reranker, rerank_weight=WEIGHTS[best]) if means[best] > means[0] else found


def best_of(embedders: dict[str, float]) -> str:
    """The model with the highest value; the first of equal ones."""
    return max(embedders, key=lambda model: embedders[model])
