"""Embeddings and scores of a retrieval set by servers: what scripts/evaluate.py computes here, asked for there.

Shape legend: Q queries, N documents of the collection, n distinct texts, D width of the embeddings.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nestling.console import say
from nestling.gpu import best_device
from nestling.models.encoding import EncodingStats
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.candidates import Candidates
from nestling.retrieval.distinct import DistinctTexts, find_distinct
from nestling.retrieval.evaluation import make_encoded_set
from nestling.retrieval.metrics import Floats, Integers
from nestling.retrieval.search import EncodedSet
from nestling.serving.client import EmbeddingEndpoint, Kind, RefusedError, ScoreEndpoint, Server
from nestling.serving.dispatch import Request, Traffic, dispatch
from nestling.serving.embedder_reference import cosine_similarities
from nestling.serving.reading import KINDS, Reading
from nestling.serving.vector_file import VectorFile, text_key

# Rows of an interrupted run are used if the server gives some of them again, to this cosine or relative difference.
CHECKED, SAME_COSINE, SAME_SCORE = 4, 0.999, 0.01
# Statuses by which servers refuse texts that are too long, among other requests.
TOO_LONG = (400, 413, 422)
CUT_DOCUMENTS = (
    """If a document is too long for it: --rerank_body '{"max_tokens_per_doc": N}' has vLLM read N tokens of each """
    """(document_max_length in the directory's reranker.json), '{"truncate": true}' has TEI cut pairs"""
)

CUT_TEXTS = (
    "If a text is too long for it: --model DIR cuts texts where the model's directory says, --query_max_length and "
    "--document_max_length elsewhere"
)
CUT_BATCHES = f"If a request has too many texts for it: --batch_size 1. {CUT_TEXTS}"


@contextmanager
def advising(advice: str) -> Iterator[None]:
    """A context that says what to do if a server refuses a request as one that is too long for it."""
    try:
        yield
    except RefusedError as refused:
        if refused.status not in TOO_LONG:
            raise
        raise ValueError(f"{refused}. {advice}") from None


@dataclass(frozen=True)
class Sending:
    """How requests are sent.

    Args:
        batch_size: Documents in a request.
        concurrency: Requests under way at once.
        retries: How often a request is sent again.
        body: More fields of each body; a null leaves one out.
        folder: Where answers are kept until the set is measured.
    """

    batch_size: int
    concurrency: int
    retries: int
    body: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class ServedSet:
    """A retrieval set embedded by a server, and what that took."""

    encoded: EncodedSet
    traffic: tuple[Traffic, Traffic]
    files: tuple[VectorFile, VectorFile]


def embed_set(
    server: Server,
    endpoint: EmbeddingEndpoint,
    data: RetrievalSet,
    reading: Reading,
    instruction: str | None,
    sending: Sending,
) -> ServedSet:
    """Embed queries, one a request as a search does, and documents in batches; equal texts once."""
    embed = partial(embed_texts, server, endpoint, name=data.name, sending=sending)
    sent = (partial(reading.sent, kind, instruction) for kind in KINDS)
    queries, asked, of_queries, query_stats = embed(data.queries, "query", next(sent))
    documents, distinct, of_documents, document_stats = embed(data.documents, "document", next(sent))
    vectors = torch.from_numpy(np.asarray(queries.rows)[asked.encoded_index])
    stats, device = (query_stats, document_stats), best_device()
    encoded = make_encoded_set(data, vectors, torch.from_numpy(documents.rows), distinct, stats, device)
    return ServedSet(encoded, (of_queries, of_documents), (queries, documents))


def embed_texts(
    server: Server,
    endpoint: EmbeddingEndpoint,
    texts: Sequence[str],
    kind: Kind,
    sent: Callable[[str], tuple[str, bool]],
    *,
    name: str,
    sending: Sending,
) -> tuple[VectorFile, DistinctTexts, Traffic, EncodingStats]:
    """Embeddings of the distinct texts, [n, D] in a file, which texts are equal, what it took, how many were cut."""
    stats = EncodingStats(texts=len(texts))
    keys = np.fromiter(keys_of(texts, sent, stats), dtype=np.int64, count=len(texts))
    distinct = find_distinct(keys, 1)
    first = np.zeros(len(distinct.copies), dtype=np.int64)
    first[distinct.encoded_index[::-1]] = np.arange(len(texts))[::-1]
    file = VectorFile.open(sending.folder / kind, keys[first], endpoint.width)

    def request(rows: Integers) -> Request:
        asked = [sent(texts[i])[0] for i in first[rows].tolist()]
        body = server.embedding_body(endpoint.form, asked, kind) | sending.body

        def take(answer: Any) -> None:
            url, vectors = server.url(endpoint.path), server.read_embeddings(endpoint.path, answer, len(rows))
            if vectors.shape[1] != endpoint.width:
                raise ValueError(
                    f"{url}: embeddings of {vectors.shape[1]} numbers, where the first had {endpoint.width}"
                )
            for row, vector in zip(rows.tolist(), vectors, strict=True):
                file.put(row, finite(vector, url))

        return Request(endpoint.path, body, len(rows), len(rows), take)

    def same(kept: Floats, now: Floats) -> bool:
        return bool(cosine_similarities(kept, now).min() >= SAME_COSINE)

    batch = 1 if kind == "query" else sending.batch_size
    what = f"{name}: {'queries' if kind == 'query' else 'documents'}"
    with advising(CUT_BATCHES if batch > 1 else CUT_TEXTS):
        traffic = ask_missing(server, file, request, same, batch, what, sending)
    return file, distinct, traffic, stats


