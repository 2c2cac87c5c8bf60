"""LambdaLoss and Margin-MSE against their formulas written as loops in float64, and against sentence-transformers."""

import math
from collections.abc import Callable, Sequence
from itertools import permutations

import pytest
import torch
from sentence_transformers.cross_encoder import losses
from sentence_transformers.cross_encoder.losses import margin_mse as margin_mse_module
from torch import Tensor

from nestling.losses.reranker import kl, lambda_ndcg, margin_mse

EXACT = {"rtol": 1e-12, "atol": 1e-13}
NEAR = {"rtol": 2e-6, "atol": 2e-6}  # sentence-transformers computes in float32

# Of four queries: grades, 1 and 0, one grade only, one document only.
LABELS = torch.tensor([[0, 3, 1, 1, 2], [1, 0, 0, 1, 9], [2, 2, 2, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.float64)
PRESENT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
POSITIVE = LABELS > 1


def random(*shape: int) -> Tensor:
    return (3 * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def assert_same(actual: Tensor, expected: Tensor, leaf: Tensor) -> None:
    """Values, and gradients of a sum in which each has another weight."""
    torch.testing.assert_close(actual, expected, **EXACT)
    weight = torch.arange(1, len(actual) + 1, dtype=torch.float64)
    (ours,) = torch.autograd.grad(actual @ weight, leaf, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected @ weight, leaf)
    torch.testing.assert_close(ours, theirs, **EXACT)


def lambda_by_hand(s: Tensor, labels: list[float], temperature: float) -> Tensor:
    """NDCG-Loss2++ of one query, as the paper writes it."""

    def inverse_discount(rank: int) -> float:
        return 1 / math.log2(1 + rank)

    order = sorted(range(len(s)), key=lambda i: -s[i].item())
    rank = {document: place for place, document in enumerate(order, start=1)}
    ideal = sum(
        (2**label - 1) * inverse_discount(place) for place, label in enumerate(sorted(labels, reverse=True), start=1)
    )
    total = 0 * s.sum()
    for i, j in permutations(range(len(s)), 2):
        if labels[i] > labels[j]:
            apart = abs(rank[i] - rank[j])
            rho = abs(inverse_discount(rank[i]) - inverse_discount(rank[j]))
            delta = abs(inverse_discount(apart) - inverse_discount(apart + 1))
            gain = abs((2 ** labels[i] - 1) / ideal - (2 ** labels[j] - 1) / ideal)
            total = total + (rho + 10 * delta) * gain * torch.log2(1 + torch.exp(-(s[i] - s[j]) / temperature))
    return total


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_lambda_equals_the_formula_written_as_loops(temperature: float) -> None:
    scores = random(4, 5)
    expected = [
        lambda_by_hand(s[present], labels[present].tolist(), temperature)
        for s, labels, present in zip(scores, LABELS, PRESENT, strict=True)
    ]
    assert expected[0] > 0 and expected[1] > 0
    assert_same(lambda_ndcg(scores, LABELS, PRESENT, temperature=temperature), torch.stack(expected), scores)


def test_lambda_of_scores_in_no_order_is_finite() -> None:
    """Fresh heads give all documents one score: the earlier counts as the higher."""
    scores = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    expected = [
        lambda_by_hand(s[present], labels[present].tolist(), 1.0)
        for s, labels, present in zip(scores, LABELS, PRESENT, strict=True)
    ]
    assert_same(lambda_ndcg(scores, LABELS, PRESENT, temperature=1.0), torch.stack(expected), scores)


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.5, 3.0)])
def test_margin_mse_equals_the_formula_written_as_loops(temperatures: tuple[float, float]) -> None:
    scores, teacher = random(4, 5), random(4, 5).detach()
    expected = []
    for s, t, positive, present in zip(scores, teacher, POSITIVE, PRESENT, strict=True):
        own = [g for g in range(5) if present[g]]
        terms = [
            ((s[p] - s[n]) / temperatures[0] - (t[p] - t[n]) / temperatures[1]) ** 2
            for p in own
            for n in own
            if positive[p] and not positive[n]
        ]
        expected.append(sum(terms, 0 * s[0]) / max(len(terms), 1))
    assert expected[0] > 0
    settings = {"temperature": temperatures[0], "teacher_temperature": temperatures[1]}
    assert_same(margin_mse(scores, teacher, POSITIVE, PRESENT, **settings), torch.stack(expected), scores)


class Scored(torch.nn.Module):
    """In place of a CrossEncoder: gives logits in the order in which it is asked."""

    num_labels, device = 1, torch.device("cpu")

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.rest = logits

    def preprocess(self, pairs: Sequence[object], **_: object) -> dict[str, Tensor]:
        scores, self.rest = self.rest[: len(pairs)], self.rest[len(pairs) :]
        return {"scores": scores}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


def listed(loss: Callable[..., torch.nn.Module], scores: Tensor) -> Tensor:
    """What a loss of sentence-transformers for lists of documents gives for `LABELS`."""
    documents = [["d"] * int(present.sum()) for present in PRESENT]
    labels = [row[present] for row, present in zip(LABELS, PRESENT, strict=True)]
    found: Tensor = loss(Scored(scores[PRESENT]), mini_batch_size=-1)([["q"] * 4, documents], labels)
    return found


