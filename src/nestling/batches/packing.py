"""Token batches in chunks: padded, with texts of similar length together, or packed one after the other.

A chunk holds as many texts as fit into a given number of positions (tokens, with padding where there is any).

Shapes: B texts of a chunk, L tokens of the longest of them, T tokens of all of them, n texts of a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nestling.batches.prefix_sharing import PromptGroup, SharedPrefixChunk, pack_groups


def token_budget(device: torch.device) -> int:
    """The default size of a chunk in positions: enough to keep a GPU busy, few enough to stay in a CPU's caches."""
    return 1024 if device.type == "cpu" else 16384


@dataclass(frozen=True)
class Chunk:
    """Texts of similar length, padded.

    Args:
        input_ids: [B, L] int64, padded on the right.
        lengths: [B] int64, tokens of each text.
        padded: Whether any position is padding; a Python bool, since reading it from `lengths` would wait for the GPU.
        pooled_from: [B] int64, the first position of each text that pooling reads; None for all positions.
    """

    input_ids: Tensor
    lengths: Tensor
    padded: bool
    pooled_from: Tensor | None = None

    @property
    def positions(self) -> int:
        """Positions that run through the model, padding included."""
        return self.input_ids.numel()

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest text."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device) -> "Chunk":
        return Chunk(self.input_ids.to(device), self.lengths.to(device), self.padded, moved(self.pooled_from, device))

    def halves(self) -> "list[Chunk]":
        """Two chunks, of the longer and of the shorter texts; a single text stays one chunk."""
        middle = len(self.lengths) // 2
        return [self._rows(part) for part in (slice(middle), slice(middle, None)) if len(self.lengths[part])]

    def _rows(self, rows: slice) -> "Chunk":
        lengths = self.lengths[rows]
        pooled_from = None if self.pooled_from is None else self.pooled_from[rows]
        return Chunk(self.input_ids[rows, : int(lengths.max())], lengths, self.padded, pooled_from)


@dataclass(frozen=True)
class PackedChunk:
    """Texts one after the other in one row, for causal models whose attention reads `cu_seqlens`.

    Args:
        input_ids: [1, T] int64.
        lengths: [B] int64, tokens of each text.
        position_ids: [1, T] int64, from 0 in each text.
        cu_seqlens: [B + 1] int32, cumulative lengths, as in FlashAttention's variable-length functions.
        max_seqlen: Tokens of the longest text; a Python int, since reading it from `lengths` would wait for the GPU.
        pooled_from: [B] int64, the first position of each text that pooling reads; None for all positions.
    """

    input_ids: Tensor
    lengths: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    pooled_from: Tensor | None = None

    @property
    def positions(self) -> int:
        """Positions that run through the model."""
        return self.input_ids.numel()

    def attention_arguments(self) -> dict[str, Any]:
        """Keyword arguments for the model and `nestling.models.attention.varlen_attention`."""
        return {"position_ids": self.position_ids, "cu_seqlens_q": self.cu_seqlens, "max_seqlen_q": self.max_seqlen}

    def to(self, device: torch.device) -> "PackedChunk":
        return PackedChunk(
            self.input_ids.to(device),
            self.lengths.to(device),
            self.position_ids.to(device),
            self.cu_seqlens.to(device),
            self.max_seqlen,
            moved(self.pooled_from, device),
        )

    def halves(self) -> "list[PackedChunk]":
        """Two chunks, of the first and of the second half of the texts; a single text stays one chunk."""
        texts = [text.tolist() for text in self.input_ids[0].split(self.lengths.tolist())]
        pooled_from = None if self.pooled_from is None else self.pooled_from.tolist()
        middle = len(texts) // 2
        return [
            concatenate(texts[part], None if pooled_from is None else pooled_from[part]).to(self.input_ids.device)
            for part in (slice(middle), slice(middle, None))
            if texts[part]
        ]


def moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


TextChunk = Chunk | PackedChunk
AnyChunk = TextChunk | SharedPrefixChunk


