"""A client for servers of embeddings and of rerankers, with the APIs of vLLM, TEI, llama.cpp and similar servers."""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import numpy as np

from nestling.api_keys import quoted, usable_key
from nestling.http_client import GuardedClient, RefusedRedirectError
from nestling.retrieval.metrics import Floats

# Last parts of the paths of endpoints.
ENDPOINTS = ("/embeddings", "/rerank", "/score")

# Forms of a request to a reranker: that of Jina and Cohere, that of TEI, and that of vLLM for pairs.
Form = Literal["documents", "texts", "pairs"]
FORMS: dict[str, list[Form]] = {"/rerank": ["documents", "texts"], "/score": ["pairs"]}


class RefusedError(ValueError):
    """A response with an error status; llama.cpp answers 500 to a text that is too long.

    Attributes:
        reason: Status and message of the response.
    """

    def __init__(self, url: str, response: httpx.Response, key: str | None) -> None:
        self.reason = f"{response.status_code}, {quoted(reason(response), key) or 'nothing'}"
        super().__init__(f"{url} answers {self.reason}")


@dataclass(frozen=True)
class ScoreEndpoint:
    """An endpoint that scores documents.

    Attributes:
        path: Path of the endpoint.
        form: Form of its requests.
    """

    path: str
    form: Form


