"""Where candidates come from: an embedder, BM25 or a run file. Each finds documents, and scores given ones.

Shapes: Q queries, P given pairs of a query and a document.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from nestling.mining.fingerprints import of_embedder
from nestling.mining.lists import Lists, places_in_lists
from nestling.mining.nearest import nearest, products
from nestling.mining.pool import Pool, flat_values
from nestling.mining.query_set import QuerySet
from nestling.mining.retrieved import Retrieved, Scores
from nestling.mining.vectors import Vectors, encode_cached, prompted
from nestling.models.embedder import Embedder
from nestling.models.encoding import single_process
from nestling.records.collection import open_collection
from nestling.records.record import text_id
from nestling.records.table import RecordTable
from nestling.retrieval.collectives import indices_of_rank, reduce_sum
from nestling.retrieval.first_stage import bm25_index, bm25_scores, top_with_ties
from nestling.retrieval.metrics import Integers, Run

# Queries, documents, how many of these, how many of a query, and the device, as of `nearest`.
Neighbours = Callable[[Vectors, Vectors, int, int, torch.device], Retrieved]


class Retriever(Protocol):
    """One of the places where candidates come from; with torch.distributed initialised all ranks must call it.

    Attributes:
        name: How records and tables call it.
    """

    @property
    def name(self) -> str: ...

    def search(self, depth: int) -> Retrieved:
        """The first documents of every query, at most `depth`."""

    def score(self, queries: Integers, rows: Integers) -> Scores:
        """[P] float32, higher is better; NaN where it does not know. Both arguments are [P] int64."""


@dataclass(frozen=True)
class Dense:
    """An embedder: cosines, from embeddings rounded to fp16.

    Attributes:
        name: How records and tables call it.
        queries: Of the Q queries.
        documents: Of the pool's documents.
        size: How many of these can be found.
        device: Where scores are computed.
        notes: What encoding took.
        neighbours: How documents are found: `nearest`, or an `approximate.Index`.
    """

    name: str
    queries: Vectors
    documents: Vectors
    size: int
    device: torch.device
    notes: Sequence[str] = ()
    neighbours: Neighbours = nearest

    @classmethod
    def encode(
        cls,
        name: str,
        embedder: Embedder,
        query_set: QuerySet,
        pool: Pool,
        *,
        query_max_length: int,
        document_max_length: int,
        folder: Path | None = None,
        max_over_ranks: Callable[[int], int] = single_process,
        progress: bool = False,
    ) -> "Dense":
        """Encode what the cache does not have; errors as in `encode_cached`.

        A model in training will not be the same again: its embeddings go into a `folder` that can be removed.
        """
        fingerprint = of_embedder(embedder) if folder is None else ""
        prefixes = [embedder.prefix("query", each) for each in query_set.instructions]
        different = np.array([text_id(each) for each in prefixes])
        queries, query_stats = encode_cached(
            embedder,
            prompted(query_set.texts, prefixes),
            np.stack([query_set.identities, different], axis=1),
            fingerprint=fingerprint,
            max_length=query_max_length,
            folder=folder,
            max_over_ranks=max_over_ranks,
            progress=f"{name}: queries" if progress else None,
        )
        documents, document_stats = encode_cached(
            embedder,
            pool.texts,
            pool.identities,
            fingerprint=fingerprint,
            prefix=embedder.prefix("document"),
            max_length=document_max_length,
            folder=folder,
            max_over_ranks=max_over_ranks,
            progress=f"{name}: documents" if progress else None,
        )
        notes = [
            f"{what}: {len(vectors) - stats.texts:,} in the cache" + (f"; {stats}" if stats.texts else "")
            for what, vectors, stats in (("queries", queries, query_stats), ("documents", documents, document_stats))
        ]
        return cls(name, queries, documents, pool.size, embedder.device, notes)

    def search(self, depth: int) -> Retrieved:
        return self.neighbours(self.queries, self.documents, self.size, depth, self.device)

    def score(self, queries: Integers, rows: Integers) -> Scores:
        return products(self.queries, queries, self.documents, rows)

    def similarities(self, rows: Integers, others: Integers) -> Scores:
        """[P] float32, cosines of documents with documents."""
        return products(self.documents, rows, self.documents, others)


class Bm25:
    """BM25 over the pool as `nestling.retrieval.bm25_run` has it; documents that share no term are not found."""

    def __init__(self, query_set: QuerySet, pool: Pool, device: torch.device) -> None:
        self.name = "bm25"
        self._device = device  # where ranks communicate
        self._queries, self._size = query_set.texts, pool.size
        self._index = bm25_index(pool.texts)

    def search(self, depth: int) -> Retrieved:
        rows = torch.zeros(len(self._queries), depth, dtype=torch.int64)  # one more than the row, 0 for none
        scores = torch.zeros(len(self._queries), depth)
        for query in indices_of_rank(len(self._queries)):
            own = self._scores(query)[: self._size]
            listed = top_with_ties(own, depth)
            best = listed[np.lexsort((listed, -own[listed]))[:depth]]
            rows[query, : len(best)] = torch.from_numpy(best + 1)
            scores[query, : len(best)] = torch.from_numpy(own[best])
        listed_rows = reduce_sum(rows, self._device).numpy() - 1
        return Retrieved(
            listed_rows, np.where(listed_rows < 0, np.nan, reduce_sum(scores, self._device).numpy()).astype(np.float32)
        )

    def score(self, queries: Integers, rows: Integers) -> Scores:
        found = torch.zeros(len(queries))
        order = np.argsort(queries, kind="stable")
        different, starts = np.unique(queries[order], return_index=True)
        pairs = np.split(order, starts[1:]) if len(order) else []
        for each in indices_of_rank(len(different)):
            found[pairs[each]] = torch.from_numpy(self._scores(int(different[each]))[rows[pairs[each]]])
        scores: Scores = reduce_sum(found, self._device).numpy()
        return scores

    def _scores(self, query: int) -> Scores:
        return bm25_scores(self._index, self._queries[query])


class RunFile:
    """The lists of a TREC run.

    Args:
        name: How records and tables call it.
        run: Its scores, by query id and document id.
        query_ids: Q, the ids of each query; a text may have several.
        pool: The documents.

    Raises:
        ValueError: The documents have no ids, or the run lists no document for any query.
    """

    def __init__(self, name: str, run: Run, query_ids: Sequence[Sequence[str]], pool: Pool) -> None:
        self.name = name
        rows_of = pool.rows_of_ids(document for each in run.values() for document in each)
        self._lists: list[dict[int, float]] = []
        for ids in query_ids:
            listed: dict[int, float] = {}
            for document, score in (item for each in ids for item in run.get(each, {}).items()):
                row = rows_of.get(document)
                if row is not None:
                    listed[row] = max(score, listed.get(row, score))
            self._lists.append(listed)
        if not any(self._lists):
            raise ValueError(
                f"{name}: the run lists no document of {pool.name} for any of the {len(query_ids):,} queries; got for "
                f"instance query {next(iter(run))}"
            )
        self.missing = sum(not listed for listed in self._lists)

    def search(self, depth: int) -> Retrieved:
        found = Retrieved.nothing(len(self._lists), depth)
        for query, listed in enumerate(self._lists):
            best = sorted(listed.items(), key=lambda item: (-item[1], item[0]))[:depth]
            found.rows[query, : len(best)] = [row for row, _ in best]
            found.scores[query, : len(best)] = [score for _, score in best]
        return found

    def score(self, queries: Integers, rows: Integers) -> Scores:
        pairs = zip(queries.tolist(), rows.tolist(), strict=True)
        return np.array([self._lists[query].get(row, np.nan) for query, row in pairs], np.float32)


class Given:
    """The negatives that the records have, in their order: `given` among retrievers judges and filters them anew.

    Args:
        query_set: The queries.
        pool: Documents, these negatives among them.
        table: The records.
    """

    def __init__(self, query_set: QuerySet, pool: Pool, table: RecordTable) -> None:
        self.name = "given"
        counts = np.array([len(table.negative_ids(row)) for row in range(len(table))], dtype=np.int64)
        owners, rows = np.repeat(query_set.of_row, counts), pool.find(flat_values(table, "negative_ids"))
        _, first = np.unique(np.stack([owners, rows]), axis=1, return_index=True)
        first.sort()
        self._lists = Lists.grouped(owners[first], rows[first], len(query_set))

    def search(self, depth: int) -> Retrieved:
        found = Retrieved.nothing(len(self._lists), depth)
        place = places_in_lists(self._lists.owners, len(self._lists))
        listed = place < depth
        found.rows[self._lists.owners[listed], place[listed]] = self._lists.values[listed]
        return found

    def score(self, queries: Integers, rows: Integers) -> Scores:
        return np.full(len(queries), np.nan, np.float32)


def query_ids(folder: Path, query_set: QuerySet) -> list[list[str]]:
    """The ids that a BEIR folder gives to the text of each query."""
    collection = open_collection(folder / "queries.jsonl", "queries", None, progress=False)
    by_text: dict[int, list[str]] = {}
    for identifier, text in zip(collection.ids(), collection.texts(), strict=True):
        by_text.setdefault(text_id(text), []).append(identifier)
    return [by_text.get(each, []) for each in query_set.identities.tolist()]
