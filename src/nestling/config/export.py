"""Settings of scripts/export.py."""

from dataclasses import dataclass, field
from typing import Literal

from nestling.config.checks import require, require_dims


@dataclass(frozen=True)
class ExportConfig:
    """Settings of scripts/export.py.

    Args:
        output: Folder to write; must not exist.
        checkpoint: A step-N folder of a run, whose config.yaml says all else.
        adapter: A folder that peft wrote for an embedder.
        base: Directory or hub id of the model under the adapter; with a checkpoint, where it has moved to.
        model: Directory or hub id of a reranker that is a causal language model, to be written in another shape.
        shape: Of a reranker: the causal language model, which is a CrossEncoder as well, or a classifier of one label;
            a checkpoint's is causal by default.
        dtype: Of the written weights; the base's own by default.
        dims: Matryoshka dimensions that the adapter was trained at.
        instruction: Task of the queries that the adapter was trained with; the base's own query prompt by default.
        query_max_length: Tokens of a query that the adapter was trained with.
        document_max_length: Tokens of a document, likewise.
    """

    output: str
    checkpoint: str | None = None
    adapter: str | None = None
    base: str | None = None
    model: str | None = None
    shape: Literal["causal", "classifier"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    dims: list[int] = field(default_factory=list)
    instruction: str | None = None
    query_max_length: int = 512
    document_max_length: int = 512

    def __post_init__(self) -> None:
        require(
            [self.checkpoint, self.adapter, self.model].count(None) == 2,
            "give either --checkpoint, or --adapter with --base, or --model with --shape",
        )
        require(
            self.adapter is None or self.base is not None, "--adapter needs --base, the model that it was trained on"
        )
        require(
            self.model is None or (self.shape is not None and self.base is None),
            "--model needs --shape, causal or classifier, and takes no --base",
        )
        require(self.adapter is None or self.shape is None, "shape is a reranker's, and adapters are embedders'")
        of_adapters = self.dims or self.instruction or (self.query_max_length, self.document_max_length) != (512, 512)
        require(
            self.adapter is not None or not of_adapters,
            "dims, instruction and the lengths go with --adapter; those of a checkpoint are in the run's config.yaml, "
            "and a model's in its own files",
        )
        require_dims(self.dims)
        for name in ("query_max_length", "document_max_length"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
