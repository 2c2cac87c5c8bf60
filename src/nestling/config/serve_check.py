"""Settings of scripts/serve_check.py."""

from dataclasses import dataclass, field
from typing import Literal

from nestling.config.checks import require, require_address, require_dims


@dataclass(frozen=True, kw_only=True)
class ServeCheckConfig:
    """Settings of scripts/serve_check.py.

    Args:
        url: Address of the server or endpoint, such as http://localhost:8000; may come first, without --url.
        model: The directory that it serves.
        trust_remote_code: Run the code that comes with the model.
        kind: What the directory holds; by default told by its files.
        api_model: Name of the model in requests; by default the first that the server lists.
        dims: Dimensions to ask for, of an embedder trained at several.
        least_cosine: Lowest cosine to the directory's own embeddings at which the server passes.
        timeout: Seconds to wait for a whole answer.
        api_key_env: Environment variable that holds the server's key.
    """

    url: str
    model: str
    kind: Literal["embedding", "rerank"] | None = None
    api_model: str | None = None
    dims: list[int] = field(default_factory=list)
    least_cosine: float = 0.999
    timeout: float = 60.0
    api_key_env: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require_address("url", self.url)
        require_dims(self.dims)
        require(0 < self.least_cosine <= 1, f"least_cosine is {self.least_cosine:g}, expected 0 < cosine <= 1")
        require(self.timeout > 0, f"timeout is {self.timeout:g}, expected more than 0 seconds")
        require(self.kind != "rerank" or not self.dims, "dims are an embedder's, and a reranker answers scores")
