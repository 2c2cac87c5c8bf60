"""Evaluate an embedding model on a retrieval set, at any dimension and precision, over any number of ranks."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nestling.distributed.ranks import rank_and_world
from nestling.models.embedder import Embedder, Kind
from nestling.models.encoding import EncodingStats, encode_texts, single_process
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.distinct import Distinct, Seen, find_distinct
from nestling.retrieval.metrics import means
from nestling.retrieval.ranks import largest, reduce_sum, rows_of_rank, sum_stats
from nestling.retrieval.search import DOCUMENT_BLOCK, EncodedSet, place


def evaluate_embedder(
    embedder: Embedder,
    retrieval_set: RetrievalSet,
    dims: Sequence[int],
    *,
    query_max_length: int,
    document_max_length: int,
    instruction: str | None = None,
    tokens_per_batch: int | None = None,
    equal_forwards: bool = False,
    progress: bool = False,
) -> dict[int, dict[str, float]]:
    """Mean nDCG@10, MRR@10, Recall@100 and MAP@100 at each dimension, {dim: {metric: value}}, the same on every rank.

    With torch.distributed initialised all ranks must call it with the same arguments (but for `progress`); they share
    the encoding and search. `equal_forwards` is for models whose forward is a collective (ZeRO-3, FSDP2): the ranks run
    equally many, whatever their share.

    Raises:
        ValueError: The model gave embeddings that are not finite (on every rank).
    """
    encoded = encode_set(
        embedder,
        retrieval_set,
        query_max_length=query_max_length,
        document_max_length=document_max_length,
        instruction=instruction,
        tokens_per_batch=tokens_per_batch,
        equal_forwards=equal_forwards,
        progress=progress,
    )
    return {dim: means(place(encoded, dim)) for dim in dims}


def encode_set(
    embedder: Embedder,
    retrieval_set: RetrievalSet,
    *,
    query_max_length: int,
    document_max_length: int,
    instruction: str | None = None,
    tokens_per_batch: int | None = None,
    equal_forwards: bool = False,
    progress: bool = False,
) -> EncodedSet:
    """Encode queries and documents, each rank a part of both; arguments and errors as in `evaluate_embedder`."""
    device = embedder.device
    max_over_ranks = partial(largest, device=device) if equal_forwards else single_process

    def encode(texts: Sequence[str], kind: Kind, max_length: int) -> tuple[Tensor, Distinct, EncodingStats]:
        label = f"{retrieval_set.name}: {'queries' if kind == 'query' else 'documents'}"
        return encode_share(
            embedder,
            texts,
            prefix=embedder.prefix(kind, instruction),
            max_length=max_length,
            tokens_per_batch=tokens_per_batch,
            max_over_ranks=max_over_ranks,
            progress=label if progress else None,
        )

    rank, _ = rank_and_world()
    own, distinct, query_stats = encode(retrieval_set.queries, "query", query_max_length)
    queries = torch.zeros(len(distinct.copies), embedder.dim)
    queries[distinct.bounds[rank] : distinct.bounds[rank + 1]] = own
    queries = reduce_sum(queries, device)[torch.from_numpy(distinct.which)]
    documents, distinct, document_stats = encode(retrieval_set.documents, "document", document_max_length)
    require_finite(queries, documents, device)

    mine = slice(distinct.bounds[rank], distinct.bounds[rank + 1])
    offsets = np.cumsum([0, *(len(rows) for rows in retrieval_set.relevant)])
    relevant = distinct.which[np.concatenate(retrieval_set.relevant)]
    return EncodedSet(
        queries=queries,
        documents=documents,
        copies=torch.from_numpy(distinct.copies[mine]),
        which=distinct.which,
        first=int(mine.start),
        block=min(DOCUMENT_BLOCK, int(np.diff(distinct.bounds).max())),
        offsets=torch.from_numpy(offsets),
        relevant=torch.from_numpy(relevant),
        gains=np.concatenate(retrieval_set.gains),
        device=device,
        query_stats=query_stats,
        document_stats=document_stats,
    )


def encode_share(
    embedder: Embedder,
    texts: Sequence[str],
    *,
    prefix: str,
    max_length: int,
    tokens_per_batch: int | None,
    max_over_ranks: Callable[[int], int],
    progress: str | None,
) -> tuple[Tensor, Distinct, EncodingStats]:
    """Tokenise and encode this rank's share, equal texts once: [e, D] float32; then what is equal over all ranks.

    The stats are those of all ranks, their seconds until the last of them was done.
    """
    started = time.perf_counter()
    mine, seen, stats = rows_of_rank(len(texts)), Seen(), EncodingStats()
    embeddings = torch.empty(len(mine), embedder.dim)
    for rows, block in encode_texts(
        embedder,
        texts,
        prefix=prefix,
        max_length=max_length,
        rows=mine,
        tokens_per_batch=tokens_per_batch,
        select=seen.fresh,
        max_over_ranks=max_over_ranks,
        progress=progress,
        stats=stats,
    ):
        embeddings[rows] = block
    identities = torch.zeros(len(texts), dtype=torch.int64)
    identities[mine.start :: mine.step] = torch.from_numpy(seen.identities)
    distinct = find_distinct(reduce_sum(identities, embedder.device).numpy(), rank_and_world()[1])
    total = sum_stats(stats, embedder.device)
    total.seconds = time.perf_counter() - started
    return embeddings[: stats.encoded], distinct, total


def require_finite(queries: Tensor, documents: Tensor, device: torch.device) -> None:
    """Raise ValueError on every rank if an embedding of any rank holds NaN or infinity."""
    bad = torch.tensor([int((~documents.isfinite()).any(dim=1).sum())])
    in_documents = int(reduce_sum(bad, device))
    in_queries = int((~queries.isfinite()).any(dim=1).sum())
    if in_documents or in_queries:
        raise ValueError(
            f"the model gave NaN or infinity for {in_queries} queries and {in_documents} distinct documents; "
            "its weights may have diverged, or need float32 instead of a shorter type"
        )
