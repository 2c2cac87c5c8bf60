"""What a store finds beside exact search, its size and its speed.

Shape legend: Q queries, N documents of the collection, d dimensions of a table.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from nestling.console import table
from nestling.models.encoding import progress_bar
from nestling.records.collection import positions
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.first_stage import drop_own_documents, qrels_of
from nestling.retrieval.metrics import Floats, Run, ndcg, ranks_in_run
from nestling.retrieval.nearest import search_top
from nestling.retrieval.search import EncodedSet, relevant_ranks, score_pairs, truncate_embeddings
from nestling.stores.store import Batch, Table

DEPTH = 10
BATCH = 1024  # rows that are written at once
WARM_UP = 10  # queries before those whose time counts
EQUAL = 1e-6  # what float32 cosines of equal vectors differ by
MIB = 1 << 20


@dataclass(frozen=True)
class StoreRow:
    """What was measured of one table, or of exact search ("exact") in one dimension.

    Attributes:
        store: Name of the store.
        dim: Dimensions of the vectors.
        embedding_precision: Type in which the index keeps them.
        recall: Of the ten documents that exact search finds in the full dimension, the share that is found.
        recall_of_cut: The same of exact search in this dimension.
        ndcg: nDCG@10.
        row_bytes: Size on disk of ids and vectors; of exact search, of float32 vectors alone.
        index_bytes: Size on disk of the index.
        write_seconds: Time of writing all rows.
        index_seconds: Time of building the index.
        p50_ms, p95_ms: Time of one query through the client, without its embedding.
    """

    store: str
    dim: int
    embedding_precision: str
    recall: float
    recall_of_cut: float
    ndcg: float
    row_bytes: int
    index_bytes: int | None = None
    write_seconds: float | None = None
    index_seconds: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None

    def cells(self) -> list[object]:
        """The row of `store_table`."""
        written = None if self.write_seconds is None else self.write_seconds + (self.index_seconds or 0.0)
        index = None if self.index_bytes is None else self.index_bytes / MIB
        shown = [self.store, self.dim, self.embedding_precision, self.recall, self.recall_of_cut, self.ndcg]
        return [*shown, self.row_bytes / MIB, index, written, self.p50_ms, self.p95_ms]


class ExactResults:
    """Exact search in float32, in the full dimension and in others, and the recall of other results.

    Args:
        encoded: Embeddings of the set.
        data: The set.
    """

    def __init__(self, encoded: EncodedSet, data: RetrievalSet) -> None:
        self.encoded, self.data = encoded, data
        self.width = encoded.queries.shape[1]
        self._lowest: dict[int, Floats] = {}

    def row(self, dim: int) -> StoreRow:
        """The row of exact search in a dimension."""
        run = search_top(self.encoded, self.data, DEPTH, dim=dim)
        quality = float(ndcg(relevant_ranks(self.encoded, dim), DEPTH).mean())
        size = 4 * dim * len(self.data.documents)
        return StoreRow("exact", dim, "float32", self.recall(run, self.width), self.recall(run, dim), quality, size)

    def recall(self, run: Run, dim: int) -> float:
        """Share of the best documents that a run has, averaged over queries.

        A document counts if its cosine is that of the tenth or higher: which of several equal ones are listed is
        chance.
        """
        at = positions(self.data.document_ids, (document for found in run.values() for document in found))
        sizes = [len(run[query]) for query in self.data.query_ids]
        queries = np.repeat(np.arange(len(sizes)), sizes)
        listed = (at[document] for query in self.data.query_ids for document in run[query])
        documents = self.encoded.distinct_index[np.fromiter(listed, dtype=np.int64, count=len(queries))]
        scores = score_pairs(self.encoded, queries, documents, dim, "float32")
        hits = np.bincount(queries, weights=scores >= self._lowest_of(dim)[queries] - EQUAL, minlength=len(sizes))
        return float(hits.mean()) / min(DEPTH, len(self.data.documents))

    def _lowest_of(self, dim: int) -> Floats:
        """[Q] float64: the cosine of the tenth document of each query."""
        if dim not in self._lowest:
            run = search_top(self.encoded, self.data, DEPTH, dim=dim)
            lowest = (min(run[query].values(), default=np.inf) for query in self.data.query_ids)
            self._lowest[dim] = np.fromiter(lowest, dtype=np.float64, count=len(run))
        return self._lowest[dim]


def batches(encoded: EncodedSet, ids: Sequence[str], dim: int, label: str | None) -> Iterator[Batch]:
    """All documents, cut and normalised again; a bar with a label."""
    with progress_bar(len(ids), label, "row") as bar:
        for start in range(0, len(ids), BATCH):
            part = encoded.distinct_index[start : start + BATCH]
            yield ids[start : start + BATCH], truncate_embeddings(encoded.documents[part], dim).numpy()
            bar.update(len(part))


def search_all(table: Table, exact: ExactResults, dim: int, label: str | None) -> tuple[Run, Floats]:
    """What a table finds for each query, its own document left out, and the seconds of each: [Q] float64."""
    data = exact.data
    depth = DEPTH + bool((data.own_documents >= 0).any())
    queries = truncate_embeddings(exact.encoded.queries, dim).numpy()
    for query in queries[:WARM_UP]:
        table.search(query, depth)
    found: Run = {}
    seconds = np.zeros(len(queries))
    for i, query in enumerate(tqdm(queries, label, unit="query", disable=None if label else True, leave=False)):
        begun = time.perf_counter()
        hits = table.search(query, depth)
        seconds[i] = time.perf_counter() - begun
        found[data.query_ids[i]] = dict(hits)
    others, _ = drop_own_documents(found, data)
    return {query: dict(list(hits.items())[:DEPTH]) for query, hits in others.items()}, seconds


def measure(
    table: Table, exact: ExactResults, *, store: str, dim: int, embedding_precision: str, progress: bool
) -> StoreRow:
    """Fill an empty table, build its index and ask it everything."""
    label = f"{store} {dim} {embedding_precision}" if progress else None
    begun = time.perf_counter()
    table.write(batches(exact.encoded, exact.data.document_ids, dim, label))
    written = time.perf_counter()
    table.build_index()
    built = time.perf_counter()
    run, seconds = search_all(table, exact, dim, label)
    rows, index = table.bytes()
    quality = float(ndcg(ranks_in_run(run, qrels_of(exact.data)), DEPTH).mean())
    return StoreRow(
        store,
        dim,
        embedding_precision,
        exact.recall(run, exact.width),
        exact.recall(run, dim),
        quality,
        rows,
        index,
        written - begun,
        built - written,
        *(1e3 * np.percentile(seconds, [50, 95])).tolist(),
    )


def store_table(rows: Sequence[StoreRow]) -> str:
    """The rows as a table."""
    titles = ["store", "dim", "embedding_precision", "recall@10", "of the cut", "nDCG@10"]
    measured = ["rows MiB", "index MiB", "build s", "p50 ms", "p95 ms"]
    return table([*titles, *measured], [each.cells() for each in rows])
