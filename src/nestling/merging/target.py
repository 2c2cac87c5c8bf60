"""What is merged, as a whole: an embedder or a reranker that takes merged weights, is measured and is exported.

A model is loaded once. Its weights are then exchanged in place for each merge that is tried, and nothing is written
until the best one is exported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol

import torch
from torch import nn

from nestling.checkpoint.state import STATE
from nestling.config import CandidateData, EmbedConfig, RerankConfig, read_run, require
from nestling.export.card import Card
from nestling.export.embedder import export_embedder
from nestling.export.gate import GateReport
from nestling.export.reranker import export_reranker
from nestling.merging.lora import adapter_folder
from nestling.models.embedder import Embedder, read_json
from nestling.models.merged_weights import without_adapters
from nestling.models.reranker import Reranker, read_settings
from nestling.records.beir import load_retrieval_set
from nestling.records.load import default_name
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.candidates import Candidates, evaluate_candidates, open_candidates
from nestling.retrieval.evaluation import evaluate_embedder
from nestling.retrieval.reranking import rerank

Metrics = Mapping[int, Mapping[str, float]]
Dtype = Literal["float32", "bfloat16", "float16"]
# Where a directory does not say for how many tokens it was trained.
LENGTH = 512


@dataclass(frozen=True)
class EvaluationSet:
    """A retrieval set, and for rerankers the candidates of its queries.

    Attributes:
        retrieval_set: Under the name that tables have.
        instruction: Task of its queries; the model's own by default.
        candidates: None for embedders, which search all documents.
    """

    retrieval_set: RetrievalSet
    instruction: str | None
    candidates: Candidates | None


class MergeTarget(Protocol):
    """A model whose weights can be exchanged."""

    @property
    def backbone(self) -> nn.Module:
        """The transformers model, in float32."""

    @property
    def axis(self) -> str:
        """What its metrics are at: "dim" or "depth"."""

    def open(self, data: CandidateData, retrieval_set: RetrievalSet) -> EvaluationSet:
        """What a retrieval set is measured with, as its settings say."""

    def measure(self, data: EvaluationSet) -> Metrics:
        """Metrics of the weights as they are now, by value of the axis."""

    def export(self, output: Path, dtype: Dtype | None, card: Card) -> GateReport:
        """Write a directory to serve, after its gates."""


@dataclass(frozen=True)
class EmbedderTarget:
    """An embedder.

    Attributes:
        embedder: The model.
        query_max_length: Tokens of a query.
        document_max_length: Tokens of a document.
        dims: Matryoshka dimensions that were trained.
        instructions: Further query prompts, by name.
    """

    embedder: Embedder
    query_max_length: int
    document_max_length: int
    dims: Sequence[int]
    instructions: Mapping[str, str]
    axis: str = "dim"

    @property
    def backbone(self) -> nn.Module:
        return without_adapters(self.embedder.backbone)

    def open(self, data: CandidateData, retrieval_set: RetrievalSet) -> EvaluationSet:
        require(
            (data.candidates, data.depth) == ("bm25", 100),
            f"{data.path}: candidates are a reranker's, and an embedder searches all documents",
        )
        return EvaluationSet(retrieval_set, data.instruction, None)

    def measure(self, data: EvaluationSet) -> Metrics:
        return evaluate_embedder(
            self.embedder,
            data.retrieval_set,
            sorted({*self.dims, self.embedder.dim}, reverse=True),
            query_max_length=self.query_max_length,
            document_max_length=self.document_max_length,
            instruction=data.instruction,
            progress=True,
        )

    def export(self, output: Path, dtype: Dtype | None, card: Card) -> GateReport:
        return export_embedder(
            self.embedder,
            output,
            query_max_length=self.query_max_length,
            document_max_length=self.document_max_length,
            dims=self.dims,
            dtype=getattr(torch, dtype) if dtype else None,
            instructions=self.instructions,
            card=card,
        )


@dataclass(frozen=True)
class RerankerTarget:
    """A reranker, a causal language model."""

    reranker: Reranker
    axis: str = "depth"

    @property
    def backbone(self) -> nn.Module:
        return without_adapters(self.reranker.backbone)

    def open(self, data: CandidateData, retrieval_set: RetrievalSet) -> EvaluationSet:
        candidates = open_candidates(data.candidates, retrieval_set, data.depth)
        return EvaluationSet(retrieval_set, data.instruction, candidates)

    def measure(self, data: EvaluationSet) -> Metrics:
        assert data.candidates is not None
        scores = rerank(self.reranker, data.retrieval_set, data.candidates, instruction=data.instruction, progress=True)
        depth = max(len(rows) for rows in data.candidates.positions)
        return {depth: evaluate_candidates(scores, data.candidates, data.retrieval_set)}

    def export(self, output: Path, dtype: Dtype | None, card: Card) -> GateReport:
        return export_reranker(
            self.reranker, output, dtype=getattr(torch, dtype) if dtype else None, card=card, trained=False
        )


def named_set(data: CandidateData) -> RetrievalSet:
    """A retrieval set under the name that its settings give it, if they do."""
    retrieval_set = load_retrieval_set(data.path, data.split)
    return replace(retrieval_set, name=data.name) if data.name else retrieval_set


def quality(results: Mapping[str, Metrics]) -> float:
    """What decides: nDCG@10 at the largest value of the axis, averaged over the sets."""
    return fmean(by_value[max(by_value)]["nDCG@10"] for by_value in results.values())


def open_target(model: str, base: str | None, precision: torch.dtype) -> MergeTarget:
    """What the models are that are merged, by the files of the first of them.

    Args:
        model: A directory or hub id, an adapter's folder, or a step-N folder of a run.
        base: The model under an adapter or checkpoint, where it has moved to.
        precision: Of evaluations.

    Raises:
        ValueError: Neither an embedder nor a reranker that is a causal language model.
    """
    if is_checkpoint(model):
        return of_run(Path(model).resolve().parents[1], base, precision)
    return of_directory(files_of(model, base), precision)


def is_checkpoint(model: str) -> bool:
    """Whether it is a step-N folder of a run."""
    return (Path(model) / STATE).is_file()


def files_of(model: str, base: str | None) -> str:
    """The directory or hub id whose files say how a model is used: that under an adapter or checkpoint, or itself."""
    if is_checkpoint(model):
        return base or read_run(Path(model).resolve().parents[1]).model
    if adapter_folder(model):
        return base or str((read_json(model, "adapter_config.json") or {})["base_model_name_or_path"])
    return model


def of_run(run: Path, base: str | None, precision: torch.dtype) -> MergeTarget:
    """A run's model as its recipe had it in memory, but whole."""
    config = read_run(run)
    source = base or config.model
    if isinstance(config, RerankConfig):
        settings = replace(read_settings(source), **config.reading)
        return RerankerTarget(Reranker.from_pretrained(source, settings=settings, precision=precision))
    assert isinstance(config, EmbedConfig)
    embedder = Embedder.from_pretrained(
        source, pooling=config.pooling, instruction=config.query_instruction, precision=precision
    )
    instructions = {each.name or default_name(Path(each.path)): each.instruction for each in config.train}
    return EmbedderTarget(
        embedder,
        config.query_max_length,
        config.document_max_length,
        config.matryoshka_dims,
        {name: text for name, text in instructions.items() if text},
    )


def of_directory(model: str, precision: torch.dtype) -> MergeTarget:
    """A directory or hub id, told apart by the modules of sentence-transformers and our reranker.json."""
    modules = [each["type"].split(".")[-1] for each in read_json(model, "modules.json") or []]
    if "LogitScore" in modules or read_json(model, "reranker.json") is not None:
        return RerankerTarget(Reranker.from_pretrained(model, precision=precision))
    require(
        "Pooling" in modules,
        f"{model}: neither an embedder (modules.json with Pooling) nor a reranker (reranker.json, or LogitScore)",
    )
    length = int((read_json(model, "sentence_bert_config.json") or {}).get("max_seq_length") or LENGTH)
    config: dict[str, Any] = read_json(model, "config.json") or {}
    dims = config.get("matryoshka_dimensions") or []
    return EmbedderTarget(Embedder.from_pretrained(model, precision=precision), length, length, dims, {})
