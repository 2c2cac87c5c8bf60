"""Settings of scripts/choose.py."""

from dataclasses import dataclass, field
from typing import Literal

from nestling.config.attention import Attention, require_attention
from nestling.config.checks import require, require_at_least, require_dims
from nestling.config.prompts import require_prompts


@dataclass(frozen=True)
class ChooseConfig:
    """Settings of scripts/choose.py.

    Args:
        data: Dev set, a folder in the BEIR layout.
        models: Directories or hub ids of embedding models, the one before training first; none for BM25.
        reranker: Directory or hub id of a reranker.
        split: Which qrels file to use.
        depth: Documents of a query that the reranker reads.
        dims: Dimension to cut embeddings to; by default the full one.
        query_max_length: Longest query in tokens, with prompt and end token; by default the model's own limit.
        document_max_length: Longest document in tokens, likewise; a reranker always has its own limits.
        instruction: Task of the queries; by default the models' own query prompts.
        query_prompt: Text before queries, "" for none, {instruction} for theirs; by default as the models' files say.
        document_prompt: Text before documents, "" for none; by default as the models' files say.
        precision: Type of the computation; auto is bf16 on a GPU and fp32 on a CPU. bf16 changes the third digit.
        attn_implementation: As in transformers; auto: the fastest that a model has; varlen: packed where it can be.
        output: JSON file for the choice; must not exist.
        trust_remote_code: Run the code that comes with the models.
    """

    data: str
    output: str
    models: list[str] = field(default_factory=list)
    reranker: str | None = None
    split: str = "dev"
    depth: int = 100
    dims: list[int] = field(default_factory=list)
    query_max_length: int | None = None
    document_max_length: int | None = None
    instruction: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    attn_implementation: Attention = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require(len(set(self.models)) == len(self.models), "models: one is given twice")
        require(
            len(self.models) > 1 or self.reranker is not None,
            "nothing to choose from: give two models, or a --reranker",
        )
        require_dims(self.dims)
        of_models = self.dims or self.query_prompt is not None or self.document_prompt is not None
        require(bool(self.models) or not of_models, "dims, query_prompt and document_prompt need models")
        require_prompts(self.query_prompt, self.document_prompt, [self.instruction])
        require(len(self.dims) <= 1, "dims: a first stage has one dimension")
        require_at_least(1, self, "query_max_length", "document_max_length", "depth")
        require_attention(self.attn_implementation, self.precision)
