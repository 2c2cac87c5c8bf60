"""Settings of scripts/evaluate.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nestling.config.checks import require, require_dims


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of scripts/evaluate.py.

    Args:
        data: Folder with corpus.jsonl, queries.jsonl and qrels/; several with commas between.
        mteb: What mteb is to measure: names of its tasks, whose data is on the hub, and folders as above; with commas
            between. Needs the extra mteb.
        model: Directory or hub id of the embedding model.
        first_stage: In place of a model: bm25, a TREC run file (query Q0 document rank score tag), or, with a reranker,
            a .jsonl file of candidate lists (query-id, corpus-ids).
        reranker: Directory or hub id of a reranker, which orders the first documents of each query anew.
        depth: How many of a model's, BM25's or a run's it reads; a .jsonl file's lists are read whole.
        split: Which qrels file to use.
        dims: Dimensions to cut embeddings to; the full one and the model's matryoshka_dimensions by default.
        precision: How a vector store keeps the vectors. int8 keeps documents in 256 steps a dimension, binary keeps the
            signs of documents and queries.
        query_max_length: Of a model: tokens of a query, its prompt and end token included. A reranker has its own.
        document_max_length: Tokens of a document, likewise.
        instruction: Task of the queries; the model's own query prompt by default.
        compute: Precision of the model itself; bf16 is quicker where the hardware has it and changes the third digit.
        output: JSON file for the results; must not exist.
        details: Write beside it what each query got, for scripts/report.py: X.details.jsonl beside X.json.
    """

    data: list[str] = field(default_factory=list)
    mteb: list[str] = field(default_factory=list)
    model: str | None = None
    first_stage: str | None = None
    reranker: str | None = None
    depth: int = 100
    split: str = "test"
    dims: list[int] = field(default_factory=list)
    precision: list[Literal["float32", "int8", "binary"]] = field(default_factory=lambda: ["float32"])
    query_max_length: int = 512
    document_max_length: int = 512
    instruction: str | None = None
    compute: Literal["fp32", "bf16"] = "fp32"
    output: str | None = None
    details: bool = False

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
        require(bool(self.precision), "precision is empty; expected float32, int8 or binary")
        require(len(set(self.precision)) == len(self.precision), "precision: one is given twice")
        require(bool(self.data) or self.precision == ["float32"], "mteb measures float32; precision is of --data")
        for name in ("query_max_length", "document_max_length"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        require(self.depth >= 1, f"depth is {self.depth}, expected at least 1")
        lists = (self.first_stage or "").endswith(".jsonl")
        require(
            not self.details or bool(self.output and self.data),
            "details come beside the results of --data folders: give both --output and --data",
        )
        require(self.reranker is not None or not lists, "candidate lists have no order to measure; give a --reranker")
        require(
            self.reranker is None or (len(self.dims) <= 1 and self.precision == ["float32"]),
            "a reranker reads one first stage: give one of dims at most, and no precision",
        )
        of_models = self.dims or self.precision != ["float32"]
        require(self.model is not None or not of_models, "dims and precision need a --model")
        require(
            self.instruction is None or self.model is not None or self.reranker is not None,
            "instruction needs a --model or a --reranker",
        )


def details_path(output: Path) -> Path:
    """Where details come, beside a JSON file of results."""
    return output.with_suffix(".details.jsonl")
