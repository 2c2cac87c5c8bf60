"""Settings of scripts/evaluate.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nestling.config.attention import Attention, require_attention
from nestling.config.checks import require, require_at_least, require_dims
from nestling.config.prompts import require_prompts


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of scripts/evaluate.py.

    Args:
        data: Folders with corpus.jsonl, queries.jsonl and qrels/, or JSON files with all of these; with commas between.
        mteb: Tasks of mteb, or folders, that mteb measures, with commas between; needs the extra mteb.
        model: Directory or hub id of the embedding model.
        first_stage: In place of a model: bm25, a TREC run file, or for a reranker a .jsonl file of candidate lists.
        trust_remote_code: Run the code that comes with the models.
        reranker: Directory or hub id of a reranker, which orders each query's first documents again.
        depth: Documents of a query that the reranker reads; a .jsonl file's lists are read whole.
        rerank_weight: Of its scores in the fused order, 0 to 1, or scripts/choose.py's file; by default of ranks.
        split: Which qrels file to use.
        dims: Dimensions to cut embeddings to; by default the full one and the model's matryoshka_dimensions.
        embedding_precision: Types in which a vector store keeps the embeddings; binary keeps their signs.
        query_max_length: Longest query in tokens, with prompt and end token; by default the model's own limit.
        document_max_length: Longest document in tokens, likewise; a reranker always has its own limits.
        instruction: Task of the queries; by default the model's own query prompt.
        query_prompt: Text before queries, "" for none, {instruction} for theirs; by default as the model's files say.
        document_prompt: Text before documents, "" for none; by default as the model's files say.
        precision: Type of the computation; auto is bf16 on a GPU and fp32 on a CPU. bf16 changes the third digit.
        attn_implementation: As in transformers; auto: the fastest that a model has; varlen: packed where it can be.
        output: JSON file for the results; must not exist.
        details: Also write each query's results, to X.details.jsonl beside X.json, for scripts/report.py.
    """

    data: list[str] = field(default_factory=list)
    mteb: list[str] = field(default_factory=list)
    model: str | None = None
    first_stage: str | None = None
    reranker: str | None = None
    depth: int = 100
    rerank_weight: float | str | None = None
    split: str = "test"
    dims: list[int] = field(default_factory=list)
    embedding_precision: list[Literal["float32", "int8", "binary"]] = field(default_factory=lambda: ["float32"])
    query_max_length: int | None = None
    document_max_length: int | None = None
    instruction: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    attn_implementation: Attention = "auto"
    output: str | None = None
    details: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require(
            bool(self.data or self.mteb),
            "give --data, folders in the BEIR layout, or --mteb, such folders or names of mteb's tasks",
        )
        require(
            (self.model is None) != (self.first_stage is None), "give either --model or --first_stage bm25|RUN_FILE"
        )
        require(len(set(self.data)) == len(self.data), "data: a folder is given twice")
        require(len(set(self.mteb)) == len(self.mteb), "mteb: a task is given twice")
        require(
            not self.mteb or self.model is not None or self.reranker is not None,
            "mteb measures models: give a --model, or a --first_stage and a --reranker",
        )
        require_dims(self.dims)
        kept = self.embedding_precision
        require(bool(kept), "embedding_precision is empty; expected float32, int8 or binary")
        require(len(set(kept)) == len(kept), "embedding_precision: one is given twice")
        require(bool(self.data) or kept == ["float32"], "mteb measures float32; embedding_precision is of --data")
        require_at_least(1, self, "query_max_length", "document_max_length", "depth")
        require_attention(self.attn_implementation, self.precision)
        lists = (self.first_stage or "").endswith(".jsonl")
        require(
            not self.details or bool(self.output and self.data),
            "details come beside the results of --data folders: give both --output and --data",
        )
        require(self.reranker is not None or not lists, "candidate lists have no order to measure; give a --reranker")
        require(
            self.reranker is None or (len(self.dims) <= 1 and kept == ["float32"]),
            "a reranker reads one first stage: give one of dims at most, and no embedding_precision",
        )
        weight = self.rerank_weight
        require(weight is None or self.reranker is not None, "rerank_weight is of a --reranker")
        require(
            weight is None or not lists, "rerank_weight needs a first stage with scores, and candidate lists have none"
        )
        require(isinstance(weight, str | None) or 0 <= weight <= 1, f"rerank_weight is {weight}, expected 0 to 1")
        of_models = self.dims or kept != ["float32"]
        require(self.model is not None or not of_models, "dims and embedding_precision need a --model")
        require(
            self.instruction is None or self.model is not None or self.reranker is not None,
            "instruction needs a --model or a --reranker",
        )
        require(
            self.model is not None or (self.query_prompt is None and self.document_prompt is None),
            "query_prompt and document_prompt need a --model",
        )
        require_prompts(self.query_prompt, self.document_prompt, [self.instruction])


def details_path(output: Path) -> Path:
    """Where details come, beside a JSON file of results."""
    return output.with_suffix(".details.jsonl")
