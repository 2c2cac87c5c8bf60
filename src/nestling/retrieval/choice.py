"""What a dev set says should be served: which embedder, and whether a reranker helps it and with what weight."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.candidates import Candidates, ranks_in_candidates
from nestling.retrieval.fusion import reciprocal_rank_fusion, weighted_fusion
from nestling.retrieval.metrics import Floats, metrics_per_query
from nestling.retrieval.significance import randomisation_p
from nestling.run_files import reading

METRIC = "nDCG@10"
# Weights of the reranker that are tried.
WEIGHTS = [step / 10 for step in range(11)]


@dataclass(frozen=True)
class Choice:
    """What to serve.

    Attributes:
        data: Name of the dev set.
        queries: Number of its queries.
        embedders: nDCG@10 of each embedding model alone, by directory or hub id, the one before training first.
        embedder: The best of them, the first of equal ones; None where BM25 finds the documents.
        depth: Documents of a query that the reranker reads.
        weights: nDCG@10 of the chosen embedder's documents with each weight of the reranker, of `WEIGHTS`; None without
            a reranker.
        reranker: Directory or hub id of the reranker if it helps, else None.
        rerank_weight: The best weight, the smallest of equal ones, for `weighted_fusion`; 0 without a reranker.
        p_value: Of the randomisation test between this weight and 0; None at 0.
    """

    data: str
    queries: int
    embedders: dict[str, float]
    embedder: str | None
    depth: int
    weights: list[float] | None = None
    reranker: str | None = None
    rerank_weight: float = 0.0
    p_value: float | None = None

    def trained(self, kind: str) -> bool:
        """Whether the embedder, if `kind` says so, is another than before training; else whether a reranker is used."""
        return self.embedder != next(iter(self.embedders), None) if kind == "embedder" else self.reranker is not None

    def lines(self) -> Iterator[str]:
        """The choice in sentences."""
        where = f"{METRIC} on {self.queries:,} dev queries of {self.data}"
        if self.embedder is not None:
            measured = ", ".join(f"{model} {value:.4f}" for model, value in self.embedders.items())
            yield f"chosen embedder: {self.embedder} ({where}: {measured})"
        if self.weights is None:
            return
        alone, best = self.weights[0], max(self.weights)
        if self.reranker is None:
            tried = f"{alone:.4f} without, at most {max(self.weights[1:]):.4f} with it"
            yield f"chosen reranker: none, for it does not help at any weight ({where}: {tried})"
        else:
            yield (
                f"chosen reranker: {self.reranker} with weight {self.rerank_weight:g} on the first {self.depth} "
                f"documents ({where}: {alone:.4f} without, {best:.4f} with it, p = {self.p_value:.3g})"
            )

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


def choose_weight(scores: Sequence[Floats], candidates: Candidates, data: RetrievalSet) -> tuple[list[float], Floats]:
    """The mean nDCG@10 with each of `WEIGHTS`, and per query with the best weight less that without the reranker, [Q].

    Args:
        scores: Q arrays of float64 of the reranker, aligned with `candidates.positions`.
        candidates: The documents, with the first stage's scores.
        data: Says which documents are relevant.
    """
    assert candidates.scores is not None
    per_query = []
    for weight in WEIGHTS:
        ranks = ranks_in_candidates(weighted_fusion(candidates.scores, scores, weight), candidates, data)
        per_query.append(metrics_per_query(ranks)[METRIC])
    means = [float(each.mean()) for each in per_query]
    difference: Floats = per_query[int(np.argmax(means))] - per_query[0]
    return means, difference


def choose(
    embedders: dict[str, float],
    *,
    data: RetrievalSet,
    depth: int,
    reranker: str | None = None,
    scores: Sequence[Floats] | None = None,
    candidates: Candidates | None = None,
) -> Choice:
    """Choose by nDCG@10, in favour of less: the model before training, and no reranker, where others are not better.

    Args:
        embedders: nDCG@10 of each embedding model, by directory or hub id, the one before training first; may be empty.
        data: The dev set.
        depth: Documents of a query that the reranker read.
        reranker: Directory or hub id of the reranker.
        scores: The reranker's, aligned with `candidates`.
        candidates: The first documents of the best embedder.
    """
    embedder = best_of(embedders) if embedders else None
    found = Choice(data.name, len(data.queries), embedders, embedder, depth)
    if reranker is None:
        return found
    assert scores is not None
    assert candidates is not None
    means, difference = choose_weight(scores, candidates, data)
    best = int(np.argmax(means))
    helps = {
        "reranker": reranker,
        "rerank_weight": WEIGHTS[best],
        "p_value": float(randomisation_p(difference[:, None])[0]),
    }
    return Choice(**{**asdict(found), "weights": means, **(helps if best else {})})


def best_of(embedders: dict[str, float]) -> str:
    """The model with the highest value; the first of equal ones."""
    return max(embedders, key=lambda model: embedders[model])
