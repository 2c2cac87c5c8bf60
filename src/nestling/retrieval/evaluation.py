"""Encode a retrieval set with an embedding model, split over any number of processes, and measure retrieval with it."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nestling.console import say
from nestling.distributed.ranks import rank_and_world
from nestling.models.embedder import Embedder
from nestling.models.encoding import EncodingStats, encode_texts, single_process
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.collectives import indices_of_rank, largest_over_ranks, reduce_sum, sum_stats
from nestling.retrieval.distinct import DistinctTexts, SeenTexts, find_distinct
from nestling.retrieval.metrics import mean_metrics
from nestling.retrieval.search import DOCUMENT_BLOCK, EncodedSet, relevant_ranks


def evaluate_embedder(
    embedder: Embedder,
    retrieval_set: RetrievalSet,
    dims: Sequence[int],
    *,
    query_max_length: int | None = None,
    document_max_length: int | None = None,
    instruction: str | None = None,
    tokens_per_batch: int | None = None,
    equal_forwards: bool = False,
    progress: bool = False,
) -> dict[int, dict[str, float]]:
    """Mean nDCG@10, MRR@10, Recall@100 and MAP@100 at each dimension, {dim: {metric: value}}, the same on every rank.

    All ranks of torch.distributed must call it with the same arguments (but for `progress`) and share the work.

    Args:
        embedder: The model.
        retrieval_set: Queries, documents and relevance judgements.
        dims: Dimensions to which embeddings are truncated.
        query_max_length, document_max_length: Tokens of a text, prompt and special tokens included; by default the
            model's own `max_seq_length`.
        instruction: Task of the queries; by default the model's own query prompt.
        tokens_per_batch: Positions of a chunk, padding included; by default what suits the device.
        equal_forwards: For models whose forward is a collective (ZeRO-3, FSDP2): the ranks run equally many.
        progress: Show a progress bar.

    Raises:
        ValueError: The model gave embeddings that are not finite; raised on every rank.
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
    if progress:
        say_truncated(embedder, retrieval_set, encoded, (query_max_length, document_max_length))
    return {dim: mean_metrics(relevant_ranks(encoded, dim)) for dim in dims}


def say_truncated(
    embedder: Embedder, retrieval_set: RetrievalSet, encoded: EncodedSet, limits: tuple[int | None, int | None]
) -> None:
    """Say how many queries and documents were cut to their limits, if any were; None is the model's own limit."""
    queries, documents = encoded.query_stats.truncated, encoded.document_stats.truncated
    if queries + documents:
        limit = " and ".join(f"{each or embedder.max_seq_length:,}" for each in limits)
        say(f"{retrieval_set.name}: {queries:,} queries and {documents:,} documents were cut, to {limit} tokens")


def encode_set(
    embedder: Embedder,
    retrieval_set: RetrievalSet,
    *,
    query_max_length: int | None = None,
    document_max_length: int | None = None,
    instruction: str | None = None,
    tokens_per_batch: int | None = None,
    equal_forwards: bool = False,
    progress: bool = False,
) -> EncodedSet:
    """Encode queries and documents, each rank a part of both; arguments and errors as in `evaluate_embedder`."""
    device, name = embedder.device, retrieval_set.name
    encode = partial(
        encode_part,
        embedder,
        tokens_per_batch=tokens_per_batch,
        max_over_ranks=partial(largest_over_ranks, device=device) if equal_forwards else single_process,
    )
    query_embeddings, distinct_queries, query_stats = encode(
        retrieval_set.queries,
        prefix=embedder.prefix("query", instruction),
        max_length=query_max_length or embedder.max_seq_length,
        progress=f"{name}: queries" if progress else None,
    )
    queries = gather_embeddings(query_embeddings, distinct_queries, device)
    documents, distinct, document_stats = encode(
        retrieval_set.documents,
        prefix=embedder.prefix("document", instruction),
        max_length=document_max_length or embedder.max_seq_length,
        progress=f"{name}: documents" if progress else None,
    )
    require_finite(queries, documents, device)
    return make_encoded_set(retrieval_set, queries, documents, distinct, (query_stats, document_stats), device)


def make_encoded_set(
    retrieval_set: RetrievalSet,
    queries: Tensor,
    documents: Tensor,
    distinct: DistinctTexts,
    stats: tuple[EncodingStats, EncodingStats],
    device: torch.device,
) -> EncodedSet:
    """Put together all query embeddings, [Q, D], and the distinct documents that this rank encoded, [n, D].

    `distinct` is of the documents; `stats` are of queries and documents.
    """
    rank, _ = rank_and_world()
    mine = slice(distinct.bounds[rank], distinct.bounds[rank + 1])
    offsets = np.cumsum([0, *map(len, retrieval_set.relevant)])
    relevant = distinct.encoded_index[np.concatenate(retrieval_set.relevant)]
    own = np.where(retrieval_set.own_documents < 0, -1, distinct.encoded_index[retrieval_set.own_documents])
    return EncodedSet(
        queries=queries,
        documents=documents,
        copies=torch.from_numpy(distinct.copies[mine]),
        distinct_index=distinct.encoded_index,
        first_document=int(mine.start),
        block_size=min(DOCUMENT_BLOCK, int(np.diff(distinct.bounds).max())),
        offsets=torch.from_numpy(offsets),
        relevant=torch.from_numpy(relevant),
        gains=np.concatenate(retrieval_set.gains),
        own=torch.from_numpy(own),
        device=device,
        query_stats=stats[0],
        document_stats=stats[1],
    )


def encode_part(
    embedder: Embedder,
    texts: Sequence[str],
    *,
    prefix: str,
    max_length: int,
    tokens_per_batch: int | None,
    max_over_ranks: Callable[[int], int],
    progress: str | None,
) -> tuple[Tensor, DistinctTexts, EncodingStats]:
    """Tokenise and encode every W-th text, on this rank, texts with equal tokens once.

    Returns:
        Embeddings of the distinct texts of this rank, [e, D] float32 on the CPU; which of all texts are equal; and
        statistics summed over all ranks, with the seconds until the last rank was done. Other arguments are those of
        `encode_texts`.
    """
    started = time.perf_counter()
    mine, seen, stats = indices_of_rank(len(texts)), SeenTexts(), EncodingStats()
    embeddings = torch.empty(len(mine), embedder.dim)
    for part, block in encode_texts(
        embedder,
        texts,
        prefix=prefix,
        max_length=max_length,
        rows=mine,
        tokens_per_batch=tokens_per_batch,
        select=seen.select_new,
        max_over_ranks=max_over_ranks,
        progress=progress,
        stats=stats,
    ):
        embeddings[part] = block
    hashes = torch.zeros(len(texts), dtype=torch.int64)
    hashes[mine.start :: mine.step] = torch.from_numpy(seen.hashes)
    distinct = find_distinct(reduce_sum(hashes, embedder.device).numpy(), rank_and_world()[1])
    total = sum_stats(stats, embedder.device)
    total.seconds = time.perf_counter() - started
    return embeddings[: stats.encoded], distinct, total


def gather_embeddings(own: Tensor, distinct: DistinctTexts, device: torch.device) -> Tensor:
    """Collect the embeddings of all ranks, repeated for equal texts: [e, D] of this rank to [n, D] of all."""
    rank, _ = rank_and_world()
    encoded = torch.zeros(len(distinct.copies), own.shape[1])
    encoded[distinct.bounds[rank] : distinct.bounds[rank + 1]] = own
    return reduce_sum(encoded, device)[torch.from_numpy(distinct.encoded_index)]


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
