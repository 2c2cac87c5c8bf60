"""The embedder or reranker that merged weights are loaded into, to be evaluated and exported.

It is loaded once. For each merge that is tried its weights are replaced in memory, and nothing is written until the
best merge is exported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal, Protocol

import torch
from torch import nn

from nestling.config import CandidateData, EmbedConfig, RerankConfig, read_run, require
from nestling.export.card import Card
from nestling.export.embedder import export_embedder
from nestling.export.gate import GateReport
from nestling.export.reranker import export_reranker
from nestling.gpu import best_device
from nestling.merging.heads import WholeEmbedder
from nestling.merging.lora import base_of_adapter, is_adapter_folder
from nestling.merging.models import is_checkpoint
from nestling.models.adapter_merging import without_adapters
from nestling.models.embedder import Embedder
from nestling.models.json_files import has_module, read_json, read_object, value_of
from nestling.models.reranker import Reranker
from nestling.records.beir import load_retrieval_set
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.candidates import Candidates, evaluate_candidates, open_candidates
from nestling.retrieval.evaluation import evaluate_embedder
from nestling.retrieval.reranking import rerank
from nestling.training.data import query_prompts, recorded_reads, shared_instruction
from nestling.training.models import reranker_settings

# Metrics by name, such as nDCG@10, for each dimension of an embedder or the depth of a reranker's candidates.
Metrics = Mapping[int, Mapping[str, float]]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class EvaluationSet:
    """A retrieval set to evaluate on, and for rerankers the candidates of its queries.

    Attributes:
        retrieval_set: Queries, documents and relevance; its name is that in tables and results.
        instruction: Instruction before the queries; None for the model's own.
        candidates: Candidates to rerank; None for embedders, which search all documents.
    """

    retrieval_set: RetrievalSet
    instruction: str | None
    candidates: Candidates | None


class MergeTarget(Protocol):
    """A model that merged weights are loaded into."""

    @property
    def backbone(self) -> nn.Module:
        """The transformers model in float32, with the modules behind it: where `merge_into` copies weights."""

    @property
    def axis(self) -> str:
        """What the integers in its metrics are: "dim" of an embedding or "depth" of the candidates."""

    def prepare(self, data: CandidateData, retrieval_set: RetrievalSet) -> EvaluationSet:
        """A retrieval set with what its settings say, ready to evaluate on."""

    def evaluate(self, data: EvaluationSet) -> Metrics:
        """Metrics of the model with its present weights."""

    def export(self, output: Path, dtype: Dtype | None, card: Card, *, allow_failed_gate: bool) -> GateReport:
        """Write a model directory to serve; it appears only if it passes its parity gate, or may fail."""


@dataclass(frozen=True)
class EmbedderTarget:
    """An embedder that merged weights are loaded into.

    Attributes:
        embedder: The model.
        max_seq_length: Tokens at which texts are cut; None for the model's own limit.
        trained_lengths: Tokens at which training cut queries and documents; None if not known.
        dims: Matryoshka dimensions that were trained, evaluated beside the full one.
        instructions: Instructions of further query prompts to export, by name.
        trained: Whether the weights must differ from those of the directory that it was loaded from. A merge may be one
            of its models, which a search found to be the best.
    """

    embedder: Embedder
    max_seq_length: int | None
    trained_lengths: tuple[int, int] | None
    dims: Sequence[int]
    instructions: Mapping[str, str]
    trained: bool
    axis: str = "dim"

    @property
    def backbone(self) -> nn.Module:
        return WholeEmbedder(without_adapters(self.embedder.backbone), self.embedder.head)

    def prepare(self, data: CandidateData, retrieval_set: RetrievalSet) -> EvaluationSet:
        require(
            (data.candidates, data.depth) == ("bm25", 100),
            f"{data.path}: candidates are a reranker's, and an embedder searches all documents",
        )
        return EvaluationSet(retrieval_set, data.instruction, None)

    def evaluate(self, data: EvaluationSet) -> Metrics:
        return evaluate_embedder(
            self.embedder,
            data.retrieval_set,
            sorted({*self.dims, self.embedder.dim}, reverse=True),
            query_max_length=self.max_seq_length,
            document_max_length=self.max_seq_length,
            instruction=data.instruction,
            progress=True,
        )

    def export(self, output: Path, dtype: Dtype | None, card: Card, *, allow_failed_gate: bool) -> GateReport:
        return export_embedder(
            self.embedder,
            output,
            max_seq_length=self.max_seq_length,
            trained_lengths=self.trained_lengths,
            dims=self.dims,
            dtype=getattr(torch, dtype) if dtype else None,
            instructions=self.instructions,
            card=card,
            trained=self.trained,
            allow_failed_gate=allow_failed_gate,
        )


@dataclass(frozen=True)
class RerankerTarget:
    """A reranker, which is a causal language model, that merged weights are loaded into."""

    reranker: Reranker
    axis: str = "depth"

    @property
    def backbone(self) -> nn.Module:
        return without_adapters(self.reranker.backbone)

    def prepare(self, data: CandidateData, retrieval_set: RetrievalSet) -> EvaluationSet:
        candidates = open_candidates(data.candidates, retrieval_set, data.depth)
        return EvaluationSet(retrieval_set, data.instruction, candidates)

    def evaluate(self, data: EvaluationSet) -> Metrics:
        assert data.candidates is not None
        scores = rerank(self.reranker, data.retrieval_set, data.candidates, instruction=data.instruction, progress=True)
        depth = max(len(rows) for rows in data.candidates.positions)
        return {depth: evaluate_candidates(scores, data.candidates, data.retrieval_set)}

    def export(self, output: Path, dtype: Dtype | None, card: Card, *, allow_failed_gate: bool) -> GateReport:
        return export_reranker(
            self.reranker,
            output,
            dtype=getattr(torch, dtype) if dtype else None,
            card=card,
            trained=False,
            allow_failed_gate=allow_failed_gate,
        )


def load_named_set(data: CandidateData) -> RetrievalSet:
    """Load a retrieval set, under the name in its settings if they have one."""
    retrieval_set = load_retrieval_set(data.path, data.split)
    return replace(retrieval_set, name=data.name) if data.name else retrieval_set


def mean_ndcg(results: Mapping[str, Metrics]) -> float:
    """nDCG@10 at the largest dimension or depth, averaged over the sets: the score by which merges are compared."""
    return fmean(by_value[max(by_value)]["nDCG@10"] for by_value in results.values())


def open_target(model: str, base: str | None, precision: torch.dtype) -> MergeTarget:
    """Load the embedder or reranker that merged weights are loaded into, onto the GPU if there is one.

    It is read and used as the first model to merge is.

    Args:
        model: The first model: a directory or hub id, an adapter's folder, or a step-N folder of a run.
        base: The model under an adapter or checkpoint, if it is no longer where these say.
        precision: Dtype of the computation in evaluations.

    Raises:
        ValueError: The model is neither an embedder nor a reranker that is a causal language model.
    """
    if is_checkpoint(model):
        target = target_of_run(Path(model).resolve().parents[1], base, precision)
    else:
        target = target_of_directory(underlying_model(model, base), precision)
    target.backbone.to(best_device())
    return target


def underlying_model(model: str, base: str | None) -> str:
    """The directory or hub id with config and tokenizer: the base of an adapter or checkpoint, or the model itself."""
    if is_checkpoint(model):
        return base or read_run(Path(model).resolve().parents[1]).model
    if is_adapter_folder(model):
        return base or base_of_adapter(model)
    return model


def compared_files(models: Sequence[str], base: str | None) -> list[str]:
    """The directories and hub ids, each once, whose files say whether models are used alike.

    Of a checkpoint beside other models it is the final/ of its run, if there is one: its base may say nothing of
    pooling and prompts, which were the run's.
    """
    files = {model: underlying_model(model, base) for model in models}
    if not all(map(is_checkpoint, models)):
        finals = {model: Path(model).resolve().parents[1] / "final" for model in models if is_checkpoint(model)}
        files |= {model: str(final) for model, final in finals.items() if final.is_dir()}
    return list(dict.fromkeys(files.values()))


def target_of_run(run: Path, base: str | None, precision: torch.dtype) -> MergeTarget:
    """The model of a run with the run's settings, but all of its weights, without an adapter."""
    config = read_run(run)
    source, reads = base or config.model, recorded_reads(run)
    instruction = config.query_instruction or shared_instruction(reads)
    if isinstance(config, RerankConfig):
        settings = reranker_settings(config, source, instruction)
        loaded = Reranker.from_pretrained(source, settings=settings, new_head=config.seed, precision=precision)
        return RerankerTarget(loaded)
    assert isinstance(config, EmbedConfig)
    embedder = Embedder.from_pretrained(
        source,
        pooling=config.pooling,
        instruction=instruction,
        query_prompt=config.query_prompt,
        document_prompt=config.document_prompt,
        precision=precision,
    )
    return EmbedderTarget(
        embedder,
        config.max_seq_length,
        (config.query_max_length, config.document_max_length),
        config.matryoshka_dims or [],
        query_prompts(config, reads),
        trained=True,
    )


def target_of_directory(model: str, precision: torch.dtype) -> MergeTarget:
    """The model of a directory or hub id, a reranker if it has reranker.json or a LogitScore module."""
    if has_module(model, "LogitScore") or read_json(model, "reranker.json") is not None:
        return RerankerTarget(Reranker.from_pretrained(model, precision=precision))
    require(
        has_module(model, "Pooling"),
        f"{model}: neither an embedder (modules.json with Pooling) nor a reranker (reranker.json, or LogitScore)",
    )
    dims = value_of(f"{model}/config.json", read_object(model, "config.json"), "matryoshka_dimensions", list) or []
    return EmbedderTarget(Embedder.from_pretrained(model, precision=precision), None, None, dims, {}, trained=False)
