"""Pooling: from the hidden states of a text's tokens to one embedding.

Shapes: B texts, L tokens of the longest text, T tokens of all texts, D dimensions. Texts are padded on the right.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["last", "mean", "cls"]


def last_token(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Hidden state of each text's last token, [B, L, D] and [B] int64 -> [B, D]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]


def mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Mean hidden state of each text's tokens, in float32, [B, L, D] and [B] int64 -> [B, D]."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    inside = positions < lengths[:, None]  # [B, L]
    weights = inside.float() / lengths[:, None]
    return torch.bmm(weights[:, None], hidden.float()).squeeze(1)


def first_token(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Hidden state of each text's first token, [B, L, D] -> [B, D]."""
    return hidden[:, 0]


def pool_packed(hidden: Tensor, cu_seqlens: Tensor, pooling: Pooling) -> Tensor:
    """As the functions above, for packed texts: [1, T, D] and [B + 1] int32 -> [B, D].

    Raises:
        ValueError: The pooling is unknown.
    """
    match pooling:
        case "last":
            return hidden[0, cu_seqlens[1:] - 1]
        case "mean":
            return torch.segment_reduce(hidden[0].float(), "mean", lengths=cu_seqlens.diff().long())
        case "cls":
            return hidden[0, cu_seqlens[:-1]]
    raise unknown_pooling(pooling)


def pool_padded(hidden: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """As the functions above, by name: [B, L, D] and [B] int64 -> [B, D].

    Raises:
        ValueError: The pooling is unknown.
    """
    if pooling not in POOL:
        raise unknown_pooling(pooling)
    return POOL[pooling](hidden, lengths)


def unknown_pooling(pooling: str) -> ValueError:
    """The error for a pooling that is none of `POOL`."""
    return ValueError(f"the pooling is {pooling!r}; expected one of {', '.join(POOL)}")


POOL: dict[Pooling, Callable[[Tensor, Tensor], Tensor]] = {"last": last_token, "mean": mean, "cls": first_token}
