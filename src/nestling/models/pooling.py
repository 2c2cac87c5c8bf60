"""From token states to one embedding.

Shapes: B texts, L tokens, D dimensions. Texts are padded on the right.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["last", "mean", "cls"]


def last_token(hidden: Tensor, lengths: Tensor) -> Tensor:
    """State of each text's last token, [B, L, D] and [B] int64 -> [B, D]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]


def mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Mean state over each text's tokens, in float32, [B, L, D] and [B] int64 -> [B, D]."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    inside = positions < lengths[:, None]  # [B, L]
    shares = inside.float() / lengths[:, None]
    return torch.bmm(shares[:, None], hidden.float()).squeeze(1)


def first_token(hidden: Tensor, lengths: Tensor) -> Tensor:
    """State of each text's first token, [B, L, D] -> [B, D]."""
    return hidden[:, 0]


def pool_packed(hidden: Tensor, cu_seqlens: Tensor, pooling: Pooling) -> Tensor:
    """As the functions above, for texts one after the other: [1, T, D] and [B + 1] int32 -> [B, D]."""
    if pooling == "mean":
        return torch.segment_reduce(hidden[0].float(), "mean", lengths=cu_seqlens.diff().long())
    return hidden[0, cu_seqlens[1:] - 1] if pooling == "last" else hidden[0, cu_seqlens[:-1]]


POOL: dict[Pooling, Callable[[Tensor, Tensor], Tensor]] = {"last": last_token, "mean": mean, "cls": first_token}