class Server:
    """A server. Requests are sent one at a time, without retries.

    Args:
        url: Address of the server, with or without /v1, or of one of its endpoints.
        model: Name of the model in requests; by default the first one that the server lists.
        key: Bearer token, if the server needs one.
        timeout: Seconds to wait for a whole response.

    Raises:
        ValueError: No response, or an unexpected one; `RefusedError` for a status of 4xx or 5xx.
    """

    def __init__(self, url: str, *, model: str | None = None, key: str | None = None, timeout: float = 60.0) -> None:
        self.root, self.endpoint = split_url(url)
        try:
            httpx.URL(self.root)
        except httpx.InvalidURL as error:
            raise ValueError(f"{url} is not an address: {error}") from None
        self.key = usable_key(key, self.root) if key else None
        self.timeout = timeout
        self.listed = [] if model else self._listed_models()
        self.model = model or next(iter(self.listed), None)

    @property
    def chosen_model(self) -> str:
        """The model that is asked, in words; a server with adapters lists its base first."""
        if len(self.listed) > 1:
            return f"model {self.model}, the first of {', '.join(self.listed)}; --api_model chooses another"
        return f"model {self.model or 'not named'}"

    def embed(self, texts: Sequence[str], *, dimensions: int | None = None, encoding: str = "float") -> Floats:
        """Embeddings [n, D] float64 of n texts, to which no prompt is added.

        Args:
            texts: The texts.
            dimensions: Dimensions to request; None for the default.
            encoding: "float", or "base64" for little-endian float32.
        """
        body = {"model": self.model, "input": list(texts), "encoding_format": encoding, "dimensions": dimensions}
        path = self.endpoint or "/v1/embeddings"
        rows = self._rows(path, self.post(path, body), "data", ("embedding",), len(texts))
        try:
            vectors = np.array([decode(row) for row in rows], dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            vectors = np.empty(0)
        if vectors.ndim != 2 or not vectors.size:
            raise ValueError(f"{self.url(path)}: embeddings are not lists of numbers, all of one length")
        return vectors

    def find_score_endpoint(self) -> ScoreEndpoint:
        """The first endpoint that scores documents, and the form of its requests."""
        paths = [self.endpoint] if self.endpoint else ["/v1/rerank", "/rerank", "/v1/score", "/score"]
        errors = []
        for score_endpoint in (ScoreEndpoint(path, form) for path in paths for form in FORMS[path[path.rindex("/") :]]):
            try:
                self.score(score_endpoint, "a", ["b"])
            except RefusedError as refused:
                errors.append(str(refused))
            else:
                return score_endpoint
        raise ValueError("no endpoint of the server reranks: " + "; ".join(errors))

    def score(self, score_endpoint: ScoreEndpoint, query: str, documents: Sequence[str]) -> Floats:
        """Scores [n] float64 of n documents."""
        both = {"query": query, score_endpoint.form: list(documents)}
        pairs = {"text_1": query, "text_2": list(documents)}
        body = {"model": self.model, **(pairs if score_endpoint.form == "pairs" else both)}
        answer = self.post(score_endpoint.path, body)
        key = "data" if score_endpoint.form == "pairs" else "results"
        rows = self._rows(score_endpoint.path, answer, key, ("score", "relevance_score"), len(documents))
        try:
            return np.array(rows, dtype=np.float64)  # null becomes NaN, which JSON cannot express
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{self.url(score_endpoint.path)}: expected scores, got {self._quoted(rows)}") from None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a request and return the decoded JSON response; keys of `body` with value None are left out."""
        return self._ask("POST", path, {key: value for key, value in body.items() if value is not None})

    def url(self, path: str) -> str:
        return f"{self.root}{path}"

    def _listed_models(self) -> list[str]:
        """Names of the models that /v1/models lists; empty if there are none, or no such list."""
        try:
            return [str(each["id"]) for each in self._ask("GET", "/v1/models")["data"]]
        except (RefusedError, TypeError, LookupError):
            return []

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            response = asyncio.run(self._send(method, path, body))
        except httpx.TimeoutException:
            raise ValueError(f"{self.url(path)}: no answer within {self.timeout:g} s (--timeout)") from None
        except (httpx.DecodingError, RefusedRedirectError) as error:
            raise ValueError(f"{self.url(path)}: {self._quoted(error)}") from None
        except httpx.HTTPError as error:
            raise ValueError(f"{self.url(path)}: no answer: {self._quoted(error)}; is the server up?") from None
        if response.is_error:
            raise RefusedError(self.url(path), response, self.key)
        try:
            return response.json()
        except ValueError:
            raise ValueError(f"{self.url(path)}: expected JSON, got {self._quoted(response.text)!r}") from None

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        async with GuardedClient(base_url=self.root, headers=headers, timeout=self.timeout) as http:
            return await http.request(method, path, json=body)

    def _quoted(self, content: object) -> str:
        """Something that the server sent, fit for a message."""
        return quoted(str(content), self.key, 200)

    def _rows(self, path: str, answer: Any, key: str, names: Sequence[str], count: int) -> list[Any]:
        """The values of the rows of a response, sorted by index; `names` are the possible keys of a value."""
        rows: Any = answer.get(key) if isinstance(answer, dict) else answer
        try:
            values = {row["index"]: next(row[name] for name in names if name in row) for row in rows}
            return [values[i] for i in range(count)]
        except (TypeError, KeyError, StopIteration):
            raise ValueError(
                f"{self.url(path)}: expected {count} rows with index and {names[-1]}, got {self._quoted(answer)}"
            ) from None


def split_url(url: str) -> tuple[str, str | None]:
    """The address of a server without /v1, and the path of the endpoint; None if the address has none."""
    url = url.rstrip("/")
    end = next((end for end in ENDPOINTS if url.endswith(end)), None)
    root = url.removesuffix(end or "")
    version = "/v1" if root.endswith("/v1") else ""
    return root.removesuffix(version), None if end is None else version + end


def decode(row: Any) -> Any:
    """Decode one embedding: a list of numbers, or base64."""
    return np.frombuffer(base64.b64decode(row, validate=True), dtype="<f4") if isinstance(row, str) else row


def reason(response: httpx.Response) -> str:
    """The message of an error response."""
    try:
        content = response.json()
    except ValueError:
        content = response.text
    for key in ("error", "message", "detail"):
        content = content.get(key, content) if isinstance(content, dict) else content
    return str(content)
