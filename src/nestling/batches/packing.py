"""Token batches with little padding, texts sorted by length, or with none, texts one after the other.

A chunk holds as many texts as a budget of positions allows. Shapes: B texts, L tokens of the longest, T of all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nestling.batches.groups import GroupChunk, Part, join_groups


def token_budget(device: torch.device) -> int:
    """Positions of a chunk: as many as keep a GPU busy, or as few as stay in a CPU's caches."""
    return 1024 if device.type == "cpu" else 16384


@dataclass(frozen=True)
class Chunk:
    """Texts of similar length.

    Args:
        input_ids: [B, L] int64, padded on the right.
        lengths: [B] int64, tokens of each text.
        padded: Whether any position is padding; kept, since asking a GPU would wait for it.
    """

    input_ids: Tensor
    lengths: Tensor
    padded: bool

    @property
    def positions(self) -> int:
        """Positions that run through the model, padding included."""
        return self.input_ids.numel()

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device) -> "Chunk":
        return Chunk(self.input_ids.to(device), self.lengths.to(device), self.padded)

    def halves(self) -> "list[Chunk]":
        """The longer texts and the shorter ones, apart; itself if it is a single text."""
        middle = len(self.lengths) // 2
        parts = [(self.input_ids[:middle], self.lengths[:middle]), (self.input_ids[middle:], self.lengths[middle:])]
        return [Chunk(ids[:, : int(lengths.max())], lengths, self.padded) for ids, lengths in parts if len(lengths)]


@dataclass(frozen=True)
class PackedChunk:
    """Texts one after the other in one row, for causal models with attention that knows where each begins.

    Args:
        input_ids: [1, T] int64.
        lengths: [B] int64, tokens of each text.
        position_ids: [1, T] int64, from 0 in each text.
        cu_seqlens: [B + 1] int32, where each text begins, and the end.
        longest: Tokens of the longest text; kept, since asking a GPU would wait for it.
    """

    input_ids: Tensor
    lengths: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    longest: int

    @property
    def positions(self) -> int:
        """Positions that run through the model."""
        return self.input_ids.numel()

    def attention_arguments(self) -> dict[str, Any]:
        """What `nestling.models.attention.varlen_attention` and the model have to know."""
        return {"position_ids": self.position_ids, "cu_seqlens": self.cu_seqlens, "longest": self.longest}

    def to(self, device: torch.device) -> "PackedChunk":
        return PackedChunk(
            self.input_ids.to(device),
            self.lengths.to(device),
            self.position_ids.to(device),
            self.cu_seqlens.to(device),
            self.longest,
        )

    def halves(self) -> "list[PackedChunk]":
        texts = self.input_ids[0].split(self.lengths.tolist())
        middle = len(texts) // 2
        return [concatenate([text.tolist() for text in half]) for half in (texts[:middle], texts[middle:]) if half]


TextChunk = Chunk | PackedChunk
AnyChunk = TextChunk | GroupChunk


@dataclass(frozen=True)
class TokenBatch:
    """Texts in chunks, longest first.

    Args:
        chunks: The texts by length.
        position: [n] int64, where each text of the caller stands in the concatenated chunks.
        tokens: Tokens of all texts, without padding.
    """

    chunks: Sequence[TextChunk]
    position: Tensor
    tokens: int

    def to(self, device: torch.device) -> "TokenBatch":
        return TokenBatch([chunk.to(device) for chunk in self.chunks], self.position.to(device), self.tokens)

    def ids(self) -> list[list[int]]:
        """Token ids of the texts, in the caller's order."""
        rows: list[list[int]] = []
        for chunk in self.chunks:
            lengths = chunk.lengths.tolist()
            parts: Sequence[Tensor] = (
                chunk.input_ids[0].split(lengths)
                if isinstance(chunk, PackedChunk)
                else [row[:length] for row, length in zip(chunk.input_ids, lengths, strict=True)]
            )
            rows += [part.tolist() for part in parts]
        return [rows[place] for place in self.position.tolist()]

    def halved(self) -> "TokenBatch":
        """The same texts in chunks of half as many."""
        return TokenBatch([half for chunk in self.chunks for half in chunk.halves()], self.position, self.tokens)


def pack(ids: Sequence[Sequence[int]], chunk_tokens: int, pad_id: int, *, padding_free: bool = False) -> TokenBatch:
    """Sort texts by length and cut them into chunks of at most `chunk_tokens` positions, padding included.

    A text longer than the budget makes a chunk of its own. Sorting is stable, so that equal inputs give equal chunks.
    With `padding_free` the chunks are packed.
    """
    lengths = torch.tensor([len(each) for each in ids], dtype=torch.int64)
    order = torch.argsort(lengths, descending=True, stable=True)
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order))
    cut = by_tokens if padding_free else by_budget
    rows = cut(order.tolist(), lengths.tolist(), chunk_tokens)
    texts = ([ids[i] for i in each] for each in rows)
    chunks = [concatenate(each) if padding_free else pad(each, pad_id) for each in texts]
    return TokenBatch(chunks, position, int(lengths.sum()))


def by_tokens(order: list[int], lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Cut `order` so that the tokens of a part stay within `budget`."""
    part: list[int] = []
    tokens = 0
    for i in order:
        if part and tokens + lengths[i] > budget:
            yield part
            part, tokens = [], 0
        part.append(i)
        tokens += lengths[i]
    if part:
        yield part


def concatenate(ids: Sequence[Sequence[int]]) -> PackedChunk:
    """Texts one after the other."""
    lengths = torch.tensor([len(each) for each in ids], dtype=torch.int64)
    cu_seqlens = torch.zeros(len(ids) + 1, dtype=torch.int32)
    cu_seqlens[1:] = lengths.cumsum(dim=0)
    return PackedChunk(
        input_ids=torch.tensor([token for each in ids for token in each], dtype=torch.int64)[None],
        lengths=lengths,
        position_ids=torch.cat([torch.arange(len(each)) for each in ids])[None],
        cu_seqlens=cu_seqlens,
        longest=int(lengths.max()),
    )


def by_budget(order: list[int], lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Cut `order`, longest first, so that rows x longest stays within `budget`."""
    starts = [0]
    for i in range(len(order)):
        if i > starts[-1] and (i + 1 - starts[-1]) * lengths[order[starts[-1]]] > budget:
            starts.append(i)
    for start, end in pairwise([*starts, len(order)]):
        yield order[start:end]


def pad(ids: Sequence[Sequence[int]], pad_id: int) -> Chunk:
    """Pad on the right to the longest text."""
    lengths = torch.tensor([len(each) for each in ids], dtype=torch.int64)
    input_ids = torch.full((len(ids), int(lengths.max())), pad_id, dtype=torch.int64)
    for row, each in enumerate(ids):
        input_ids[row, : len(each)] = torch.tensor(each, dtype=torch.int64)
    return Chunk(input_ids, lengths, padded=int(lengths.min()) < input_ids.shape[1])


def to_chunk(groups: Sequence[Part], *, share: bool, packed: bool) -> AnyChunk:
    """Prompts of some groups in one chunk, in order; padded for attention that cannot read packed ones."""
    return join_groups(groups, share=share) if packed else pad([prompt for part in groups for prompt in part], 0)
