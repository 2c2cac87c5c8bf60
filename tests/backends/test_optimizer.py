import pytest
import torch
from torch import nn

from nestling.backends.optimizer import adamw, clip_gradients
from nestling.training.schedule import learning_rate_at


def test_clipping_scales_to_the_norm_and_returns_the_one_before() -> None:
    model = nn.Linear(2, 2, dtype=torch.float64)
    (100 * model(torch.ones(3, 2, dtype=torch.float64)).sum()).backward()
    before = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None]).norm().item()
    assert clip_gradients(model.parameters(), 1.0) == pytest.approx(before)
    assert clip_gradients(model.parameters(), 0.0) == pytest.approx(1.0, rel=1e-6)
    assert clip_gradients(model.parameters(), 0.5) == pytest.approx(1.0, rel=1e-6)
    assert clip_gradients(model.parameters(), 0.0) == pytest.approx(0.5, rel=1e-6)


def test_clipping_with_a_non_finite_norm_changes_nothing() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([float("inf"), 1.0])
    assert clip_gradients([parameter], 1.0) == float("inf")
    assert parameter.grad.tolist() == [float("inf"), 1.0]


def test_matrices_sharded_by_zero3_have_weight_decay() -> None:
    model = nn.Linear(2, 3)
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    groups = adamw(model, learning_rate=1e-3, weight_decay=0.1).param_groups
    assert [(group["weight_decay"], group["params"][0] is model.weight) for group in groups] == [
        (0.1, True),
        (0.0, False),
    ]


def test_only_matrices_have_weight_decay_and_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    model[2].requires_grad_(False)
    groups = adamw(model, learning_rate=1e-3, weight_decay=0.1).param_groups
    assert [(group["weight_decay"], [tuple(each.shape) for each in group["params"]]) for group in groups] == [
        (0.1, [(3, 2)]),
        (0.0, [(3,), (3,), (3,)]),
    ]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("linear", [0.5, 1.0, 0.75, 0.5, 0.25]), ("constant_with_warmup", [0.5, 1.0, 1.0, 1.0, 1.0])],
)
def test_learning_rate_by_step(schedule: str, rates: list[float]) -> None:
    found = [learning_rate_at(i, total=5, peak=1.0, warmup=1, schedule=schedule) for i in range(5)]
    assert found == pytest.approx(rates)


def test_cosine_is_half_way_in_the_middle() -> None:
    assert learning_rate_at(5, total=10, peak=2.0, warmup=0, schedule="cosine") == pytest.approx(1.0)
