"""The loss of train/rerank.py: a batch has one loss and one gradient, however its queries lie in chunks."""

from typing import Any

import pytest
import torch
from launches import recipe
from torch import Tensor

from nestling.batches.rerank_batch import LabelledGroup, RerankBatch, join_labels
from nestling.config import RerankLossConfig

RECIPE = recipe("rerank")
TARGETS = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0]]
GRADES = [[3.0, 1.0, 0.0, 2.0], [2.0, 2.0, 1.0], [0.0, 1.0]]


def loss_of(logits: Tensor, groups: list[LabelledGroup], chunks: list[list[int]], loss: RerankLossConfig) -> Tensor:
    """The sum over chunks that hold these groups; a prompt's one token is the place of its logit."""
    batch = RerankBatch([], [], queries=len(groups), pairs=len(logits), tokens=0, truncated=0)
    total = torch.zeros((), dtype=logits.dtype)
    for chunk in chunks:
        own = [groups[i] for i in chunk]
        rows = [prompt[0] for group in own for prompt in group.prompts]
        total = total + RECIPE.chunk_loss(logits[rows], join_labels(own), batch, loss)
    return total


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "lambda"},
        {"objective": "lambda", "labels": "teacher", "temperature": 2.0},
        {"objective": "margin_mse", "temperature": 0.5, "teacher_temperature": 2.0},
        {"objective": "distillation", "teacher_temperature": 2.0},
        {"objective": "listwise"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_two_chunkings_give_one_loss_and_gradient(settings: dict[str, Any]) -> None:
    loss, places = RerankLossConfig(**settings), iter(range(9))
    groups = [
        LabelledGroup([[next(places)] for _ in grades], grades if loss.labels == "teacher" else targets, grades)
        for targets, grades in zip(TARGETS, GRADES, strict=True)
    ]
    logits = torch.randn(9, 1, dtype=torch.float64, requires_grad=True)
    whole = loss_of(logits, groups, [[0, 1, 2]], loss)
    assert whole > 0
    (expected,) = torch.autograd.grad(whole, logits)
    for chunks in ([[0], [1], [2]], [[1], [2, 0]]):
        parts = loss_of(logits, groups, chunks, loss)
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.autograd.grad(parts, logits)[0], expected, rtol=1e-12, atol=1e-15)
