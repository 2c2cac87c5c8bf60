"""Evaluate an embedding model on a retrieval set, at any dimension and precision, over any number of ranks."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from nestling.embedder import Embedder, Kind
from nestling.metrics import Integers, means
from nestling.records import RetrievalSet
from nestling.retrieval.ranks import largest_share, reduce_sum, share
from nestling.retrieval.search import DOCUMENT_BLOCK, EncodedSet, place

TOKENIZE_AT_ONCE = 4096


def evaluate_embedder(
    embedder: Embedder,
    retrieval_set: RetrievalSet,
    dims: Sequence[int],
    *,
    query_max_length: int,
    document_max_length: int,
    instruction: str | None = None,
    tokens_per_batch: int | None = None,
    progress: bool = False,
) -> dict[int, dict[str, float]]:
    """Mean nDCG@10, MRR@10, Recall@100 and MAP@100 at each dimension, {dim: {metric: value}}, the same on every rank.

    With torch.distributed initialised all ranks must call it with the same arguments; they share the encoding and
    search.

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
    progress: bool = False,
) -> EncodedSet:
    """Encode queries and documents, each rank a part of both; arguments and errors as in `evaluate_embedder`.

    Texts that are the same to the model (equal tokens after truncation) are encoded once and so tie exactly, instead of
    being ordered by rounding errors that depend on the batch.
    """
    device = embedder.device

    def distinct(texts: Sequence[str], kind: Kind, max_length: int) -> Distinct:
        return find_distinct(embedder, texts, kind, max_length, instruction)

    def encode(texts: Sequence[str], rows: Integers, kind: Kind, max_length: int) -> Tensor:
        return embedder.encode(
            Rows(texts, rows),
            kind=kind,
            max_length=max_length,
            instruction=instruction if kind == "query" else None,
            tokens_per_batch=tokens_per_batch,
            progress=f"{retrieval_set.name}: {'queries' if kind == 'query' else 'documents'}" if progress else None,
        )

    query_texts = distinct(retrieval_set.queries, "query", query_max_length)
    document_texts = distinct(retrieval_set.documents, "document", document_max_length)
    mine = share(len(query_texts.rows))
    queries = torch.zeros(len(query_texts.rows), embedder.dim)
    queries[mine] = encode(retrieval_set.queries, query_texts.rows[mine], "query", query_max_length)
    queries = reduce_sum(queries, device)[torch.from_numpy(query_texts.which)]
    mine = share(len(document_texts.rows))
    documents = encode(retrieval_set.documents, document_texts.rows[mine], "document", document_max_length)
    require_finite(queries, documents, device)

    offsets = np.cumsum([0, *(len(rows) for rows in retrieval_set.relevant)])
    relevant = document_texts.which[np.concatenate(retrieval_set.relevant)]
    return EncodedSet(
        queries=queries,
        documents=documents,
        copies=torch.from_numpy(document_texts.copies[mine]),
        first=mine.start,
        block=min(DOCUMENT_BLOCK, largest_share(len(document_texts.rows))),
        offsets=torch.from_numpy(offsets),
        relevant=torch.from_numpy(relevant),
        gains=np.concatenate(retrieval_set.gains),
        device=device,
        truncated_queries=query_texts.truncated,
        truncated_documents=document_texts.truncated,
    )


@dataclass(frozen=True)
class Distinct:
    """Which texts are the same to the model.

    Attributes:
        rows: [u] int64, the first text of each kind, ascending.
        which: [n] int64, for every text the index into `rows` of its kind.
        copies: [u] int64, how many texts of each kind there are.
        truncated: Texts that were longer than the limit.
    """

    rows: Integers
    which: Integers
    copies: Integers
    truncated: int


def find_distinct(
    embedder: Embedder, texts: Sequence[str], kind: Kind, max_length: int, instruction: str | None
) -> Distinct:
    """Tokenise this rank's share of the texts, and find those with equal tokens among the texts of all ranks."""
    prefix = embedder.prefix(kind, instruction)
    identities = torch.zeros(len(texts) + 1, dtype=torch.int64)  # the last counts truncated texts
    mine = share(len(texts))
    for start in range(mine.start, mine.stop, TOKENIZE_AT_ONCE):
        window = texts[start : min(start + TOKENIZE_AT_ONCE, mine.stop)]
        tokenized = embedder.text_tokenizer([prefix + text for text in window], max_length)
        identities[start : start + len(window)] = torch.tensor([token_identity(ids) for ids in tokenized.ids])
        identities[-1] += tokenized.truncated
    identities = reduce_sum(identities, embedder.device)
    _, rows, which, copies = np.unique(
        identities[:-1].numpy(), return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(rows)
    return Distinct(rows[order], np.argsort(order)[which], copies[order], int(identities[-1]))


def token_identity(ids: Sequence[int]) -> int:
    """A signed 64-bit hash of token ids, the same in every process."""
    digest = hashlib.blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


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


class Rows(Sequence[str]):
    """Some rows of a sequence of texts, read only when asked for."""

    def __init__(self, texts: Sequence[str], rows: Integers) -> None:
        self.texts = texts
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return (self.texts[row] for row in self.rows.tolist())

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.texts[row] for row in self.rows[index].tolist()]
        return self.texts[int(self.rows[index])]
