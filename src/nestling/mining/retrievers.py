"""Retrievers, which propose candidates: an embedder, BM25, a run file, or the records' own negatives.

Shapes: Q queries, P pairs of a query and a document. Queries are given as indices, documents as positions in the pool.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from nestling.mining.cached_encoder import CachedEncoder
from nestling.mining.fingerprints import embedder_fingerprint
from nestling.mining.lists import Lists, positions_in_lists
from nestling.mining.nearest import nearest, products
from nestling.mining.pool import Pool, flat_values
from nestling.mining.query_set import QuerySet
from nestling.mining.retrieved import Retrieved, Scores
from nestling.mining.vectors import Vectors
from nestling.models.embedder import Embedder
from nestling.models.encoding import progress_bar, single_process
from nestling.records.collection import open_collection
from nestling.records.record import text_id
from nestling.records.table import RecordTable
from nestling.retrieval.collectives import indices_of_rank, reduce_sum
from nestling.retrieval.first_stage import bm25_index, bm25_scores, top_with_ties
from nestling.retrieval.metrics import Integers, Run

# The signature of `nearest`: queries, documents, size, depth and device.
NearestSearch = Callable[[Vectors, Vectors, int, int, torch.device], Retrieved]


class Retriever(Protocol):
    """Finds documents and scores pairs; with torch.distributed initialised all ranks must call it.

    Attributes:
        name: Its name in records and tables.
    """

    @property
    def name(self) -> str: ...

    def search(self, depth: int) -> Retrieved:
        """The first documents of every query, at most `depth`."""

    def score(self, queries: Integers, documents: Integers) -> Scores:
        """[P] float32, higher is better; NaN for a pair that it cannot score. Both arguments are [P] int64."""


@dataclass(frozen=True)
class DenseRetriever:
    """An embedder; scores are cosines of embeddings that were rounded to float16.

    Attributes:
        name: Its name in records and tables.
        queries: Embeddings of the Q queries.
        documents: Embeddings of all documents of the pool.
        size: How many of these, from the first, are searched.
        device: Where scores are computed.
        notes: Lines about what encoding took.
        find_nearest: `nearest`, or a `faiss_index.FaissIndex`.
    """

    name: str
    queries: Vectors
    documents: Vectors
    size: int
    device: torch.device
    notes: Sequence[str] = ()
    find_nearest: NearestSearch = nearest

    @classmethod
    def encode(
        cls,
        name: str,
        embedder: Embedder,
        query_set: QuerySet,
        pool: Pool,
        *,
        query_max_length: int | None = None,
        document_max_length: int | None = None,
        folder: Path | None = None,
        max_over_ranks: Callable[[int], int] = single_process,
        progress: bool = False,
    ) -> "DenseRetriever":
        """Encode the queries and documents that are not cached; errors as in `CachedEncoder.encode`.

        Texts are cut at the given numbers of tokens, by default at the embedder's own `max_seq_length`.
        With a `folder` embeddings are kept there and not in the cache: a model in training will not be the same again.
        """
        encoder = partial(
            CachedEncoder,
            embedder,
            fingerprint=embedder_fingerprint(embedder) if folder is None else "",
            folder=folder,
            max_over_ranks=max_over_ranks,
        )
        own = embedder.max_seq_length
        prefixes = [embedder.prefix("query", each) for each in query_set.instructions]
        prefix_ids = np.array([text_id(each) for each in prefixes])
        queries, query_stats = encoder(max_length=query_max_length or own, prefix=prefixes).encode(
            query_set.texts,
            np.stack([query_set.identities, prefix_ids], axis=1),
            progress=f"{name}: queries" if progress else None,
        )
        of_documents = encoder(max_length=document_max_length or own, prefix=embedder.prefix("document"))
        documents, document_stats = of_documents.encode(
            pool.texts, pool.identities, progress=f"{name}: documents" if progress else None
        )
        notes = [
            f"{kind}: {len(vectors) - stats.texts:,} in the cache" + (f"; {stats}" if stats.texts else "")
            for kind, vectors, stats in (("queries", queries, query_stats), ("documents", documents, document_stats))
        ]
        return cls(name, queries, documents, pool.size, embedder.device, notes)

    def search(self, depth: int) -> Retrieved:
        return self.find_nearest(self.queries, self.documents, self.size, depth, self.device)

    def score(self, queries: Integers, documents: Integers) -> Scores:
        return products(self.queries, queries, self.documents, documents)

    def similarities(self, documents: Integers, others: Integers) -> Scores:
        """[P] float32, cosines of pairs of documents."""
        return products(self.documents, documents, self.documents, others)


class Bm25Retriever:
    """BM25 over the pool, as in `nestling.retrieval.bm25_run`; documents that share no term with a query are not found.

    Args:
        query_set: The queries.
        pool: The documents.
        device: Where ranks communicate.
        progress: Show progress bars on a terminal.
    """

    def __init__(self, query_set: QuerySet, pool: Pool, device: torch.device, *, progress: bool = False) -> None:
        self.name = "bm25"
        self._device, self._label = device, "bm25: queries" if progress else None
        self._queries, self._size = query_set.texts, pool.size
        self._index = bm25_index(pool.texts, progress="bm25: documents" if progress else None)

    def search(self, depth: int) -> Retrieved:
        # Each rank fills in its own queries, and ranks are summed; so positions are stored plus 1, and 0 is none.
        summed = torch.zeros(len(self._queries), depth, dtype=torch.int64)
        scores = torch.zeros(len(self._queries), depth)
        for query in self._shown(indices_of_rank(len(self._queries))):
            own = self._scores(query)[: self._size]
            listed = top_with_ties(own, depth)
            best = listed[np.lexsort((listed, -own[listed]))[:depth]]
            summed[query, : len(best)] = torch.from_numpy(best + 1)
            scores[query, : len(best)] = torch.from_numpy(own[best])
        documents = reduce_sum(summed, self._device).numpy() - 1
        all_scores = reduce_sum(scores, self._device).numpy()
        return Retrieved(documents, np.where(documents < 0, np.nan, all_scores).astype(np.float32))

    def score(self, queries: Integers, documents: Integers) -> Scores:
        summed = torch.zeros(len(queries))
        order = np.argsort(queries, kind="stable")
        distinct, starts = np.unique(queries[order], return_index=True)
        pairs = np.split(order, starts[1:]) if len(order) else []
        for i in self._shown(indices_of_rank(len(distinct))):
            summed[pairs[i]] = torch.from_numpy(self._scores(int(distinct[i]))[documents[pairs[i]]])
        scores: Scores = reduce_sum(summed, self._device).numpy()
        return scores

    def _shown(self, queries: range) -> Iterator[int]:
        """The same queries, with a progress bar."""
        with progress_bar(len(queries), self._label, "query") as bar:
            for query in queries:
                yield query
                bar.update()

    def _scores(self, query: int) -> Scores:
        return bm25_scores(self._index, self._queries[query])


class RunFileRetriever:
    """The ranked lists of a TREC run file.

    Args:
        name: Its name in records and tables.
        run: Scores by query id and document id.
        query_ids: For each of the Q queries its ids; one text may have several.
        pool: The documents.

    Attributes:
        missing: Queries for which the run lists no document.

    Raises:
        ValueError: The documents have no ids, or the run lists no document for any query.
    """

    def __init__(self, name: str, run: Run, query_ids: Sequence[Sequence[str]], pool: Pool) -> None:
        self.name = name
        position_of = pool.positions_of_ids(document for each in run.values() for document in each)
        self._scores: list[dict[int, float]] = []
        for ids in query_ids:
            scores: dict[int, float] = {}
            for document, score in (item for each in ids for item in run.get(each, {}).items()):
                position = position_of.get(document)
                if position is not None:
                    scores[position] = max(score, scores.get(position, score))
            self._scores.append(scores)
        if not any(self._scores):
            raise ValueError(
                f"{name}: the run lists no document of {pool.name} for any of the {len(query_ids):,} queries; got for "
                f"instance query {next(iter(run))}"
            )
        self.missing = sum(not scores for scores in self._scores)

    def search(self, depth: int) -> Retrieved:
        retrieved = Retrieved.empty(len(self._scores), depth)
        for query, scores in enumerate(self._scores):
            best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:depth]
            retrieved.documents[query, : len(best)] = [document for document, _ in best]
            retrieved.scores[query, : len(best)] = [score for _, score in best]
        return retrieved

    def score(self, queries: Integers, documents: Integers) -> Scores:
        pairs = zip(queries.tolist(), documents.tolist(), strict=True)
        return np.array([self._scores[query].get(document, np.nan) for query, document in pairs], np.float32)


class RecordNegatives:
    """The negatives that the records already have, as candidates: `given` among the retrievers. They have no scores.

    Args:
        query_set: The queries.
        pool: The documents, with these negatives among them.
        table: The records.
    """

    def __init__(self, query_set: QuerySet, pool: Pool, table: RecordTable) -> None:
        self.name = "given"
        counts = np.array([len(table.negative_ids(row)) for row in range(len(table))], dtype=np.int64)
        owners, documents = np.repeat(query_set.query_of_record, counts), pool.find(flat_values(table, "negative_ids"))
        # Records of one query may repeat a negative; the first counts, in the order of the records.
        _, first = np.unique(np.stack([owners, documents]), axis=1, return_index=True)
        first.sort()
        self._lists = Lists.grouped(owners[first], documents[first], len(query_set))

    def search(self, depth: int) -> Retrieved:
        retrieved = Retrieved.empty(len(self._lists), depth)
        position = positions_in_lists(self._lists.owners, len(self._lists))
        listed = position < depth
        retrieved.documents[self._lists.owners[listed], position[listed]] = self._lists.values[listed]
        return retrieved

    def score(self, queries: Integers, documents: Integers) -> Scores:
        return np.full(len(queries), np.nan, np.float32)


def query_ids(folder: Path, query_set: QuerySet) -> list[list[str]]:
    """For each query the ids of its text in the queries.jsonl of a BEIR folder; none for a text that is not in it."""
    collection = open_collection([folder / "queries.jsonl"], "queries", None, progress=False)
    by_text: dict[int, list[str]] = {}
    for identifier, text in zip(collection.ids(), collection.texts(), strict=True):
        by_text.setdefault(text_id(text), []).append(identifier)
    return [by_text.get(each, []) for each in query_set.identities.tolist()]
