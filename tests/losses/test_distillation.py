"""Distillation against the formula, written out as loops."""

import math

import pytest
import torch

from nestling.losses import distillation as module
from nestling.losses.distillation import distillation, in_batch_distillation, margin_distillation
from small_batches import cosine


def test_distillation_equals_the_formula_written_as_loops() -> None:
    random = torch.Generator().manual_seed(0)
    queries = torch.randn(3, 6, generator=random, dtype=torch.float64)
    documents = torch.randn(7, 6, generator=random, dtype=torch.float64)
    group = torch.tensor([[0, 1, 2], [3, 4, -1], [-1, -1, -1]])
    teacher = torch.tensor([[4.0, 1.0, 3.0], [0.5, 2.0, math.nan], [0.0, 0.0, 0.0]])
    weight = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    expected = 0.0
    for dim, dim_weight in ((2, 0.5), (6, 1.0)):
        for i, own in enumerate([[0, 1, 2], [3, 4]]):
            logits = [cosine(queries[i, :dim], documents[j, :dim]).item() / 0.1 for j in own]
            wanted = [teacher[i, k].item() / 2.0 for k in range(len(own))]
            p = [math.exp(each) / sum(map(math.exp, wanted)) for each in wanted]
            s = [math.exp(each) / sum(map(math.exp, logits)) for each in logits]
            divergence = sum(a * math.log(a / b) for a, b in zip(p, s, strict=True))
            expected += dim_weight * weight[i].item() * divergence
    queries.requires_grad_()
    actual = distillation(
        queries,
        documents,
        group,
        teacher,
        weight,
        temperature=0.1,
        teacher_temperature=2.0,
        dims=[6, 2],
        dim_weights=[1.0, 0.5],
    )
    assert actual.item() == pytest.approx(expected, rel=1e-6)  # the teacher's scores are float32
    (gradient,) = torch.autograd.grad(actual, queries)
    assert gradient.isfinite().all()
    assert not gradient[2].any()


def test_distillation_is_zero_for_a_student_that_agrees() -> None:
    queries, documents = torch.randn(2, 4), torch.randn(4, 4)
    group = torch.tensor([[0, 1], [2, 3]])
    cosines = torch.stack([torch.stack([cosine(queries[i], documents[j]) for j in group[i]]) for i in range(2)])
    value = distillation(
        queries, documents, group, cosines, torch.ones(2), temperature=0.05, teacher_temperature=0.05, dims=[4]
    )
    assert value.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("block", [2, 128])
def test_in_batch_distillation_equals_the_formula_written_as_loops(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients; the teacher has another dimension, and its embeddings are float32."""
    monkeypatch.setattr(module, "BLOCK_QUERIES", block)
    random = torch.Generator().manual_seed(0)
    queries = torch.randn(5, 6, generator=random, dtype=torch.float64).requires_grad_()
    documents = torch.randn(7, 6, generator=random, dtype=torch.float64).requires_grad_()
    weight = torch.rand(5, generator=random, dtype=torch.float64)
    of_queries, of_documents = torch.randn(5, 9, generator=random), torch.randn(7, 9, generator=random)
    expected = torch.zeros((), dtype=torch.float64)
    for dim, dim_weight in ((2, 0.5), (6, 1.0)):
        for i in range(5):
            wanted = torch.stack([of_queries[i].double() @ each.double() / 2.0 for each in of_documents])
            logits = torch.stack([cosine(queries[i, :dim], each[:dim]) / 0.1 for each in documents])
            p, s = wanted.exp() / wanted.exp().sum(), logits.exp() / logits.exp().sum()
            expected = expected + dim_weight * weight[i] * (p * (p / s).log()).sum()
    actual = in_batch_distillation(
        queries,
        documents,
        of_queries,
        of_documents,
        weight,
        temperature=0.1,
        teacher_temperature=2.0,
        dims=[6, 2],
        dim_weights=[1.0, 0.5],
    )
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    theirs = torch.autograd.grad(expected, [queries, documents])
    for own, other in zip(torch.autograd.grad(actual, [queries, documents]), theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)


def test_margin_distillation_equals_the_formula_written_as_loops() -> None:
    """Value and gradients; the last query has no negative."""
    random = torch.Generator().manual_seed(0)
    queries = torch.randn(3, 6, generator=random, dtype=torch.float64).requires_grad_()
    documents = torch.randn(7, 6, generator=random, dtype=torch.float64).requires_grad_()
    group = torch.tensor([[0, 1, 2], [3, 4, -1], [5, -1, -1]])
    positive = torch.tensor([[True, False, False], [True, False, False], [True, False, False]])
    teacher = torch.tensor([[4.0, 1.0, 3.0], [0.5, 2.0, math.nan], [1.0, 0.0, 0.0]], dtype=torch.float64)
    weight = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    expected = torch.zeros((), dtype=torch.float64)
    for dim, dim_weight in ((2, 0.5), (6, 1.0)):
        for i, own in enumerate([[0, 1, 2], [3, 4]]):
            cosines = [cosine(queries[i, :dim], documents[j, :dim]) for j in own]
            for k in range(1, len(own)):
                error = (cosines[0] - cosines[k]) / 0.1 - (teacher[i, 0] - teacher[i, k]) / 2.0
                expected = expected + dim_weight * weight[i] * error**2 / (len(own) - 1)
    actual = margin_distillation(
        queries,
        documents,
        group,
        teacher,
        positive,
        weight,
        temperature=0.1,
        teacher_temperature=2.0,
        dims=[6, 2],
        dim_weights=[1.0, 0.5],
    )
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    theirs = torch.autograd.grad(expected, [queries, documents])
    for own_gradient, other in zip(torch.autograd.grad(actual, [queries, documents]), theirs, strict=True):
        torch.testing.assert_close(own_gradient, other, rtol=1e-10, atol=1e-12)


def test_margin_distillation_equals_margin_mse_loss() -> None:
    from sentence_transformers.sentence_transformer.losses import MarginMSELoss
    from sentence_transformers.util import pairwise_cos_sim

    random = torch.Generator().manual_seed(0)
    queries, positives, negatives = torch.randn(3, 5, 6, generator=random, dtype=torch.float64)
    scores = torch.rand(5, 2, generator=random, dtype=torch.float64)
    peer = MarginMSELoss(torch.nn.Identity(), similarity_fct=pairwise_cos_sim)  # type: ignore[arg-type]
    expected = peer.compute_loss_from_embeddings([queries, positives, negatives], scores[:, 0] - scores[:, 1])
    actual = margin_distillation(
        queries,
        torch.cat([positives, negatives]),
        torch.stack([torch.arange(5), torch.arange(5, 10)], dim=1),
        scores,
        torch.tensor([[True, False]] * 5),
        torch.full((5,), 0.2, dtype=torch.float64),
        temperature=1.0,
        teacher_temperature=1.0,
        dims=[6],
    )
    assert actual.item() == pytest.approx(expected.item(), rel=1e-12)
