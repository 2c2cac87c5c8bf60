"""Requests to servers of embeddings and of rerankers, in the forms that vLLM, TEI, llama.cpp and their kin speak."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import numpy as np

from nestling.retrieval.metrics import Floats

# Where a server's own address ends and that of one of its endpoints begins.
ENDPOINTS = ("/embeddings", "/rerank", "/score")

# How a reranker is asked: Jina's and Cohere's form, TEI's, vLLM's for pairs.
Form = Literal["documents", "texts", "pairs"]
FORMS: dict[str, list[Form]] = {"/rerank": ["documents", "texts"], "/score": ["pairs"]}


class RefusedError(ValueError):
    """An answer that says error; llama.cpp answers 500 to a text that is too long.

    Attributes:
        reason: What the server said, with its status.
    """

    def __init__(self, url: str, response: httpx.Response) -> None:
        self.reason = f"{response.status_code}, {reason(response)}"
        super().__init__(f"{url} answers {self.reason}")


@dataclass(frozen=True)
class Scorer:
    """How a server of a reranker is asked.

    Attributes:
        path: Of the endpoint.
        form: Of the request.
    """

    path: str
    form: Form


class Server:
    """A server, asked one request at a time, none of them repeated.

    Args:
        url: Of the server, with or without /v1, or of one of its endpoints.
        model: What requests call the model; the first that the server lists by default.
        key: Sent as a bearer token, if there is one.
        timeout: Seconds to wait for an answer.

    Raises:
        ValueError: Nobody answers, or not with what belongs there; `RefusedError` for a status of 4xx or 5xx.
    """

    def __init__(self, url: str, *, model: str | None = None, key: str | None = None, timeout: float = 60.0) -> None:
        root, self.endpoint = split_url(url)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self.http = httpx.Client(base_url=root, headers=headers, timeout=timeout)
        except httpx.InvalidURL as error:
            raise ValueError(f"{url} is not an address: {error}") from None
        self.model = model or self._first_model()

    def embed(self, texts: Sequence[str], *, dimensions: int | None = None, encoding: str = "float") -> Floats:
        """[n, D] float64 of `texts`, which are sent as they are.

        Args:
            dimensions: To ask for.
            encoding: "float", or "base64" for little-endian float32.
        """
        body = {"model": self.model, "input": list(texts), "encoding_format": encoding, "dimensions": dimensions}
        path = self.endpoint or "/v1/embeddings"
        rows = self._rows(path, self.post(path, body), "data", ("embedding",), len(texts))
        try:
            vectors = np.array([decode(row) for row in rows], dtype=np.float64)
        except (TypeError, ValueError):
            vectors = np.empty(0)
        if vectors.ndim != 2 or not vectors.size:
            raise ValueError(f"{self.url(path)}: embeddings are not lists of numbers, all of one length")
        return vectors

    def find_scorer(self) -> Scorer:
        """The first way of asking that it answers."""
        paths = [self.endpoint] if self.endpoint else ["/v1/rerank", "/rerank", "/v1/score", "/score"]
        tried = []
        for scorer in (Scorer(path, form) for path in paths for form in FORMS[path[path.rindex("/") :]]):
            try:
                self.score(scorer, "a", ["b"])
            except RefusedError as refused:
                tried.append(str(refused))
            else:
                return scorer
        raise ValueError("the server reranks nowhere: " + "; ".join(tried))

    def score(self, scorer: Scorer, query: str, documents: Sequence[str]) -> Floats:
        """[n] float64, in the order of `documents`."""
        both = {"query": query, scorer.form: list(documents)}
        pairs = {"text_1": query, "text_2": list(documents)}
        body = {"model": self.model, **(pairs if scorer.form == "pairs" else both)}
        answer = self.post(scorer.path, body)
        key = "data" if scorer.form == "pairs" else "results"
        rows = self._rows(scorer.path, answer, key, ("score", "relevance_score"), len(documents))
        try:
            return np.array(rows, dtype=np.float64)  # null is NaN, which JSON has no word for
        except (TypeError, ValueError):
            raise ValueError(f"{self.url(scorer.path)}: expected scores, got {str(rows)[:200]}") from None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What it answers to a request, read from JSON; keys of `body` that are None are left out."""
        return self._ask("POST", path, {key: value for key, value in body.items() if value is not None})

    def url(self, path: str) -> str:
        return f"{str(self.http.base_url).rstrip('/')}{path}"

    def _first_model(self) -> str | None:
        """What /v1/models lists first; None for servers that list none."""
        try:
            answer = self._ask("GET", "/v1/models")
        except RefusedError:
            return None
        try:
            return str(answer["data"][0]["id"])
        except (TypeError, LookupError):
            return None

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            response = self.http.request(method, path, json=body)
        except httpx.TimeoutException:
            raise ValueError(f"{self.url(path)}: no answer within {self.http.timeout.read:g} s (--timeout)") from None
        except httpx.HTTPError as error:
            raise ValueError(f"{self.url(path)}: no answer: {error}; is the server up?") from None
        if response.is_error:
            raise RefusedError(self.url(path), response)
        try:
            return response.json()
        except ValueError:
            raise ValueError(f"{self.url(path)}: expected JSON, got {response.text!r:.200}") from None

    def _rows(self, path: str, answer: Any, key: str, names: Sequence[str], count: int) -> list[Any]:
        """The values of an answer's rows, under one of `names`, put in order by their index."""
        rows: Any = answer.get(key) if isinstance(answer, dict) else answer
        try:
            found = {row["index"]: next(row[name] for name in names if name in row) for row in rows}
            return [found[i] for i in range(count)]
        except (TypeError, KeyError, StopIteration):
            raise ValueError(
                f"{self.url(path)}: expected {count} rows with index and {names[-1]}, got {str(answer)[:200]}"
            ) from None


def split_url(url: str) -> tuple[str, str | None]:
    """A server's address without /v1, and the path of the endpoint, None if the address names none."""
    url = url.rstrip("/")
    end = next((end for end in ENDPOINTS if url.endswith(end)), None)
    root = url.removesuffix(end or "")
    version = "/v1" if root.endswith("/v1") else ""
    return root.removesuffix(version), None if end is None else version + end


def decode(row: Any) -> Any:
    """One embedding, from numbers or from base64."""
    return np.frombuffer(base64.b64decode(row, validate=True), dtype="<f4") if isinstance(row, str) else row


def reason(response: httpx.Response) -> str:
    """What an error says, in one line."""
    try:
        content = response.json()
    except ValueError:
        content = response.text
    for key in ("error", "message", "detail"):
        content = content.get(key, content) if isinstance(content, dict) else content
    return " ".join(str(content).split())[:300] or "nothing"
