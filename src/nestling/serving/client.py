"""A client for servers of embeddings and of rerankers, with the APIs of vLLM, TEI, llama.cpp and similar servers."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import httpx
import numpy as np

from nestling.api_keys import quoted, usable_key
from nestling.http_client import GuardedClient, RefusedRedirectError
from nestling.retrieval.metrics import Floats

NO_FIELDS: Mapping[str, Any] = MappingProxyType({})
# Statuses that say "later", and nothing of what the server can do: llama.cpp's 503 while it loads, limits, gateways.
LATER = (408, 425, 429, 502, 503, 504)
# Last parts of the paths of endpoints.
ENDPOINTS = ("/embeddings", "/embed", "/rerank", "/score")
# What addresses end with that name a version of an API and no endpoint.
VERSIONS = ("/v1", "/v2")

# Path -> form of a request for embeddings: that of OpenAI, Jina and vLLM, that of TEI, and that of Cohere.
EmbeddingForm = Literal["input", "inputs", "texts"]
EMBEDDING_FORMS: dict[str, EmbeddingForm] = {"/v1/embeddings": "input", "/embed": "inputs", "/v2/embed": "texts"}
Kind = Literal["query", "document"]
# Forms of a request to a reranker: that of Jina and Cohere, that of TEI, and that of vLLM for pairs.
Form = Literal["documents", "texts", "pairs"]
FORMS: dict[str, list[Form]] = {"/rerank": ["documents", "texts"], "/score": ["pairs"]}


class RefusedError(ValueError):
    """A response with an error status; llama.cpp answers 500 to a text that is too long.

    Attributes:
        reason: Status and message of the response.
        status: The status.
        retry_after: Seconds after which the server wants to be asked again; None if it does not say.
    """

    def __init__(self, url: str, response: httpx.Response, key: str | None) -> None:
        self.status = response.status_code
        wanted = response.headers.get("Retry-After", "")
        self.retry_after = float(wanted) if wanted.isdecimal() else None
        self.reason = f"{response.status_code}, {quoted(reason(response), key) or 'nothing'}"
        super().__init__(f"{url} answers {self.reason}")


def not_later(refused: RefusedError) -> str:
    """Its message; raises it again for a status of `LATER`."""
    if refused.status in LATER:
        raise refused
    return str(refused)


class UnansweredError(ValueError):
    """No response: no connection, one that was lost, or none in time."""


class UnreadableError(ValueError):
    """A response without an error status that is no JSON, as of a server or a proxy that breaks off."""


@dataclass(frozen=True)
class EmbeddingEndpoint:
    """An endpoint that embeds texts.

    Attributes:
        path: Path of the endpoint.
        form: Form of its requests.
        width: Numbers in an embedding.
    """

    path: str
    form: EmbeddingForm
    width: int


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
        return self.read_embeddings(path, self.post(path, body), len(texts))

    def find_embedding_endpoint(self, fields: Mapping[str, Any] = NO_FIELDS) -> EmbeddingEndpoint:
        """The first endpoint that embeds texts, the form of its requests and the width of its embeddings.

        Args:
            fields: More fields of each request, of which the width may be one.

        Raises:
            RefusedError: A status of `LATER`, after which it can be asked again.
        """
        errors = []
        self._require_endpoint("embeds", ("/embeddings", "/embed"))
        for path in [self.endpoint] if self.endpoint else list(EMBEDDING_FORMS):
            form = EMBEDDING_FORMS.get(path, "input")
            try:
                answer = self.post(path, {**self.embedding_body(form, ["a"], "document"), **fields})
            except RefusedError as refused:
                errors.append(not_later(refused))
            else:
                return EmbeddingEndpoint(path, form, self.read_embeddings(path, answer, 1).shape[1])
        raise ValueError("no endpoint of the server embeds: " + "; ".join(errors))

    def embedding_body(self, form: EmbeddingForm, texts: Sequence[str], kind: Kind) -> dict[str, Any]:
        """The body of a request for embeddings; a server of Cohere's form is told which prompt to put before texts."""
        body: dict[str, Any] = {form: list(texts)}
        if form == "texts":
            body |= {"input_type": f"search_{kind}", "embedding_types": ["float"]}
        return body if form == "inputs" else {"model": self.model, **body}

    def read_embeddings(self, path: str, answer: Any, count: int) -> Floats:
        """Embeddings [n, D] float64 in a decoded response of an endpoint of any form, to a request of n texts."""
        rows: Any = answer
        if isinstance(answer, dict) and isinstance(answer.get("embeddings"), dict):
            rows = answer["embeddings"].get("float")
        elif isinstance(answer, dict) or not (answer and isinstance(answer, list) and isinstance(answer[0], list)):
            rows = self._rows(path, answer, "data", ("embedding",), count)
        try:
            vectors = np.array([decode(row) for row in rows], dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            vectors = np.empty(0)
        if vectors.ndim != 2 or not vectors.size:
            raise ValueError(f"{self.url(path)}: embeddings are not lists of numbers, all of one length")
        if len(vectors) != count:
            raise ValueError(f"{self.url(path)}: {len(vectors)} embeddings for {count} texts")
        return vectors

    def find_score_endpoint(self, fields: Mapping[str, Any] = NO_FIELDS) -> ScoreEndpoint:
        """The first endpoint that scores documents, and the form of its requests; as `find_embedding_endpoint`."""
        self._require_endpoint("reranks", tuple(FORMS))
        paths = [self.endpoint] if self.endpoint else ["/v1/rerank", "/rerank", "/v1/score", "/score"]
        errors = []
        for score_endpoint in (ScoreEndpoint(path, form) for path in paths for form in FORMS[path[path.rindex("/") :]]):
            try:
                answer = self.post(score_endpoint.path, {**self.score_body(score_endpoint, "a", ["b"]), **fields})
                self.read_scores(score_endpoint, answer, 1)
            except RefusedError as refused:
                errors.append(not_later(refused))
            else:
                return score_endpoint
        raise ValueError("no endpoint of the server reranks: " + "; ".join(errors))

    def score(self, score_endpoint: ScoreEndpoint, query: str, documents: Sequence[str]) -> Floats:
        """Scores [n] float64 of n documents."""
        answer = self.post(score_endpoint.path, self.score_body(score_endpoint, query, documents))
        return self.read_scores(score_endpoint, answer, len(documents))

    def score_body(self, score_endpoint: ScoreEndpoint, query: str, documents: Sequence[str]) -> dict[str, Any]:
        """The body of a request for scores."""
        both = {"query": query, score_endpoint.form: list(documents)}
        pairs = {"text_1": query, "text_2": list(documents)}
        return {"model": self.model, **(pairs if score_endpoint.form == "pairs" else both)}

    def read_scores(self, score_endpoint: ScoreEndpoint, answer: Any, count: int) -> Floats:
        """Scores [n] float64 in a decoded response to a request of n documents."""
        key = "data" if score_endpoint.form == "pairs" else "results"
        rows = self._rows(score_endpoint.path, answer, key, ("score", "relevance_score"), count)
        try:
            return np.array(rows, dtype=np.float64)  # null becomes NaN, which JSON cannot express
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{self.url(score_endpoint.path)}: expected scores, got {self._quoted(rows)}") from None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a request and return the decoded JSON response; keys of `body` with value None are left out."""
        return self._ask("POST", path, body)

    def open(self) -> GuardedClient:
        """A client for requests to the server, whose connections stay open."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return GuardedClient(base_url=self.root, headers=headers, timeout=self.timeout)

    async def send(self, http: GuardedClient, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request over an open client; as `post` but for the connection."""
        kept = None if body is None else {key: value for key, value in body.items() if value is not None}
        try:
            response = await http.request(method, path, json=kept)
        except httpx.TimeoutException:
            raise UnansweredError(f"{self.url(path)}: no answer within {self.timeout:g} s (--timeout)") from None
        except (httpx.DecodingError, RefusedRedirectError) as error:
            raise ValueError(f"{self.url(path)}: {self._quoted(error)}") from None
        except httpx.HTTPError as error:
            raise UnansweredError(f"{self.url(path)}: no answer: {self._quoted(error)}; is the server up?") from None
        if response.is_error:
            raise RefusedError(self.url(path), response, self.key)
        try:
            return response.json()
        except ValueError:
            raise UnreadableError(f"{self.url(path)}: expected JSON, got {self._quoted(response.text)!r}") from None

    def url(self, path: str) -> str:
        return f"{self.root}{path}"

    def _require_endpoint(self, does: str, ends: tuple[str, ...]) -> None:
        """Raise ValueError if the address is that of an endpoint of another kind."""
        if self.endpoint is not None and not self.endpoint.endswith(ends):
            expected = f"one that ends with {' or '.join(ends)}, or the server's own address"
            raise ValueError(f"{self.url(self.endpoint)} is no endpoint that {does}; expected {expected}")

    def _listed_models(self) -> list[str]:
        """Names of the models that /v1/models lists; empty if there are none, or no such list."""
        try:
            return [str(each["id"]) for each in self._ask("GET", "/v1/models")["data"]]
        except RefusedError as refused:
            not_later(refused)
            return []
        except (TypeError, LookupError):
            return []

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return asyncio.run(self._once(method, path, body))

    async def _once(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        async with self.open() as http:
            return await self.send(http, method, path, body)

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
    """The address of a server without a version, and the path of the endpoint; None if the address has none."""
    url = url.rstrip("/")
    end = next((end for end in ENDPOINTS if url.endswith(end)), None)
    root = url.removesuffix(end or "")
    version = next((each for each in VERSIONS if root.endswith(each)), "")
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
