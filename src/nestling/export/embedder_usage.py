"""Embeddings by transformers alone: the card prints these functions, and the gate runs them.

Shapes: n texts, L tokens, D dimensions; `hidden` is [n, L, D] and `mask`, 1 for tokens and 0 for padding, [n, L].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nestling.models.pooling import Mode


def pool_last(hidden: Tensor, mask: Tensor) -> Tensor:
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return hidden[torch.arange(len(hidden)), last]


def pool_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


def pool_cls(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden)), mask.argmax(1)]


def pool_max(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(1)


def pool_mean_sqrt_len_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).sqrt()


def pool_weightedmean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.cumsum(1) * mask
    return (hidden * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)


POOL_BY_MASK: dict[Mode, Callable[[Tensor, Tensor], Tensor]] = {
    "last": pool_last,
    "mean": pool_mean,
    "cls": pool_cls,
    "max": pool_max,
    "mean_sqrt_len_tokens": pool_mean_sqrt_len_tokens,
    "weightedmean": pool_weightedmean,
}
