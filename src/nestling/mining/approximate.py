"""The nearest documents of many queries by a FAISS index: for so many documents that exact search takes too long.

The index only says which documents may be near. Their scores, and with them order and thresholds, are those of the
embeddings, so what is found stands as exact search would have it; `recall` measures what is not.

Every rank holds its own shards, in an index that rank 0 trained for all, and ranks merge as in exact search. What is in
memory is the index, a sample while it is trained, and a shard while it is added.

Shapes: q queries of one block, c documents that the index finds for each.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nestling.distributed.ranks import on_every_rank, on_rank_zero
from nestling.mining.nearest import QUERY_BLOCK, nearest, products, read_keys
from nestling.mining.retrieved import Retrieved
from nestling.mining.vectors import Vectors
from nestling.retrieval.collectives import indices_of_rank
from nestling.retrieval.metrics import Integers
from nestling.retrieval.nearest import NO_KEY, pack, top_over_ranks

CPU = torch.device("cpu")
# Documents that an index is trained on: so many a list, of which FAISS wants 39, and 256 a value of an 8-bit code.
SAMPLE_PER_LIST, SAMPLE = 64, 65_536
# Candidates asked of the index for one that is kept, since the order within an index is that of compressed embeddings.
SURPLUS = 2
RECALL_QUERIES = 200
SEED = 0
# What FAISS puts before a reason: a C++ signature and a line of its sources.
FAISS_PLACE = re.compile(r"^Error in .* at \S+:\d+: ", re.DOTALL)


@dataclass(frozen=True)
class Index:
    """How to find documents; called as `nearest` is.

    Attributes:
        factory: What FAISS is to build, as a string for its index factory, such as IVF4096,PQ64x4fs.
        search: Its settings of a search, such as nprobe=64; by default IVF looks into the root of its lists' number.
    """

    factory: str
    search: str | None = None

    def empty(self, width: int) -> faiss.Index:
        """An index of no documents. Raises ValueError for what FAISS cannot build for this width, or set."""
        with self.refused():
            index = faiss.index_factory(width, self.factory, faiss.METRIC_INNER_PRODUCT)
            self.prepare(index)
        return index

    def prepare(self, index: faiss.Index) -> None:
        """Set what a search does."""
        lists = faiss.try_extract_index_ivf(index)
        if lists is not None:
            lists.nprobe = max(math.isqrt(lists.nlist), 1)
        if self.search is not None:
            settings: Any = faiss.ParameterSpace()  # the types that FAISS ships know one of two signatures
            settings.set_index_parameters(index, self.search)

    def __call__(self, queries: Vectors, documents: Vectors, size: int, depth: int, device: torch.device) -> Retrieved:
        """As `nearest`, but for documents that the index misses; FAISS uses the CPU, `device` is where ranks meet.

        All ranks must call it. Raises ValueError if FAISS cannot build the index of these documents.
        """
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = self.trained(documents, size)
        own = indices_of_rank(-(-size // documents.height))
        on_every_rank(lambda: self.add(index, documents, size, own))
        found, kept = Retrieved.nothing(len(queries), depth), min(depth, size)
        for first in range(0, len(queries), QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, len(queries))
            _, places = index.search(queries.span(first, last, CPU).numpy(), min(SURPLUS * depth, size))
            rows = np.where(places < 0, -1, rows_of(places, own, documents.height))
            best = exact_keys(queries, first, documents, rows).topk(kept).values
            keys = top_over_ranks(best.to(device), device).cpu().numpy()
            found.rows[first:last, :kept], found.scores[first:last, :kept] = read_keys(keys)
        return found

    def trained(self, documents: Vectors, size: int) -> faiss.Index:
        """An index of no documents that knows how they lie, the same on every rank."""

        def train() -> NDArray[np.uint8]:
            index = self.empty(documents.shards[0].shape[1])
            if not index.is_trained:
                with self.refused():
                    index.train(documents.take(sample_rows(index, size)).numpy())
            return faiss.serialize_index(index)

        index = faiss.deserialize_index(on_rank_zero(train))
        self.prepare(index)
        return index

    def add(self, index: faiss.Index, documents: Vectors, size: int, own: range) -> None:
        """Add this rank's shards."""
        with self.refused():
            for shard in own:
                start = shard * documents.height
                index.add(documents.span(start, min(start + documents.height, size), CPU).numpy())

    @contextmanager
    def refused(self) -> Iterator[None]:
        """Say which index it is that FAISS refuses."""
        try:
            yield
        except RuntimeError as error:
            query_set = self.factory if self.search is None else f"{self.factory} with {self.search}"
            raise ValueError(f"index: FAISS refuses {query_set}: {FAISS_PLACE.sub('', str(error))}") from error


def sample_rows(index: faiss.Index, size: int) -> Integers:
    """Documents to train an index on, ascending."""
    lists = faiss.try_extract_index_ivf(index)
    wanted = max(SAMPLE, 0 if lists is None else SAMPLE_PER_LIST * lists.nlist)
    return np.sort(np.random.default_rng(SEED).choice(size, min(wanted, size), replace=False))


def rows_of(places: Integers, own: range, height: int) -> Integers:
    """Documents by their places in an index of some shards, all of them `height` high but the last."""
    return (own.start + places // height * own.step) * height + places % height


def exact_keys(queries: Vectors, first: int, documents: Vectors, rows: Integers) -> Tensor:
    """[q, c] int64, `pack` of the scores of documents, [q, c] rows or -1, for the queries from `first`; or NO_KEY."""
    query, place = np.nonzero(rows >= 0)
    found = rows[query, place]
    keys = torch.full(rows.shape, NO_KEY)
    scores = torch.from_numpy(products(queries, first + query, documents, found))
    keys[query, place] = pack(scores, torch.from_numpy(found))
    return keys


def recall(found: Retrieved, queries: Vectors, documents: Vectors, size: int, device: torch.device) -> float:
    """The share that was found of the nearest documents of RECALL_QUERIES queries, drawn; arguments as of `nearest`."""
    drawn = np.random.default_rng(SEED).permutation(len(queries))[:RECALL_QUERIES]
    some = Vectors([queries.take(drawn).half().numpy()], len(drawn))
    exact = nearest(some, documents, size, found.rows.shape[1], device).rows
    hits = sum(np.isin(own[own >= 0], rows).sum() for own, rows in zip(exact, found.rows[drawn], strict=True))
    return float(hits / (exact >= 0).sum())