@dataclass(frozen=True)
class TokenBatch:
    """Texts in chunks, the longest texts first.

    Args:
        chunks: The texts, sorted by length.
        position: [n] int64, the index of each text of the caller in the concatenated chunks.
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
        return [rows[i] for i in self.position.tolist()]

    def halved(self) -> "TokenBatch":
        """The same texts, each chunk split into two."""
        return TokenBatch([half for chunk in self.chunks for half in chunk.halves()], self.position, self.tokens)


def pack(
    ids: Sequence[Sequence[int]],
    chunk_tokens: int,
    pad_id: int,
    *,
    padding_free: bool = False,
    pooled_from: Sequence[int] | None = None,
) -> TokenBatch:
    """Sort texts by length and split them into chunks of at most `chunk_tokens` positions, padding included.

    A text longer than that is a chunk of its own. Sorting is stable, so that equal inputs give equal chunks.

    Args:
        ids: Token ids of each text.
        chunk_tokens: Positions of a chunk, at most.
        pad_id: Token that pads.
        padding_free: Make packed chunks instead of padded ones.
        pooled_from: The first token of each text that pooling reads; None for all tokens.
    """
    lengths = torch.tensor([len(each) for each in ids], dtype=torch.int64)
    order = torch.argsort(lengths, descending=True, stable=True)
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order))
    split = split_packed if padding_free else split_padded
    chunks: list[TextChunk] = []
    for rows in split(order.tolist(), lengths.tolist(), chunk_tokens):
        texts, starts = [ids[i] for i in rows], None if pooled_from is None else [pooled_from[i] for i in rows]
        chunks.append(concatenate(texts, starts) if padding_free else pad(texts, pad_id, starts))
    return TokenBatch(chunks, position, int(lengths.sum()))


def split_packed(order: list[int], lengths: list[int], max_positions: int) -> Iterator[list[int]]:
    """Split `order`, indices of texts, into parts of at most `max_positions` tokens, or of one text."""
    part: list[int] = []
    tokens = 0
    for i in order:
        if part and tokens + lengths[i] > max_positions:
            yield part
            part, tokens = [], 0
        part.append(i)
        tokens += lengths[i]
    if part:
        yield part


def concatenate(ids: Sequence[Sequence[int]], pooled_from: Sequence[int] | None = None) -> PackedChunk:
    """A packed chunk of texts, given their token ids and the first of each that pooling reads."""
    lengths = torch.tensor([len(each) for each in ids], dtype=torch.int64)
    cu_seqlens = torch.zeros(len(ids) + 1, dtype=torch.int32)
    cu_seqlens[1:] = lengths.cumsum(dim=0)
    return PackedChunk(
        input_ids=torch.tensor([token for each in ids for token in each], dtype=torch.int64)[None],
        lengths=lengths,
        position_ids=torch.cat([torch.arange(len(each)) for each in ids])[None],
        cu_seqlens=cu_seqlens,
        max_seqlen=int(lengths.max()),
        pooled_from=None if pooled_from is None else torch.tensor(pooled_from, dtype=torch.int64),
    )


def split_padded(order: list[int], lengths: list[int], max_positions: int) -> Iterator[list[int]]:
    """Split `order`, indices of texts from the longest, into parts of at most `max_positions`, or of one text."""
    starts = [0]
    for i in range(len(order)):
        if i > starts[-1] and (i + 1 - starts[-1]) * lengths[order[starts[-1]]] > max_positions:
            starts.append(i)
    for start, end in pairwise([*starts, len(order)]):
        yield order[start:end]


def pad(ids: Sequence[Sequence[int]], pad_id: int, pooled_from: Sequence[int] | None = None) -> Chunk:
    """A chunk of texts, given their token ids and the first of each that pooling reads, padded on the right."""
    lengths = torch.tensor([len(each) for each in ids], dtype=torch.int64)
    input_ids = torch.full((len(ids), int(lengths.max())), pad_id, dtype=torch.int64)
    for row, each in enumerate(ids):
        input_ids[row, : len(each)] = torch.tensor(each, dtype=torch.int64)
    starts = None if pooled_from is None else torch.tensor(pooled_from, dtype=torch.int64)
    return Chunk(input_ids, lengths, int(lengths.min()) < input_ids.shape[1], starts)


def prompts_to_chunk(groups: Sequence[PromptGroup], *, share_prefix: bool, padding_free: bool) -> AnyChunk:
    """One chunk of the prompts of some groups, in order: packed, or padded for other attention than `varlen`."""
    if padding_free:
        return pack_groups(groups, share_prefix=share_prefix)
    return pad([prompt for group in groups for prompt in group], 0)
