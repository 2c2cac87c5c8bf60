import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nestling.backends.optimizer import PACKAGES, adamw, clip_gradients, require_optimizer, set_learning_rate
from nestling.backends.sizes import moments_of, trained_bytes
from nestling.checkpoint.state import load_optimizer, save_optimizer
from nestling.config.training import OptimName
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


def test_the_default_is_fused() -> None:
    (group,) = adamw(nn.Linear(2, 3, bias=False), learning_rate=1e-3, weight_decay=0.1, beta2=0.9).param_groups
    assert (group["fused"], group["betas"]) == (True, (0.9, 0.9))


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """torchao compiles its step, which takes seconds for each shape."""
    with torch.compiler.set_stance("force_eager"):
        yield


class Small(nn.Module):
    """Token embeddings, a matrix whose moments have 8 bits, and a vector; of each text only its tokens learn."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table, self.matrix, self.norm = nn.Embedding(64, 64), nn.Linear(64, 64, bias=False), nn.LayerNorm(64)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.norm(self.matrix(self.table(ids)))
        return hidden


DTYPES: dict[OptimName, torch.dtype] = {
    "adamw_torch_fused": torch.float32,
    "adamw_bnb_8bit": torch.float32,
    "adamw_torch_8bit": torch.bfloat16,
}
EVERY_OPTIMIZER = pytest.mark.parametrize("optim", DTYPES)


def small(optim: OptimName) -> tuple[Small, torch.optim.Optimizer]:
    if optim in PACKAGES:
        pytest.importorskip(PACKAGES[optim], reason="the gpu extra is not installed")
    model = Small(DTYPES[optim])
    return model, adamw(model, learning_rate=1e-3, weight_decay=0.1, optim=optim, seed=5)


def learn(model: Small, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        target = torch.randn(8, 64, dtype=model.norm.weight.dtype)
        (model(torch.arange(8) + step) - target).square().mean().backward()
        set_learning_rate(optimizer, 1e-3 / (1 + step))
        optimizer.step()
        optimizer.zero_grad()


def weights_of(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@EVERY_OPTIMIZER
def test_resumed_from_a_file_is_the_same_to_the_bit(optim: OptimName, uncompiled: None, tmp_path: Path) -> None:
    (model, optimizer), (resumed, other) = small(optim), small(optim)
    learn(model, optimizer, range(3))
    save_optimizer(tmp_path, optimizer.state_dict())
    resumed.load_state_dict(model.state_dict())
    load_optimizer(tmp_path, other)
    learn(model, optimizer, range(3, 6))
    learn(resumed, other, range(3, 6))
    assert torch.equal(weights_of(model), weights_of(resumed))


@EVERY_OPTIMIZER
def test_moments_take_the_bytes_that_the_estimate_says(optim: OptimName, uncompiled: None) -> None:
    model, optimizer = small(optim)
    learn(model, optimizer, range(1))
    allocated = sum(bytes_of(name, each) for state in optimizer.state.values() for name, each in state.items())
    assert allocated == moments_of(model, optim) * trained_bytes(model)


def bytes_of(name: str, state: Any) -> int:
    """Of a moment, with the scales of its blocks; maps from 8 bits to numbers are shared by all."""
    if name == "step" or name.startswith("qmap"):
        return 0
    parts = [getattr(state, part) for part in ("codes", "scale")] if hasattr(state, "codes") else [state]
    return sum(int(each.nbytes) for each in parts)


@EVERY_OPTIMIZER
def test_rows_without_a_gradient_move_no_further_than_the_learning_rate(optim: OptimName, uncompiled: None) -> None:
    """The second moment of the smaller gradients is 0 in 8 bits, the first is not, and divides by it a step later."""
    model, optimizer = small(optim)
    weight = model.table.weight
    with torch.no_grad():
        weight.zero_()
    weight.grad = torch.zeros_like(weight)
    weight.grad[0], weight.grad[1] = 1.0, 1e-4
    for _ in range(3):
        optimizer.step()
        weight.grad = torch.zeros_like(weight)
    assert weight[1].abs().min() > 1e-3 and weight[1].abs().max() < 3e-3
    assert weight[2:].eq(0).all()


def test_rounding_is_the_same_on_all_ranks_and_differs_by_seed_and_step(uncompiled: None) -> None:
    """Whatever ranks have drawn before, for dropout say."""
    (model, optimizer), (same, ranks) = small("adamw_torch_8bit"), small("adamw_torch_8bit")
    other = Small(torch.bfloat16)
    seeded = adamw(other, learning_rate=1e-3, weight_decay=0.1, optim="adamw_torch_8bit", seed=6)
    for step in range(2):
        for each, by, drawn in ((model, optimizer, 0), (same, ranks, 1), (other, seeded, 0)):
            torch.manual_seed(drawn)
            for parameter in each.parameters():
                parameter.grad = torch.ones_like(parameter)
            by.step()
        assert torch.equal(weights_of(model), weights_of(same)), step
        assert not torch.equal(weights_of(model), weights_of(other)), step


def test_bfloat16_weights_follow_a_float64_reference_in_the_mean(uncompiled: None) -> None:
    """Steps of 1e-4 at weights of 1, where bfloat16 has a number each 4e-3: rounded to the nearest, none is taken."""
    pytest.importorskip("torchao", reason="the gpu extra is not installed")
    steps, rate = 60, 1e-4
    exact, nearest, stochastic = (
        nn.Parameter(torch.ones(64, 64, dtype=dtype)) for dtype in (torch.float64, torch.bfloat16, torch.bfloat16)
    )
    kinds: list[tuple[nn.Parameter, OptimName]] = [
        (exact, "adamw_torch_fused"),
        (nearest, "adamw_torch_fused"),
        (stochastic, "adamw_torch_8bit"),
    ]
    for parameter, optim in kinds:
        optimizer = adamw(nn.ParameterList([parameter]), learning_rate=rate, weight_decay=0.0, optim=optim)
        for _ in range(steps):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    assert exact.mean().item() == pytest.approx(1 - steps * rate, abs=1e-6)
    assert nearest.eq(1).all()
    # One rounding has a variance of at most rate * 2**-8; 4096 weights are averaged, so this is 4 standard deviations.
    assert stochastic.double().mean().item() == pytest.approx(
        exact.mean().item(), abs=4 * (steps * rate * 2**-8) ** 0.5 / 64
    )
    assert stochastic.unique().numel() > 1


@pytest.mark.parametrize(
    ("optim", "sharded", "message"),
    [
        ("adamw_bnb_8bit", True, "adamw_bnb_8bit cannot be sharded by ZeRO or FSDP2; use DDP"),
        ("adamw_torch_8bit", True, "adamw_torch_8bit cannot be sharded by ZeRO or FSDP2; use DDP"),
        ("paged_adamw_8bit", False, "there is no such GPU; use adamw_bnb_8bit"),
    ],
)
def test_an_optimizer_that_a_launch_cannot_use_is_refused(
    optim: OptimName, sharded: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestling.config.checks.find_spec", lambda name: name)  # as if all were installed
    with pytest.raises(ValueError, match=re.escape(message)):
        require_optimizer(optim, sharded=sharded, device="cpu")


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestling.config.checks.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"optim: adamw_torch_8bit needs torchao, .*pip install .*\[gpu\]"):
        require_optimizer("adamw_torch_8bit", sharded=False, device="cpu")
