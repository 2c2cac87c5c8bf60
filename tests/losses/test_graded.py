"""The losses of graded pairs against the formula, written out as loops, and against sentence-transformers."""

import math
from typing import Any

import pytest
import torch

from nestling.losses.graded import angle, cosent, cosine_similarity
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


@pytest.mark.parametrize("dim", [5, 6])
@pytest.mark.parametrize("name", ["CoSENTLoss", "AnglELoss", "CosineSimilarityLoss"])
def test_value_and_gradient_are_those_of_sentence_transformers(name: str, dim: int) -> None:
    from sentence_transformers.sentence_transformer import losses

    random = torch.Generator().manual_seed(1)
    left, right = (torch.randn(6, dim, generator=random, dtype=torch.float64).requires_grad_() for _ in range(2))
    scores = torch.rand(6, generator=random, dtype=torch.float64)
    peer: Any = getattr(losses, name)(torch.nn.Identity())
    expected = sum(
        peer.compute_loss_from_embeddings([left[:, :each], right[:, :each]], scores.float()) for each in (dim, 4)
    )
    ours: Any = {"CoSENTLoss": cosent, "AnglELoss": angle, "CosineSimilarityLoss": cosine_similarity}[name]
    settings: dict[str, Any] = {} if ours is cosine_similarity else {"temperature": 0.05}
    actual = ours(left, right, scores.float(), dims=[4, dim], **settings)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)  # CosineSimilarityLoss turns labels to float32
    for own, theirs in zip(*(torch.autograd.grad(each, [left, right]) for each in (actual, expected)), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-8)
