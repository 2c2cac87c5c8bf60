"""Many candidates to scores: each prompt tokenised once, packed without padding, the next ones read ahead."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import Protocol

import torch
from torch import Tensor

from nestling.batches.groups import Part, cut_parts, split_group
from nestling.batches.packing import AnyChunk, pad, to_chunk, token_budget
from nestling.batches.pair_prompts import PairTokenizer
from nestling.heap import trimming
from nestling.models.encoding import ahead, alone, evaluating, progress_bar

# Prompts that are tokenised together: few enough to hold their tokens, enough to fill chunks.
WINDOW = 2048


@dataclass(frozen=True)
class Group:
    """A query and the documents to be scored for it.

    Args:
        query: Its text.
        documents: Their texts.
        instruction: Its task; the model's default by default.
    """

    query: str
    documents: Sequence[str]
    instruction: str | None = None


class Scorer(Protocol):
    """What `score_groups` asks of a `Reranker`."""

    pairs: PairTokenizer
    share_prefix: bool
    training: bool

    @property
    def settings(self) -> "Limits": ...

    @property
    def device(self) -> torch.device: ...

    @property
    def padding_free(self) -> bool: ...

    def __call__(self, chunk: AnyChunk) -> Tensor: ...

    def computing(self) -> AbstractContextManager[object]: ...


class Limits(Protocol):
    """How much of a query and of a document is read."""

    @property
    def query_max_length(self) -> int: ...

    @property
    def document_max_length(self) -> int: ...


@dataclass
class ScoreTally:
    """What went into some scores, counted while they are made.

    Attributes:
        queries: Queries that were read.
        documents: Documents that were scored.
        truncated_queries: How many queries were longer than the limit.
        truncated_documents: How many documents were.
        tokens: Tokens of all prompts.
        positions: How many of them ran through the model, beginnings that were shared counted once.
    """

    queries: int = 0
    documents: int = 0
    truncated_queries: int = 0
    truncated_documents: int = 0
    tokens: int = 0
    positions: int = 0

    def __str__(self) -> str:
        return (
            f"{self.queries:,} queries, {self.truncated_queries:,} truncated; {self.documents:,} documents, "
            f"{self.truncated_documents:,} truncated; {self.positions / max(self.tokens, 1):.3f} positions a token"
        )


@dataclass(frozen=True)
class Window:
    """Some groups, tokenised.

    Args:
        chunks: Their prompts, in order.
        sizes: Documents of each group.
        tally: What was read.
    """

    chunks: list[AnyChunk]
    sizes: list[int]
    tally: ScoreTally


def score_groups(
    model: Scorer,
    groups: Sequence[Group],
    *,
    tokens_per_batch: int | None = None,
    agree: Callable[[int], int] = alone,
    progress: str | None = None,
    tally: ScoreTally | None = None,
) -> Iterator[Tensor]:
    """Logits of yes of each group's documents, [documents] float32 on the CPU, in order.

    Until the iterator is exhausted or closed, the model is in evaluation mode.

    Args:
        model: The reranker.
        groups: Queries with their documents, at least one each.
        tokens_per_batch: Positions of a chunk; by default what suits the device.
        agree: For models whose forward is a collective: the maximum of a number over all ranks, which then run equally
            many chunks. All ranks must go on to the end.
        progress: Label of a bar that shows documents a second.
        tally: Counts up.
    """
    tally = ScoreTally() if tally is None else tally
    budget = tokens_per_batch or token_budget(model.device)
    parts = list(windows(groups))
    read = partial(_read, model, budget)
    more = repeat(Window([], [], ScoreTally()), agree(len(parts)) - len(parts))
    with evaluating(model), progress_bar(sum(len(each.documents) for each in groups), progress, "document") as bar:
        for window in chain(ahead(read, parts), more):
            logits = _run(model, window.chunks, agree, bar.update)
            for name, value in vars(window.tally).items():
                setattr(tally, name, getattr(tally, name) + value)
            yield from logits.split(window.sizes)


def windows(groups: Sequence[Group]) -> Iterator[Sequence[Group]]:
    """Groups in order, of about `WINDOW` documents together."""
    start, documents = 0, 0
    for i, group in enumerate(groups):
        documents += len(group.documents)
        if documents >= WINDOW:
            yield groups[start : i + 1]
            start, documents = i + 1, 0
    if start < len(groups):
        yield groups[start:]


def _read(model: Scorer, budget: int, groups: Sequence[Group]) -> Window:
    limits, share, packed = model.settings, model.share_prefix, model.padding_free
    parts: list[Part] = []
    tally = ScoreTally(queries=len(groups))
    for group in groups:
        found = model.pairs(
            group.query,
            group.documents,
            instruction=group.instruction,
            query_max_length=limits.query_max_length,
            document_max_length=limits.document_max_length,
        )
        parts += split_group(found.ids, budget, share=share) if packed else [[ids] for ids in found.ids]
        tally.documents += len(found.ids)
        tally.truncated_queries += found.truncated_query
        tally.truncated_documents += found.truncated_documents
        tally.tokens += sum(map(len, found.ids))
    cut = cut_parts(parts, budget, share=share, packed=packed)
    chunks = [to_chunk(rows, share=share, packed=packed) for rows in cut]
    tally.positions = sum(chunk.positions for chunk in chunks)
    return Window(chunks, [len(group.documents) for group in groups], tally)


def _run(
    model: Scorer, chunks: Sequence[AnyChunk], agree: Callable[[int], int], update: Callable[[int], object]
) -> Tensor:
    """[n] float32 on the CPU; runs as many chunks as the rank that has most."""
    found = [torch.empty(0, device=model.device)]
    more = agree(len(chunks)) - len(chunks)
    with torch.no_grad(), model.computing():
        for chunk in trimming(chunks):
            found.append(logit_of(model(chunk.to(model.device))))
            update(len(chunk.lengths))
        for _ in range(more):
            model(pad([[model.pairs.pad_id]], 0).to(model.device))
    return torch.cat(found).cpu()


def logit_of(logits: Tensor) -> Tensor:
    """Logit of yes against no, [n], of what a reranker's forward gives: it itself, or log p of no and yes."""
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
