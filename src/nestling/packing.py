"""Token batches without much padding: texts sorted by length, a token budget a chunk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


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

    def to(self, device: torch.device) -> "Chunk":
        return Chunk(self.input_ids.to(device), self.lengths.to(device), self.padded)


@dataclass(frozen=True)
class TokenBatch:
    """Texts in chunks, longest first.

    Args:
        chunks: The texts by length.
        position: [n] int64, where each text of the caller stands in the concatenated chunks.
        tokens: Tokens of all texts, without padding.
    """

    chunks: list[Chunk]
    position: Tensor
    tokens: int

    def to(self, device: torch.device) -> "TokenBatch":
        return TokenBatch([chunk.to(device) for chunk in self.chunks], self.position.to(device), self.tokens)


def pack(ids: Sequence[Sequence[int]], chunk_tokens: int, pad_id: int) -> TokenBatch:
    """Sort texts by length and cut them into chunks of at most `chunk_tokens` positions, padding included.

    A text longer than the budget makes a chunk of its own. Sorting is stable, so that equal inputs give equal chunks.
    """
    lengths = torch.tensor([len(each) for each in ids], dtype=torch.int64)
    order = torch.argsort(lengths, descending=True, stable=True)
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order))
    chunks = [pad([ids[i] for i in rows], pad_id) for rows in by_budget(order.tolist(), lengths.tolist(), chunk_tokens)]
    return TokenBatch(chunks, position, int(lengths.sum()))


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
