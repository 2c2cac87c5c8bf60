"""The spread-out regulariser against the formula, written out as loops, and against sentence-transformers."""

from typing import Any

import pytest
import torch

from nestling.losses.spread_out import spread_out
from small_batches import cosine


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_spread_out_equals_the_formula_written_as_loops(rows: int) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 6, generator=random, dtype=torch.float64).requires_grad_()
    expected = x.sum() * 0
    for dim, weight in ((3, 0.5), (6, 2.0)):
        for i in range(rows):
            for j in range(rows):
                if i != j:
                    expected = expected + weight * cosine(x[i, :dim], x[j, :dim]).square() / (rows * (rows - 1))
    actual = spread_out(x, dims=[3, 6], dim_weights=[0.5, 2.0])
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    ours, theirs = (torch.autograd.grad(each, x)[0] for each in (actual, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_spread_out_equals_global_orthogonal_regularization() -> None:
    """Theirs is less by 1 / D, which is a constant, and never below 0."""
    from sentence_transformers.sentence_transformer.losses import GlobalOrthogonalRegularizationLoss

    stub: Any = torch.nn.Identity()
    peer = GlobalOrthogonalRegularizationLoss(stub, mean_weight=None, aggregation="sum")
    random = torch.Generator().manual_seed(0)
    queries, documents = torch.randn(2, 12, 8, generator=random, dtype=torch.float64) + 0.5
    expected = peer.compute_loss_from_embeddings([queries, documents])["gor_second_moment"]
    actual = spread_out(queries, dims=[8]) + spread_out(documents, dims=[8])
    assert actual.item() - 2 / 8 == pytest.approx(expected.item(), rel=1e-12)
