"""CoSENT against the formula, written out as loops."""

import math

import pytest
import torch

from nestling.losses.cosent import cosent
from small_batches import cosine


def test_cosent_equals_the_formula_written_as_loops() -> None:
    random = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 5, 6, generator=random, dtype=torch.float64)
    scores = torch.tensor([0.2, 1.0, 0.2, 0.0, 0.7])
    expected = 0.0
    for dim in (3, 6):
        cosines = [cosine(a[:dim], b[:dim]).item() for a, b in zip(left, right, strict=True)]
        pairs = [(i, j) for i in range(5) for j in range(5) if scores[i] > scores[j]]
        expected += math.log(1 + sum(math.exp((cosines[j] - cosines[i]) / 0.05) for i, j in pairs))
    actual = cosent(left, right, scores, temperature=0.05, dims=[3, 6])
    assert actual.item() == pytest.approx(expected, rel=1e-12)


def test_cosent_of_equal_labels_is_zero() -> None:
    left = torch.randn(3, 4, requires_grad=True)
    value = cosent(left, torch.randn(3, 4), torch.ones(3), temperature=0.05, dims=[4])
    assert value.item() == 0
    assert not torch.autograd.grad(value, left)[0].any()
