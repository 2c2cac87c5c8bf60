"""Pooling: from the hidden states of a text's tokens to one embedding.

Shapes: B texts, L tokens of the longest text, T tokens of all texts, D dimensions, M modes of a pooling. Texts are
padded on the right.
"""

from typing import Literal, Protocol, cast

import torch
from torch import Tensor

Mode = Literal["last", "mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean"]

# One mode, or several joined by +, whose results are concatenated in this order.
Pooling = str


def modes_of(pooling: Pooling) -> tuple[Mode, ...]:
    """The modes of a pooling, in the order of their concatenation.

    Raises:
        ValueError: One of them is unknown.
    """
    modes = pooling.split("+")
    if not set(modes) <= POOL.keys():
        raise ValueError(f"the pooling is {pooling!r}; expected one of {', '.join(POOL)}, or several joined by +")
    return cast(tuple[Mode, ...], tuple(modes))


def last_token(hidden: Tensor, lengths: Tensor, starts: Tensor | None = None) -> Tensor:
    """Hidden state of each text's last token, [B, L, D] and [B] int64 -> [B, D]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]


def mean(hidden: Tensor, lengths: Tensor, starts: Tensor | None = None) -> Tensor:
    """Mean hidden state of each text's tokens, in float32, [B, L, D] and [B] int64 -> [B, D]."""
    inside = pooled_positions(hidden, lengths, starts)  # [B, L]
    counts = lengths if starts is None else inside.sum(1)
    return weighted_sum(hidden, inside.float() / counts[:, None])


def mean_sqrt_len_tokens(hidden: Tensor, lengths: Tensor, starts: Tensor | None = None) -> Tensor:
    """As `mean`, but the sum is divided by the square root of the number of tokens."""
    inside = pooled_positions(hidden, lengths, starts)
    return weighted_sum(hidden, inside.float() / inside.sum(1, keepdim=True).sqrt())


def weightedmean(hidden: Tensor, lengths: Tensor, starts: Tensor | None = None) -> Tensor:
    """As `mean`, weighted by the number of a token in its text, from 1 (SGPT, arXiv 2202.08904)."""
    numbers = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    weights = pooled_positions(hidden, lengths, starts) * numbers.float()
    return weighted_sum(hidden, weights / weights.sum(1, keepdim=True))


def max_over_tokens(hidden: Tensor, lengths: Tensor, starts: Tensor | None = None) -> Tensor:
    """The largest of each text's tokens in each dimension, [B, L, D] and [B] int64 -> [B, D]."""
    inside = pooled_positions(hidden, lengths, starts)
    return hidden.masked_fill(~inside[:, :, None], -torch.inf).amax(1)


def first_token(hidden: Tensor, lengths: Tensor, starts: Tensor | None = None) -> Tensor:
    """Hidden state of each text's first token, [B, L, D] -> [B, D]."""
    return hidden[:, 0] if starts is None else last_token(hidden, within(starts, lengths) + 1)


def pooled_positions(hidden: Tensor, lengths: Tensor, starts: Tensor | None) -> Tensor:
    """[B, L] bool: the positions of [B, L, D] that are pooled."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    inside = positions < lengths[:, None]
    return inside if starts is None else inside & (positions >= within(starts, lengths)[:, None])


def within(starts: Tensor, lengths: Tensor) -> Tensor:
    """[B] int64, the first position of each text that is pooled: at least its last token is."""
    return torch.minimum(starts, lengths - 1)


def weighted_sum(hidden: Tensor, weights: Tensor) -> Tensor:
    """Sum over the positions, in float32, [B, L, D] and [B, L] -> [B, D]."""
    return torch.bmm(weights[:, None], hidden.float()).squeeze(1)


def pool_packed(hidden: Tensor, cu_seqlens: Tensor, pooling: Pooling, starts: Tensor | None = None) -> Tensor:
    """As `pool_padded`, for packed texts: [1, T, D] and [B + 1] int32 -> [B, M D]."""
    return concatenate([_packed_mode(hidden[0], cu_seqlens.long(), mode, starts) for mode in modes_of(pooling)])


def _packed_mode(hidden: Tensor, cu_seqlens: Tensor, mode: Mode, starts: Tensor | None) -> Tensor:
    """[T, D] and [B + 1] int64 -> [B, D]."""
    lengths = cu_seqlens.diff()
    if mode == "last":
        return hidden[cu_seqlens[1:] - 1]
    if mode == "cls":
        return hidden[cu_seqlens[:-1] if starts is None else cu_seqlens[:-1] + within(starts, lengths)]
    if mode == "mean" and starts is None:
        return torch.segment_reduce(hidden.float(), "mean", lengths=lengths)

    def of_its_text(values: Tensor) -> Tensor:
        return values.repeat_interleave(lengths, output_size=len(hidden))  # with a size it does not wait for the GPU

    numbers = torch.arange(len(hidden), device=hidden.device) - of_its_text(cu_seqlens[:-1])  # from 0 in each text
    first = torch.zeros_like(lengths) if starts is None else within(starts, lengths)
    inside = numbers >= of_its_text(first)
    if mode == "max":
        return torch.segment_reduce(hidden.masked_fill(~inside[:, None], -torch.inf).float(), "max", lengths=lengths)
    weights = inside * (numbers + 1.0 if mode == "weightedmean" else torch.ones_like(numbers, dtype=torch.float32))
    sums = torch.segment_reduce(weights, "sum", lengths=lengths)
    divisors = sums.sqrt() if mode == "mean_sqrt_len_tokens" else sums
    weighted = hidden.float() * (weights / of_its_text(divisors))[:, None]
    return torch.segment_reduce(weighted, "sum", lengths=lengths)


def pool_padded(hidden: Tensor, lengths: Tensor, pooling: Pooling, starts: Tensor | None = None) -> Tensor:
    """As the functions above, by name, concatenated: [B, L, D] and [B] int64 -> [B, M D].

    Args:
        hidden: Hidden states.
        lengths: Tokens of each text.
        pooling: Its modes.
        starts: [B] int64, the first position of each text that is pooled, behind a prompt say; None for all positions.

    Raises:
        ValueError: A mode is unknown.
    """
    return concatenate([POOL[mode](hidden, lengths, starts) for mode in modes_of(pooling)])


def concatenate(parts: list[Tensor]) -> Tensor:
    """[B, D] each -> [B, M D]; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat([each.float() for each in parts], dim=-1)


class PaddedPooling(Protocol):
    """One mode, for padded texts."""

    def __call__(self, hidden: Tensor, lengths: Tensor, starts: Tensor | None = None) -> Tensor: ...


POOL: dict[Mode, PaddedPooling] = {
    "last": last_token,
    "mean": mean,
    "cls": first_token,
    "max": max_over_tokens,
    "mean_sqrt_len_tokens": mean_sqrt_len_tokens,
    "weightedmean": weightedmean,
}
