"""Approximate nearest-neighbour search by a FAISS index, for pools that are too large for exact search.

The index only proposes documents. They are scored and ordered by the embeddings themselves, so what is found has the
scores and the order of exact search; `recall` measures what is missed.

Rank 0 trains the index, every rank adds its own shards to a copy, and ranks merge as in exact search. In memory are the
index, a sample while it is trained, and one shard while it is added.

Shapes: q queries of one block, c documents that the index proposes for each.
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
# Documents that an index is trained on: for each inverted list (FAISS wants at least 39), and in total at least 256
# for each of the 256 centroids of an 8-bit code.
SAMPLE_PER_LIST, MIN_SAMPLE = 64, 65_536
# Documents proposed by the index for each that is kept, since the index orders them by compressed embeddings.
OVERSAMPLING = 2
RECALL_QUERIES = 200
SEED = 0
# The C++ signature and source line that FAISS puts before the reason of an error.
FAISS_ERROR_PREFIX = re.compile(r"^Error in .* at \S+:\d+: ", re.DOTALL)


@dataclass(frozen=True)
class FaissIndex:
    """Search by a FAISS index that is built for each call; called as `nearest` is.

    Attributes:
        factory: A string for FAISS's index factory, such as IVF4096,PQ64x4fs.
        search: Search parameters of FAISS, such as nprobe=64; by default nprobe is the square root of nlist.
    """

    factory: str
    search: str | None = None

    def empty(self, dim: int) -> faiss.Index:
        """An untrained index of no documents. Raises ValueError if FAISS refuses the factory or search string."""
        with self.name_in_errors():
            index = faiss.index_factory(dim, self.factory, faiss.METRIC_INNER_PRODUCT)
            self.set_search_parameters(index)
        return index

    def require_documents(self, dim: int, size: int) -> None:
        """Raise ValueError for an index with more inverted lists than documents to train them on."""
        lists = faiss.try_extract_index_ivf(self.empty(dim))
        if lists is not None and lists.nlist > size:
            raise ValueError(
                f"index: {self.factory} has {lists.nlist:,} lists, and there are {size:,} documents; give fewer lists, "
                "or no index"
            )

    def set_search_parameters(self, index: faiss.Index) -> None:
        lists = faiss.try_extract_index_ivf(index)
        if lists is not None:
            lists.nprobe = max(math.isqrt(lists.nlist), 1)
        if self.search is not None:
            parameters: Any = faiss.ParameterSpace()  # FAISS's type stubs lack the signature used here
            parameters.set_index_parameters(index, self.search)

    def __call__(self, queries: Vectors, documents: Vectors, size: int, depth: int, device: torch.device) -> Retrieved:
        """As `nearest`, without the documents that the index misses; all ranks must call it.

        FAISS runs on the CPU; `device` is where ranks communicate. Raises ValueError if FAISS cannot build the index.
        """
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = self.trained(documents, size)
        own_shards = indices_of_rank(-(-size // documents.shard_size))
        on_every_rank(lambda: self.add(index, documents, size, own_shards))
        retrieved, kept = Retrieved.empty(len(queries), depth), min(depth, size)
        for first in range(0, len(queries), QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, len(queries))
            _, ids = index.search(queries.span(first, last, CPU).numpy(), min(OVERSAMPLING * depth, size))
            proposed = np.where(ids < 0, -1, documents_of(ids, own_shards, documents.shard_size))
            best = exact_keys(queries, first, documents, proposed).topk(kept).values
            keys = top_over_ranks(best.to(device), device).cpu().numpy()
            retrieved.documents[first:last, :kept], retrieved.scores[first:last, :kept] = read_keys(keys)
        return retrieved

    def trained(self, documents: Vectors, size: int) -> faiss.Index:
        """A trained index of no documents, the same on every rank."""

        def train() -> NDArray[np.uint8]:
            index = self.empty(documents.shards[0].shape[1])
            if not index.is_trained:
                with self.name_in_errors():
                    index.train(documents.take(training_sample(index, size)).numpy())
            return faiss.serialize_index(index)

        index = faiss.deserialize_index(on_rank_zero(train))
        self.set_search_parameters(index)
        return index

    def add(self, index: faiss.Index, documents: Vectors, size: int, own_shards: range) -> None:
        with self.name_in_errors():
            for shard in own_shards:
                start = shard * documents.shard_size
                index.add(documents.span(start, min(start + documents.shard_size, size), CPU).numpy())

    @contextmanager
    def name_in_errors(self) -> Iterator[None]:
        """Turn an error of FAISS into a ValueError that names the index."""
        try:
            yield
        except RuntimeError as error:
            index = self.factory if self.search is None else f"{self.factory} with {self.search}"
            raise ValueError(f"index: FAISS refuses {index}: {FAISS_ERROR_PREFIX.sub('', str(error))}") from error


def training_sample(index: faiss.Index, size: int) -> Integers:
    """Positions of the documents to train an index on, ascending."""
    lists = faiss.try_extract_index_ivf(index)
    wanted = max(MIN_SAMPLE, 0 if lists is None else SAMPLE_PER_LIST * lists.nlist)
    return np.sort(np.random.default_rng(SEED).choice(size, min(wanted, size), replace=False))


def documents_of(ids: Integers, own_shards: range, shard_size: int) -> Integers:
    """Positions of documents from their ids in the index of one rank, to which its shards were added in order."""
    return (own_shards.start + ids // shard_size * own_shards.step) * shard_size + ids % shard_size


def exact_keys(queries: Vectors, first: int, documents: Vectors, proposed: Integers) -> Tensor:
    """[q, c] int64: keys (`pack`) of the exact scores of proposed documents, NO_KEY where there is none.

    Args:
        queries: All queries.
        first: The first query of the block.
        documents: All documents.
        proposed: [q, c] int64, positions of documents, or -1.
    """
    query, column = np.nonzero(proposed >= 0)
    document = proposed[query, column]
    keys = torch.full(proposed.shape, NO_KEY)
    scores = torch.from_numpy(products(queries, first + query, documents, document))
    keys[query, column] = pack(scores, torch.from_numpy(document))
    return keys


def recall(retrieved: Retrieved, queries: Vectors, documents: Vectors, size: int, device: torch.device) -> float:
    """The fraction of the exact nearest documents that was retrieved, over RECALL_QUERIES random queries.

    `retrieved` is for all queries; the other arguments are as of `nearest`.
    """
    drawn = np.random.default_rng(SEED).permutation(len(queries))[:RECALL_QUERIES]
    sample = Vectors([queries.take(drawn).half().numpy()], len(drawn))
    exact = nearest(sample, documents, size, retrieved.documents.shape[1], device).documents
    pairs = zip(exact, retrieved.documents[drawn], strict=True)
    hits = sum(np.isin(expected[expected >= 0], found).sum() for expected, found in pairs)
    return float(hits / (exact >= 0).sum())