def keys_of(texts: Sequence[str], sent: Callable[[str], tuple[str, bool]], stats: EncodingStats) -> Iterator[int]:
    """The key of each text as it is sent; those that are cut are counted in `stats`."""
    for text in texts:
        asked, cut = sent(text)
        stats.truncated += cut
        yield text_key(asked)


def ask_missing(
    server: Server,
    file: VectorFile,
    request: Callable[[Integers], Request],
    same: Callable[[Floats, Floats], bool],
    batch: int,
    what: str,
    sending: Sending,
) -> Traffic:
    """Ask for the rows that an interrupted run has not left, if the server still answers what it left as it did."""
    send = partial(dispatch, server, concurrency=sending.concurrency, retries=sending.retries)
    known = file.known()
    if len(known):
        checked = known[:CHECKED]
        before = file.rows[checked].astype(np.float64)
        send([request(checked[i : i + 1]) for i in range(len(checked))], f"{what}, checked", total=len(checked), done=0)
        if same(before, file.rows[checked].astype(np.float64)):
            say(f"{what}: {len(known):,} of {len(file.keys):,} are there from a run that was interrupted")
        else:
            say(f"{what}: the server answers otherwise than in the run that was interrupted; all are asked for again")
            file.forget()
            known = known[:0]
    missing = np.setdiff1d(np.arange(len(file.keys)), known)
    batches = (request(missing[i : i + batch]) for i in range(0, len(missing), batch))
    return send(batches, what, total=len(file.keys), done=len(known))


def finite(values: Floats, url: str) -> Floats:
    """The values. Raises ValueError if one is NaN or infinite."""
    if not np.isfinite(values).all():
        raise ValueError(f"{url} answers NaN or infinity; its weights may need float32 instead of a shorter type")
    return values


class CandidateParts:
    """The candidates of all queries in parts of at most `size`, one a request.

    Args:
        data: Queries and documents.
        candidates: Which documents each query has.
        size: Documents in a part.
    """

    def __init__(self, data: RetrievalSet, candidates: Candidates, size: int) -> None:
        self.data, self.positions, self.size = data, candidates.positions, size
        self._parts = [
            (query, start) for query, every in enumerate(self.positions) for start in range(0, len(every), size)
        ]

    def texts(self, part: int) -> tuple[str, list[str]]:
        """The query and the documents of a part."""
        query, start = self._parts[part]
        documents = self.positions[query][start : start + self.size]
        return self.data.queries[query], [self.data.documents[int(each)] for each in documents]

    def keys(self) -> Integers:
        """[n] int64: a hash of the texts of each part."""
        texts = map(self.texts, range(len(self._parts)))
        return np.fromiter((text_key(query, *documents) for query, documents in texts), dtype=np.int64)

    def joined(self, rows: Sequence[Floats]) -> list[Floats]:
        """Q arrays of float64 from rows of `size` scores, one for each part."""
        scores: list[list[Floats]] = [[np.zeros(0)] for _ in self.positions]
        for (query, start), row in zip(self._parts, rows, strict=True):
            scores[query].append(row[: len(self.positions[query]) - start].astype(np.float64))
        return [np.concatenate(each) for each in scores]


def score_candidates(
    server: Server, endpoint: ScoreEndpoint, data: RetrievalSet, candidates: Candidates, sending: Sending
) -> tuple[list[Floats], Traffic, VectorFile]:
    """The reranker's scores of each query's candidates, Q arrays of float64, of which probabilities become logits."""
    parts = CandidateParts(data, candidates, sending.batch_size)
    file = VectorFile.open(sending.folder / "scores", parts.keys(), parts.size)

    def request(rows: Integers) -> Request:
        (row,) = rows.tolist()
        query, documents = parts.texts(row)

        def take(answer: Any) -> None:
            scores = np.zeros(parts.size)
            found = server.read_scores(endpoint, answer, len(documents))
            scores[: len(documents)] = finite(found, server.url(endpoint.path))
            file.put(row, scores)

        body = server.score_body(endpoint, query, documents) | sending.body
        return Request(endpoint.path, body, len(documents), 1, take)

    def same(kept: Floats, now: Floats) -> bool:
        return bool(np.allclose(kept, now, rtol=SAME_SCORE, atol=SAME_SCORE))

    with advising(CUT_DOCUMENTS):
        traffic = ask_missing(server, file, request, same, 1, f"{data.name}: candidates", sending)
    return logits(parts.joined(list(file.rows))), traffic, file


def logits(scores: list[Floats]) -> list[Floats]:
    """Scores that are probabilities as logits, so that their fusion is that of the model; others as they are."""
    if all((each >= 0).all() and (each <= 1).all() for each in scores):
        clipped = (np.clip(each, 1e-30, 1 - 1e-8) for each in scores)
        return [np.log(each) - np.log1p(-each) for each in clipped]
    return scores
