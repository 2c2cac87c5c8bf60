"""The embeddings of a retrieval set, float32, in the cache and memory-mapped: computed once for all stores and runs.

Shape legend: Q queries, N documents of the collection, n distinct ones, D width of the embeddings.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xxhash

from nestling.mining.array_cache import ArrayCache, cache_folder
from nestling.mining.fingerprints import embedder_fingerprint
from nestling.models.embedder import Embedder
from nestling.models.encoding import EncodingStats
from nestling.records.record import text_id
from nestling.records.retrieval_set import RetrievalSet
from nestling.records.store import digest
from nestling.retrieval.distinct import DistinctTexts
from nestling.retrieval.evaluation import encode_set, make_encoded_set
from nestling.retrieval.metrics import Integers
from nestling.retrieval.search import EncodedSet
from nestling.stores.store import Vectors

ARRAYS = ("queries", "documents", "distinct_index")


def embed_once(
    embedder: Embedder,
    data: RetrievalSet,
    *,
    query_max_length: int | None,
    document_max_length: int | None,
    instruction: str | None,
    progress: bool,
) -> EncodedSet:
    """What `encode_set` returns, from the cache where an earlier run has left it; one process."""
    prompts = [embedder.prefix("query", instruction), embedder.prefix("document", instruction)]
    read = [*prompts, query_max_length, document_max_length, embedder.max_seq_length]
    texts = [texts_digest(data.queries), texts_digest(data.documents)]
    cache = ArrayCache(cache_folder(data.name, digest([embedder_fingerprint(embedder), *read, *texts])))
    arrays = [array for name in ARRAYS if (array := cache.open(name)) is not None]
    if len(arrays) == len(ARRAYS):
        print(f"{data.name}: embeddings of an earlier run, in {cache.folder}")
        return restored(data, embedder.device, *arrays)
    encoded = encode_set(
        embedder,
        data,
        query_max_length=query_max_length,
        document_max_length=document_max_length,
        instruction=instruction,
        progress=progress,
    )
    print(f"{data.name}: queries: {encoded.query_stats}\n{data.name}: documents: {encoded.document_stats}")
    arrays = [encoded.queries.numpy(), encoded.documents.numpy(), encoded.distinct_index]
    for name, array in zip(ARRAYS, arrays, strict=True):
        cache.write(name, array)
    return encoded


def restored(
    data: RetrievalSet, device: torch.device, queries: Vectors, documents: Vectors, index: Integers
) -> EncodedSet:
    """The set of [Q, D] queries and [n, D] distinct documents; `index` [N] says which of them each document is."""
    distinct = DistinctTexts(index, np.bincount(index), np.array([0, len(documents)]))
    stats = (EncodingStats(texts=len(queries)), EncodingStats(texts=len(index)))
    return make_encoded_set(data, torch.from_numpy(queries), torch.from_numpy(documents), distinct, stats, device)


def texts_digest(texts: Sequence[str]) -> str:
    """A digest of texts in their order."""
    identities = np.fromiter(map(text_id, texts), dtype=np.int64, count=len(texts))
    return xxhash.xxh3_128_hexdigest(identities.tobytes())
