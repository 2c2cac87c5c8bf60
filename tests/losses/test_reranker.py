"""The reranker's objectives against the formulas, written out as loops in float64, and where they could break."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nestling.losses.distillation import distillation
from nestling.losses.reranker import kl, listwise, pointwise, pointwise_vocabulary

EXACT = {"rtol": 1e-12, "atol": 1e-13}
TARGETS = torch.tensor([0.0, 1.0, 0.3, 0.85, 1.0, 0.0], dtype=torch.float64)

# Of four queries: several of both; one of each; positives only; negatives only.
POSITIVE = torch.tensor([[1, 0, 1, 0, 1], [0, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 1, 0]], dtype=torch.bool)
PRESENT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)


def random(*shape: int, scale: float = 3.0) -> Tensor:
    return (scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def assert_same(actual: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    """Values, and gradients of a sum in which each has another weight."""
    torch.testing.assert_close(actual, expected, **EXACT)
    weight = torch.arange(1, len(actual) + 1, dtype=torch.float64)
    ours = torch.autograd.grad(actual @ weight, leaves, retain_graph=True)
    theirs = torch.autograd.grad(expected @ weight, leaves)
    torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_pointwise_equals_the_formula_written_as_loops(weight: float) -> None:
    logits = random(6)
    expected = []
    for z, t in zip(logits, TARGETS, strict=True):
        p = 1 / (1 + torch.exp(-z))
        expected.append(-(weight * t * torch.log(p) + (1 - t) * torch.log(1 - p)))
    assert_same(pointwise(logits, TARGETS, positive_weight=weight), torch.stack(expected), logits)


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_pointwise_vocabulary_equals_the_softmax_over_all_words(weight: float) -> None:
    words, no, yes = random(6, 11), 3, 7
    expected = []
    for row, t in zip(words, TARGETS, strict=True):
        p = torch.exp(row) / torch.exp(row).sum()
        expected.append(-(weight * t * torch.log(p[yes]) + (1 - t) * torch.log(p[no])))
    actual = pointwise_vocabulary(words.log_softmax(dim=1)[:, [no, yes]], TARGETS, positive_weight=weight)
    assert_same(actual, torch.stack(expected), words)


def test_over_a_vocabulary_of_the_two_answers_both_forms_are_one() -> None:
    answers = random(6, 2)
    actual = pointwise_vocabulary(answers.log_softmax(dim=1), TARGETS, positive_weight=1.5)
    assert_same(actual, pointwise(answers[:, 1] - answers[:, 0], TARGETS, positive_weight=1.5), answers)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_listwise_equals_the_formula_written_as_loops(temperature: float) -> None:
    scores = random(*PRESENT.shape)
    expected = []
    for s, positive, present in zip(scores, POSITIVE, PRESENT, strict=True):
        negatives = [torch.exp(s[g] / temperature) for g in range(5) if present[g] and not positive[g]]
        losses = [
            -torch.log(torch.exp(s[g] / temperature) / (torch.exp(s[g] / temperature) + sum(negatives)))
            for g in range(5)
            if present[g] and positive[g] and negatives
        ]
        expected.append(sum(losses, 0 * s[0]) / max(len(losses), 1))
    assert_same(listwise(scores, POSITIVE, PRESENT, temperature=temperature), torch.stack(expected), scores)


def test_listwise_positives_do_not_push_each_other() -> None:
    alone = torch.tensor([[1.0, 0.5, -20.0]], dtype=torch.float64)
    beside = torch.tensor([[1.0, 0.5, 20.0]], dtype=torch.float64, requires_grad=True)
    positive, all_three = torch.tensor([[True, False, True]]), torch.ones(1, 3, dtype=torch.bool)
    value = listwise(beside, positive, all_three, temperature=1.0)
    first = listwise(alone, positive & (alone > -20), alone > -20, temperature=1.0)
    last = math.log1p(math.exp(0.5 - 20))
    assert value.item() == pytest.approx((first.item() + last) / 2, rel=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), beside)
    assert gradient[0, 0] < 0 and gradient[0, 2] < 0 < gradient[0, 1]


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.5, 3.0)])
def test_kl_equals_the_formula_written_as_loops(temperatures: tuple[float, float]) -> None:
    scores, teacher = random(*PRESENT.shape), random(*PRESENT.shape)
    expected = []
    for s, t, present in zip(scores, teacher, PRESENT, strict=True):
        own = [g for g in range(5) if present[g]]
        p = [torch.exp(t[g] / temperatures[1]) for g in own]
        q = [torch.exp(s[g] / temperatures[0]) for g in own]
        terms = [a / sum(p) * torch.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True)]
        expected.append(torch.stack(terms).sum())
    actual = kl(scores, teacher, PRESENT, temperature=temperatures[0], teacher_temperature=temperatures[1])
    assert_same(actual, torch.stack(expected), scores)


def test_kl_is_the_embedders_distillation_of_the_same_scores() -> None:
    queries, documents = random(2, 4), random(5, 4)
    group, present = torch.tensor([[0, 1, 2], [3, 4, -1]]), torch.tensor([[True] * 3, [True, True, False]])
    teacher, weight = random(2, 3).detach(), torch.tensor([0.25, 0.75], dtype=torch.float64)
    settings = {"temperature": 0.1, "teacher_temperature": 2.0}
    scores = torch.nn.functional.cosine_similarity(queries[:, None], documents[group.clamp_min(0)], dim=2)
    actual = kl(scores, teacher, present, **settings) @ weight
    expected = distillation(queries, documents, group, teacher, weight, dims=[4], **settings)
    assert_same(actual[None], expected[None], queries, documents)


def test_kl_is_zero_for_a_student_that_agrees_and_positive_for_others() -> None:
    scores, other = random(4, 5).detach(), random(4, 5).detach()
    agreeing = kl(scores, 2 * scores + 7, PRESENT, temperature=1.0, teacher_temperature=2.0)
    torch.testing.assert_close(agreeing, torch.zeros(4, dtype=torch.float64), **EXACT)
    assert (kl(scores, other, PRESENT, temperature=1.0, teacher_temperature=2.0) > 0).all()


def test_gradients_are_those_of_finite_differences() -> None:
    check: Callable[..., bool] = torch.autograd.gradcheck
    assert check(lambda z: pointwise(z, TARGETS, positive_weight=2.5), random(6))
    assert check(lambda z: pointwise_vocabulary(z, TARGETS, positive_weight=2.5), random(6, 2))
    assert check(lambda s: listwise(s, POSITIVE, PRESENT, temperature=2.0), random(4, 5))
    teacher = random(4, 5).detach()
    assert check(lambda s: kl(s, teacher, PRESENT, temperature=2.0, teacher_temperature=3.0), random(4, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_keep_values_and_gradients_finite(dtype: torch.dtype) -> None:
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4, 40.0, -40.0], dtype=dtype, requires_grad=True)
    targets = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], dtype=dtype)
    losses = pointwise(logits, targets, positive_weight=2.0)
    small = math.log1p(math.exp(-40.0))  # what 1 - p of a p in float32 rounds away
    expected = torch.tensor([0.0, 2e4, 1e4, 0.0, 2 * small, small], dtype=dtype)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    pulls = torch.tensor([0.0, -2.0, 1.0, 0.0, -2 * math.exp(-40), math.exp(-40)], dtype=dtype)
    torch.testing.assert_close(gradient, pulls, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scores_of_a_group_keep_values_and_gradients_finite(dtype: torch.dtype) -> None:
    scores = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4]], dtype=dtype, requires_grad=True)
    positive, present = torch.tensor([[True, False]] * 3), torch.ones(3, 2, dtype=torch.bool)
    for temperature in (1.0, 0.01):
        gap = 2e4 / temperature
        losses = listwise(scores, positive, present, temperature=temperature)
        torch.testing.assert_close(losses, torch.tensor([0.0, gap, math.log(2)], dtype=dtype))
        (gradient,) = torch.autograd.grad(losses.sum(), scores)
        pulls = torch.tensor([[0.0, 0.0], [-1.0, 1.0], [-0.5, 0.5]], dtype=dtype) / temperature
        torch.testing.assert_close(gradient, pulls)
        teacher = torch.tensor([[1e4, -1e4]] * 3, dtype=dtype)
        losses = kl(scores, teacher, present, temperature=temperature, teacher_temperature=temperature)
        torch.testing.assert_close(losses, torch.tensor([0.0, gap, math.log(2)], dtype=dtype))
        torch.testing.assert_close(torch.autograd.grad(losses.sum(), scores)[0], pulls)


@pytest.mark.parametrize("rest", [0.0, 1e4, -1e4, math.nan, math.inf])
def test_absent_places_are_not_read_and_get_no_gradient(rest: float) -> None:
    scores = random(4, 5)
    teacher = random(4, 5).detach()
    filled = scores.detach().masked_fill(~PRESENT, rest).requires_grad_()
    filled_teacher = teacher.masked_fill(~PRESENT, rest)
    for actual, expected in (
        (
            listwise(filled, POSITIVE, PRESENT, temperature=0.5),
            listwise(scores, POSITIVE & PRESENT, PRESENT, temperature=0.5),
        ),
        (
            kl(filled, filled_teacher, PRESENT, temperature=0.5, teacher_temperature=2.0),
            kl(scores, teacher, PRESENT, temperature=0.5, teacher_temperature=2.0),
        ),
    ):
        assert torch.equal(actual, expected)
        (gradient,) = torch.autograd.grad(actual.sum(), filled)
        assert gradient.isfinite().all()
        assert not gradient[~PRESENT].any()
        assert torch.equal(gradient, torch.autograd.grad(expected.sum(), scores)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_queries_without_positives_negatives_or_documents_give_nothing(dtype: torch.dtype) -> None:
    scores = torch.tensor([[1e4, 3.0], [-1e4, 3.0], [5.0, -2.0]], dtype=dtype, requires_grad=True)
    positive = torch.tensor([[True, True], [False, False], [True, False]])
    present = torch.tensor([[True, True], [True, True], [False, False]])
    losses = listwise(scores, positive, present, temperature=0.05)
    assert losses.tolist() == [0, 0, 0]
    assert not torch.autograd.grad(losses.sum(), scores)[0].any()
    divergences = kl(scores, scores.detach() + 1, ~positive & present, temperature=0.05, teacher_temperature=1.0)
    assert divergences[[0, 2]].tolist() == [0, 0]
    assert not torch.autograd.grad(divergences.sum(), scores)[0][[0, 2]].any()


def test_no_pairs_and_no_queries_give_no_losses() -> None:
    nothing, empty = torch.zeros(0), torch.zeros(0, 3)
    assert pointwise(nothing, nothing, positive_weight=1.0).shape == (0,)
    assert pointwise_vocabulary(empty[:, :2], nothing, positive_weight=1.0).shape == (0,)
    assert listwise(empty, empty.bool(), empty.bool(), temperature=1.0).shape == (0,)
    assert kl(empty, empty, empty.bool(), temperature=1.0, teacher_temperature=1.0).shape == (0,)


def test_half_precision_is_upcast() -> None:
    logits, teacher = torch.randn(4, 5).bfloat16(), torch.randn(4, 5)
    targets = torch.rand(4)
    for loss in (
        lambda s: pointwise(s[:, 0], targets, positive_weight=1.5),
        lambda s: pointwise_vocabulary(s[:, :2], targets, positive_weight=1.5),
        lambda s: listwise(s, POSITIVE, PRESENT, temperature=0.05),
        lambda s: kl(s, teacher, PRESENT, temperature=0.05, teacher_temperature=1.0),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = loss(logits)
        assert actual.dtype == torch.float32
        assert torch.equal(actual, loss(logits.float()))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperatures_are_above_zero(temperature: float) -> None:
    scores = torch.zeros(4, 5)
    with pytest.raises(ValueError, match="the temperature is"):
        listwise(scores, POSITIVE, PRESENT, temperature=temperature)
    with pytest.raises(ValueError, match="the temperature is"):
        kl(scores, scores, PRESENT, temperature=temperature, teacher_temperature=1.0)
    with pytest.raises(ValueError, match="the temperature is"):
        kl(scores, scores, PRESENT, temperature=1.0, teacher_temperature=temperature)
