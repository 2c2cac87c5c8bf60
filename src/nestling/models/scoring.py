"""Scores of many candidates: while the model scores the prompts of one window, a thread tokenises the next window."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import Protocol

import torch
from torch import Tensor

from nestling.batches.packing import AnyChunk, pad, prompts_to_chunk, token_budget
from nestling.batches.pair_prompts import Pairs, TokenizedPairs
from nestling.batches.prefix_sharing import PromptGroup, chunk_groups, split_group
from nestling.heap import trimming
from nestling.models.encoding import evaluating, prefetch, progress_bar, single_process

# Prompts of a window: few enough to hold their tokens in memory, enough to fill chunks.
WINDOW = 2048


@dataclass(frozen=True)
class Group:
    """A query and the documents to score for it.

    Args:
        query: Text of the query.
        documents: Texts of the documents.
        instruction: The query's instruction; None for the model's default.
    """

    query: str
    documents: Sequence[str]
    instruction: str | None = None


class Scorer(Protocol):
    """What `score_groups` uses of a `Reranker`."""

    pairs: Pairs
    share_prefix: bool
    training: bool

    @property
    def settings(self) -> "LengthLimits": ...

    @property
    def device(self) -> torch.device: ...

    @property
    def padding_free(self) -> bool: ...

    def __call__(self, chunk: AnyChunk) -> Tensor: ...

    def computing(self) -> AbstractContextManager[object]: ...


class LengthLimits(Protocol):
    """Maximum lengths of a query and of a document, in tokens."""

    @property
    def query_max_length(self) -> int: ...

    @property
    def document_max_length(self) -> int: ...


@dataclass
class ScoringStats:
    """Counts of scored documents and their tokens; `score_groups` adds to them.

    Attributes:
        queries: Queries with scored documents.
        documents: Documents that were scored.
        truncated_queries: Queries that were truncated.
        truncated_documents: Documents that were truncated.
        tokens: Tokens of all prompts.
        positions: Positions that ran through the model: padding included, and a shared prefix once.
    """

    queries: int = 0
    documents: int = 0
    truncated_queries: int = 0
    truncated_documents: int = 0
    tokens: int = 0
    positions: int = 0

    def count(self, pairs: TokenizedPairs) -> None:
        """Add the documents of a query and their tokens."""
        self.documents += len(pairs.ids)
        self.truncated_queries += pairs.truncated_query
        self.truncated_documents += pairs.truncated_documents
        self.tokens += sum(map(len, pairs.ids))

    def __str__(self) -> str:
        return (
            f"{self.queries:,} queries, {self.truncated_queries:,} truncated; {self.documents:,} documents, "
            f"{self.truncated_documents:,} truncated; {self.positions / max(self.tokens, 1):.3f} positions a token"
        )


@dataclass(frozen=True)
class TokenizedGroups:
    """A window of groups with their tokenised prompts.

    Args:
        chunks: The prompts, in order.
        sizes: Number of documents of each group.
        stats: Counts of this window.
    """

    chunks: list[AnyChunk]
    sizes: list[int]
    stats: ScoringStats


def score_groups(
    model: Scorer,
    groups: Sequence[Group],
    *,
    tokens_per_batch: int | None = None,
    max_over_ranks: Callable[[int], int] = single_process,
    progress: str | None = None,
    stats: ScoringStats | None = None,
) -> Iterator[Tensor]:
    """Logits of the documents of each group, in order.

    The model is in evaluation mode until the iterator is exhausted or closed.

    Args:
        model: The reranker.
        groups: Queries with their documents, at least one each.
        tokens_per_batch: Positions of a chunk; by default what suits the device.
        max_over_ranks: Returns the maximum of a number over all ranks. Needed for models whose forward pass is a
            collective (sharded parameters): all ranks then run equally many chunks, and all must exhaust the iterator.
        progress: Label of a progress bar; none by default.
        stats: Counts to add to.

    Yields:
        The logits of yes against no, [documents] float32 on the CPU.
    """
    stats = ScoringStats() if stats is None else stats
    tokenize = partial(_tokenize, model, tokens_per_batch or token_budget(model.device))
    parts = list(windows(groups))
    # Windows without groups, for a rank that has fewer windows than others.
    empty = repeat(TokenizedGroups([], [], ScoringStats()), max_over_ranks(len(parts)) - len(parts))
    with evaluating(model), progress_bar(sum(len(each.documents) for each in groups), progress, "document") as bar:
        for window in chain(prefetch(tokenize, parts), empty):
            logits = _run(model, window.chunks, max_over_ranks, bar.update)
            for name, value in vars(window.stats).items():
                setattr(stats, name, getattr(stats, name) + value)
            yield from logits.split(window.sizes)


def windows(groups: Sequence[Group]) -> Iterator[Sequence[Group]]:
    """Consecutive groups with about `WINDOW` documents together."""
    start, documents = 0, 0
    for i, group in enumerate(groups):
        documents += len(group.documents)
        if documents >= WINDOW:
            yield groups[start : i + 1]
            start, documents = i + 1, 0
    if start < len(groups):
        yield groups[start:]


def _tokenize(model: Scorer, chunk_tokens: int, groups: Sequence[Group]) -> TokenizedGroups:
    limits, share_prefix, padding_free = model.settings, model.share_prefix, model.padding_free
    parts: list[PromptGroup] = []
    stats = ScoringStats(queries=len(groups))
    for group in groups:
        tokenized = model.pairs(
            group.query,
            group.documents,
            instruction=group.instruction,
            query_max_length=limits.query_max_length,
            document_max_length=limits.document_max_length,
        )
        if padding_free:
            parts += split_group(tokenized.ids, chunk_tokens, share_prefix=share_prefix)
        else:
            parts += [[ids] for ids in tokenized.ids]
        stats.count(tokenized)
    chunks = [
        prompts_to_chunk(chunk, share_prefix=share_prefix, padding_free=padding_free)
        for chunk in chunk_groups(parts, chunk_tokens, share_prefix=share_prefix, padding_free=padding_free)
    ]
    stats.positions = sum(chunk.positions for chunk in chunks)
    return TokenizedGroups(chunks, [len(group.documents) for group in groups], stats)


def _run(
    model: Scorer, chunks: Sequence[AnyChunk], max_over_ranks: Callable[[int], int], update: Callable[[int], object]
) -> Tensor:
    """Logits of a window, [n] float32 on the CPU; runs as many chunks as the rank that has most."""
    logits = [torch.empty(0, device=model.device)]
    missing = max_over_ranks(len(chunks)) - len(chunks)
    with torch.no_grad(), model.computing():
        for chunk in trimming(chunks):
            logits.append(logit_of(model(chunk.to(model.device))))
            update(len(chunk.lengths))
        for _ in range(missing):
            model(pad([[model.pairs.pad_id]], 0).to(model.device))
    return torch.cat(logits).cpu()


def logit_of(output: Tensor) -> Tensor:
    """Logit of yes against no, [n], from a reranker's output: that logit, [n, 1], or log p of no and yes, [n, 2]."""
    return output[:, 0] if output.shape[1] == 1 else output[:, 1] - output[:, 0]
