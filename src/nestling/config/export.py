"""Settings of scripts/export.py."""

from dataclasses import dataclass, field
from typing import Literal

from nestling.config.checks import require, require_at_least, require_dims
from nestling.config.prompts import require_prompts


@dataclass(frozen=True)
class ExportConfig:
    """Settings of scripts/export.py.

    Args:
        output: Folder to write; must not exist.
        checkpoint: A run's folder checkpoints/step-N; all else is in the run's config.yaml.
        adapter: A folder that peft or sentence-transformers wrote for an embedder.
        base: Directory or hub id of the model under the adapter; for a checkpoint, where that model is now.
        trust_remote_code: Run the code that comes with the model.
        model: Directory or hub id of a reranker, to write it in another shape or type.
        shape: Shape of a causal reranker: causal language model (also a CrossEncoder), or classifier; default: causal.
        dtype: Type of the written weights; by default the base's own.
        allow_failed_gate: Write a directory that fails its parity gate too; its model card says so.
        matryoshka_dims: Dimensions that the adapter was trained at.
        instruction: Task of the queries that the adapter was trained with; by default its files' query prompt, or the
            base's.
        query_prompt: Text before queries that the adapter was trained with, "" for none; by default likewise.
        document_prompt: Text before documents that the adapter was trained with, likewise.
        max_seq_length: Tokens at which an embedder's directory cuts texts; by default the run's, or the base's own.
    """

    output: str
    checkpoint: str | None = None
    adapter: str | None = None
    base: str | None = None
    model: str | None = None
    shape: Literal["causal", "classifier"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    allow_failed_gate: bool = False
    matryoshka_dims: list[int] = field(default_factory=list)
    instruction: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    trust_remote_code: bool = False
    max_seq_length: int | None = None

    def __post_init__(self) -> None:
        require(
            [self.checkpoint, self.adapter, self.model].count(None) == 2,
            "give either --checkpoint, or --adapter with --base, or --model",
        )
        require(
            self.adapter is None or self.base is not None, "--adapter needs --base, the model that it was trained on"
        )
        require(
            self.model is None or self.base is None,
            "--model is whole, and takes no --base",
        )
        require(self.adapter is None or self.shape is None, "shape is a reranker's, and adapters are embedders'")
        prompts = [each for each in (self.query_prompt, self.document_prompt) if each is not None]
        require(
            self.adapter is not None or not (self.matryoshka_dims or self.instruction or prompts),
            "matryoshka_dims, instruction and prompts go with --adapter; those of a checkpoint are in the run's "
            "config.yaml, and a model's in its own files",
        )
        require(
            self.model is None or self.max_seq_length is None, "max_seq_length is an embedder's, and --model a reranker"
        )
        require_prompts(self.query_prompt, self.document_prompt, [self.instruction])
        require_dims(self.matryoshka_dims, name="matryoshka_dims")
        require_at_least(1, self, "max_seq_length")
