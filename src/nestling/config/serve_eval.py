"""Settings of scripts/serve_eval.py."""

from dataclasses import dataclass, field
from typing import Any, Literal

from nestling.config.checks import require, require_address, require_at_least, require_dims
from nestling.config.prompts import require_prompts


@dataclass(frozen=True, kw_only=True)
class ServeEvalConfig:
    """Settings of scripts/serve_eval.py.

    Args:
        data: Folders with corpus.jsonl, queries.jsonl and qrels/, or JSON files with all of these; with commas between.
        url: Address of the server of embeddings, or of its endpoint.
        rerank_url: Address of the server of a reranker, which orders each query's first documents again.
        command: Command that starts the server at url; it is stopped at the end.
        rerank_command: Command that starts the server at rerank_url, likewise.
        health: Path at which a server that was started answers a status of 2xx once it is ready.
        start_timeout: Seconds that it may take to.
        first_stage: In place of url, what the reranker reads: bm25, a TREC run file or a .jsonl file of lists.
        model: Directory that is served: its prompts, its limit of tokens and its dimensions are used.
        split: Which qrels file to use.
        dims: Dimensions to cut embeddings to; by default the full one, and the model's matryoshka_dimensions.
        embedding_precision: Types in which a vector store keeps the embeddings; binary keeps their signs.
        instruction: Task of the queries; by default the model's own query prompt.
        query_prompt: Text before queries, "" for none, {instruction} for theirs; by default the model's, or none.
        document_prompt: Text before documents, "" for none; by default the model's, or none.
        query_max_length: Longest query in tokens, with prompt and end token; by default the model's own limit.
        document_max_length: Longest document in tokens, likewise; a reranker's server has its own limits.
        depth: Documents of a query that the reranker reads; a .jsonl file's lists are read whole.
        rerank_weight: Of its scores in the fused order, 0 to 1, or scripts/choose.py's file; by default of ranks.
        batch_size: Documents in a request, to embed or to rerank.
        concurrency: Requests under way at once.
        retries: How often a request is sent again after a lost connection, a timeout or an error of the server.
        timeout: Seconds to wait for a whole answer.
        api_model: Name of the embedding model in requests; by default the first that the server lists.
        rerank_api_model: Name of the reranker in requests, likewise.
        api_key_env: Environment variable that holds the key of the server of embeddings.
        rerank_api_key_env: Environment variable that holds the key of the server of the reranker.
        body: More fields of each request for embeddings, such as {"truncate_prompt_tokens": 512}.
        rerank_body: More fields of each request for scores.
        expected: JSON files of scripts/evaluate.py, whose nDCG@10 has to come out again; with commas between.
        tolerance: What nDCG@10 may differ by.
        output: JSON file for the results; must not exist.
        details: Also write each query's results, to X.details.jsonl beside X.json, for scripts/report.py.
        trust_remote_code: Run the code that comes with the model.
    """

    data: list[str] = field(default_factory=list)
    url: str | None = None
    rerank_url: str | None = None
    command: str | None = None
    rerank_command: str | None = None
    health: str = "/health"
    start_timeout: float = 600.0
    first_stage: str | None = None
    model: str | None = None
    split: str = "test"
    dims: list[int] = field(default_factory=list)
    embedding_precision: list[Literal["float32", "int8", "binary"]] = field(default_factory=lambda: ["float32"])
    instruction: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    query_max_length: int | None = None
    document_max_length: int | None = None
    depth: int = 100
    rerank_weight: float | str | None = None
    batch_size: int = 32
    concurrency: int = 8
    retries: int = 6
    timeout: float = 300.0
    api_model: str | None = None
    rerank_api_model: str | None = None
    api_key_env: str | None = None
    rerank_api_key_env: str | None = None
    body: dict[str, Any] = field(default_factory=dict)
    rerank_body: dict[str, Any] = field(default_factory=dict)
    expected: list[str] = field(default_factory=list)
    tolerance: float = 1e-3
    output: str | None = None
    details: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require(bool(self.data), "give --data, folders in the BEIR layout")
        require(len(set(self.data)) == len(self.data), "data: a folder is given twice")
        require(
            (self.url is None) != (self.first_stage is None),
            "give either --url, a server of embeddings, or --first_stage with a --rerank_url",
        )
        require(self.first_stage is None or self.rerank_url is not None, "first_stage is what a --rerank_url reads")
        for name in ("url", "rerank_url"):
            if getattr(self, name) is not None:
                require_address(name, getattr(self, name))
        for name in ("url", "rerank_url"):
            command = f"{name.removesuffix('url')}command"
            require(
                getattr(self, command) is None or getattr(self, name) is not None,
                f"{command} starts the server of {name}; give that too",
            )
        require_dims(self.dims)
        require(bool(self.embedding_precision), "embedding_precision is empty; expected float32, int8 or binary")
        require(
            self.instruction is None or self.model is not None or "{instruction}" in (self.query_prompt or ""),
            "instruction needs a --model, or a --query_prompt with {instruction} in it",
        )
        require_at_least(1, self, "depth", "batch_size", "concurrency", "query_max_length", "document_max_length")
        require(
            self.model is not None or (self.query_max_length is None and self.document_max_length is None),
            "query_max_length and document_max_length need a --model, whose tokens they count",
        )
        require_at_least(0, self, "retries", "tolerance")
        require(self.timeout > 0, f"timeout is {self.timeout:g}, expected more than 0 seconds")
        require(self.output is not None or not self.details, "details come beside the results: give --output")
        weight = self.rerank_weight
        require(weight is None or self.rerank_url is not None, "rerank_weight is of a --rerank_url")
        require(isinstance(weight, str | None) or 0 <= weight <= 1, f"rerank_weight is {weight}, expected 0 to 1")
        require_prompts(self.query_prompt, self.document_prompt, [self.instruction])
