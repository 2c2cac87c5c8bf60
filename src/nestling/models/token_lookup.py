"""Token embeddings whose backward pass takes time for the tokens of a chunk, not for the whole vocabulary."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def look_up_in_place(table: nn.Embedding, input_ids: Tensor) -> Tensor:
    """`table(input_ids)`, [B, L] -> [B, L, D], whose backward pass adds to `table.weight.grad` in place.

    The ordinary lookup makes a new gradient of the size of the vocabulary each time: 50 to 650 ms on a CPU, where
    adding the rows of a chunk takes 10 ms. The weight's gradient hooks do not run, so that DDP, which synchronises
    gradients by such hooks, needs an ordinary lookup in the last forward pass of a step.
    """
    return rows_in_place(table.weight, input_ids, table.padding_idx)


def rows_in_place(weight: Tensor, ids: Tensor, padding: int | None = None) -> Tensor:
    """`weight[ids]`, [V, D] -> [..., D], whose backward pass adds in place too; the row `padding` gets no gradient."""
    if not (weight.requires_grad and torch.is_grad_enabled()):
        return nn.functional.embedding(ids, weight)
    looked_up: Tensor = _LookUp.apply(weight, ids, padding)
    return looked_up


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, input_ids: Tensor, padding: int | None) -> Tensor:
        ctx.weight, ctx.input_ids, ctx.padding = weight, input_ids, padding
        return nn.functional.embedding(input_ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        weight, ids = ctx.weight, ctx.input_ids.flatten()
        rows = gradient.reshape(len(ids), -1).to(weight.dtype)
        if ctx.padding is not None:
            rows = rows.masked_fill((ids == ctx.padding)[:, None], 0)
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_put_((ids,), rows, accumulate=True)
        return None, None, None