def test_lambda_is_sentence_transformers_times_the_number_of_pairs() -> None:
    """There the sum over all pairs of a batch is divided by their number, here by that of queries."""
    scores = random(4, 5)
    theirs = listed(losses.LambdaLoss, scores)
    pairs = (LABELS[:, :, None] > LABELS[:, None, :]) & PRESENT[:, :, None] & PRESENT[:, None, :]
    ours = lambda_ndcg(scores, LABELS, PRESENT, temperature=1.0).sum() / pairs.sum()
    torch.testing.assert_close(ours.float(), theirs, **NEAR)
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, **NEAR)


def test_kl_to_grades_has_the_gradient_of_list_net() -> None:
    """Their difference is the entropy of the softmax of the grades, which no weight changes."""
    scores = random(4, 5)
    theirs = listed(losses.ListNetLoss, scores)
    ours = kl(scores, LABELS, PRESENT, temperature=1.0, teacher_temperature=1.0).mean()
    softmax = [row[present].softmax(dim=0) for row, present in zip(LABELS, PRESENT, strict=True)]
    entropy = -torch.stack([(p * p.log()).sum() for p in softmax]).mean()
    torch.testing.assert_close((ours + entropy).float(), theirs, **NEAR)
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, **NEAR)


def test_margin_mse_is_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(margin_mse_module, "CrossEncoder", Scored)
    scores, teacher = random(2, 4), random(2, 4).detach()
    columns = [["q", "r"], *[["d", "e"]] * 4]
    theirs = losses.MarginMSELoss(Scored(scores.T.flatten()))(columns, list(teacher))
    positive, present = torch.tensor([[True, False, False, False]] * 2), torch.ones(2, 4, dtype=torch.bool)
    ours = margin_mse(scores, teacher, positive, present, temperature=1.0, teacher_temperature=1.0).mean()
    torch.testing.assert_close(ours.float(), theirs.float(), **NEAR)
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, **NEAR)


def test_gradients_are_those_of_finite_differences() -> None:
    check: Callable[..., bool] = torch.autograd.gradcheck
    teacher = random(4, 5).detach()
    settings = {"temperature": 2.0, "teacher_temperature": 3.0}
    assert check(lambda s: margin_mse(s, teacher, POSITIVE, PRESENT, **settings), random(4, 5))
    assert check(lambda s: lambda_ndcg(s, LABELS, PRESENT, temperature=2.0), random(4, 5))  # ranks stay as they are


@pytest.mark.parametrize("rest", [1e4, -1e4, math.nan, math.inf])
def test_absent_places_are_not_read_and_get_no_gradient(rest: float) -> None:
    scores, teacher = random(4, 5), random(4, 5).detach()
    filled = scores.detach().masked_fill(~PRESENT, rest).requires_grad_()
    labels, others = (each.masked_fill(~PRESENT, rest) for each in (LABELS, teacher))
    settings = {"temperature": 0.5, "teacher_temperature": 2.0}
    for actual, expected in (
        (lambda_ndcg(filled, labels, PRESENT, temperature=0.5), lambda_ndcg(scores, LABELS, PRESENT, temperature=0.5)),
        (
            margin_mse(filled, others, POSITIVE, PRESENT, **settings),
            margin_mse(scores, teacher, POSITIVE & PRESENT, PRESENT, **settings),
        ),
    ):
        assert torch.equal(actual, expected)
        (gradient,) = torch.autograd.grad(actual.sum(), filled)
        assert not gradient[~PRESENT].any()
        assert torch.equal(gradient, torch.autograd.grad(expected.sum(), scores)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_queries_without_pairs_give_nothing(dtype: torch.dtype) -> None:
    scores = torch.tensor([[1e4, 3.0], [-1e4, 3.0], [5.0, -2.0]], dtype=dtype, requires_grad=True)
    positive = torch.tensor([[True, True], [False, False], [True, False]])
    present = torch.tensor([[True, True], [True, True], [False, False]])
    for values in (
        lambda_ndcg(scores, positive.to(dtype), present, temperature=0.05),
        margin_mse(scores, scores.detach() + 1, positive, present, temperature=0.05, teacher_temperature=1.0),
    ):
        assert values.tolist() == [0, 0, 0]
        assert not torch.autograd.grad(values.sum(), scores)[0].any()


def test_extreme_scores_and_grades_keep_values_and_gradients_finite() -> None:
    scores = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    labels, present = torch.tensor([[10.0, 0.0, 1e-9]]), torch.ones(1, 3, dtype=torch.bool)
    value = lambda_ndcg(scores, labels, present, temperature=0.01)
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    assert value.isfinite().all() and gradient.isfinite().all()
    assert gradient[0, 0] < 0 < gradient[0, 1]


def test_half_precision_is_upcast() -> None:
    scores, teacher = torch.randn(4, 5).bfloat16(), torch.randn(4, 5)
    for loss in (
        lambda s: lambda_ndcg(s, LABELS, PRESENT, temperature=0.5),
        lambda s: margin_mse(s, teacher, POSITIVE, PRESENT, temperature=0.5, teacher_temperature=1.0),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = loss(scores)
        assert actual.dtype == torch.float32
        assert torch.equal(actual, loss(scores.float()))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperatures_are_above_zero(temperature: float) -> None:
    scores = torch.zeros(4, 5)
    with pytest.raises(ValueError, match="the temperature is"):
        lambda_ndcg(scores, LABELS, PRESENT, temperature=temperature)
    for own, teachers in ((temperature, 1.0), (1.0, temperature)):
        with pytest.raises(ValueError, match="the temperature is"):
            margin_mse(scores, scores, POSITIVE, PRESENT, temperature=own, teacher_temperature=teachers)
