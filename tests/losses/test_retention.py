"""Retention against the formula, written out as loops."""

import pytest
import torch
from torch import Tensor

from nestling.losses.regression import regression
from nestling.losses.retention import retention
from small_batches import cosine


def drawn(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_retention_equals_the_formula_written_as_loops(rows: int) -> None:
    """Value and gradient."""
    embeddings, before, weight = drawn(rows, 0).requires_grad_(), drawn(rows, 1), drawn(rows, 2)[:, 0].abs()
    expected = embeddings.sum() * 0
    for dim, dim_weight in ((3, 0.5), (6, 2.0)):
        for i in range(rows):
            now, then = embeddings[i, :dim], before[i, :dim]
            distance = now / now.norm() - then / then.norm()
            expected = expected + dim_weight * weight[i] * distance.square().sum()
            assert distance.square().sum().item() == pytest.approx(2 - 2 * cosine(now, then).item())
    actual = retention(embeddings, before, weight, dims=[6, 3], dim_weights=[2.0, 0.5])
    torch.testing.assert_close(actual, expected)
    ours, theirs = (torch.autograd.grad(each, embeddings)[0] for each in (actual, expected))
    torch.testing.assert_close(ours, theirs)


def test_at_one_dimension_it_is_regression_that_needs_no_projection() -> None:
    embeddings, before, weight = drawn(5, 0), drawn(5, 1), drawn(5, 2)[:, 0]
    teacher, projection = torch.nn.functional.normalize(before, dim=1), {6: torch.eye(6, dtype=torch.float64)}
    expected = regression(embeddings, teacher, projection, weight, dims=[6])
    torch.testing.assert_close(retention(embeddings, before, weight, dims=[6]), expected)


def test_it_is_0_with_a_gradient_of_0_where_nothing_moved() -> None:
    embeddings = drawn(4, 0).float().requires_grad_()
    loss = retention(embeddings, embeddings.detach(), torch.ones(4), dims=[6, 2])
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert abs(loss.item()) < 1e-5 and gradient.abs().max() < 1e-6
