"""The content of a checkpoint, and that it is restored exactly."""

from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from nestling.checkpoint import (
    TrainingState,
    load_state,
    restore_tensors,
    save_optimizer,
    trainable_tensors,
    write_training,
)
from nestling.checkpoint.state import load_optimizer


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.second = nn.Linear(8, 4, dtype=torch.float64)
        self.tied = self.first
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.second(self.norm(self.first(inputs)).double())
        return outputs


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
    loss = model(inputs).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def exact(value: object) -> object:
    """A comparable form of nested state: bits, dtypes and devices."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.device, tuple(value.shape), value.detach().numpy().tobytes())
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    return [exact(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": False, "amsgrad": True}])
def test_a_resumed_run_is_bit_for_bit_the_same(tmp_path: Path, options: dict[str, bool]) -> None:
    def build(seed: int) -> tuple[Model, torch.optim.AdamW]:
        torch.manual_seed(seed)
        model = Model()
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, **options)  # type: ignore[arg-type]

    model, optimizer = build(0)
    for step in range(3):
        train_step(model, optimizer, step)
    state = TrainingState(step=3, tokens=10**12, best_metric=0.1 + 0.2, best_step=2, skipped_steps=1)
    write_training(tmp_path, trainable_tensors(model), state)
    save_optimizer(tmp_path, optimizer.state_dict())
    again, optimizer_again = build(1)
    restore_tensors(tmp_path, again)
    load_optimizer(tmp_path, optimizer_again)
    assert load_state(tmp_path) == state
    assert exact(optimizer_again.state_dict()) == exact(optimizer.state_dict())
    for step in range(3, 6):
        assert train_step(again, optimizer_again, step) == train_step(model, optimizer, step)
    assert exact(again.state_dict()) == exact(model.state_dict())


def test_shared_tensors_are_stored_once_and_scratch_buffers_never() -> None:
    assert sorted(trainable_tensors(Model())) == [
        "first.bias", "first.weight", "norm.bias", "norm.num_batches_tracked", "norm.running_mean", "norm.running_var",
        "norm.weight", "second.bias", "second.weight",
    ]  # fmt: skip


def test_lora_checkpoints_hold_the_adapter_only(tmp_path: Path) -> None:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        torch.manual_seed(seed)
        return peft.inject_adapter_in_model(
            peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False), base
        )

    model, again = build(1), build(2)
    tensors = trainable_tensors(model)
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "0.lora_A.default.weight": [2, 4],
        "0.lora_B.default.weight": [8, 2],
        "2.lora_A.default.weight": [2, 8],
        "2.lora_B.default.weight": [4, 2],
    }
    write_training(tmp_path, tensors, TrainingState())
    restore_tensors(tmp_path, again)
    assert exact(again.state_dict()) == exact(model.state_dict())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(4, 3), "weight is .4, 4. torch.float32, the model's is .3, 4. torch.float32"),
        (nn.Linear(4, 4).bfloat16(), "weight is .4, 4. torch.float32, the model's is .4, 4. torch.bfloat16"),
        (nn.Sequential(nn.Linear(4, 4)), r"2 trained tensors are missing \['0.bias', '0.weight'\], 2 are unknown"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, other: nn.Module, message: str) -> None:
    write_training(tmp_path, trainable_tensors(nn.Linear(4, 4)), TrainingState())
    with pytest.raises(ValueError, match=message):
        restore_tensors(tmp_path, other)


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    save_optimizer(tmp_path, torch.optim.AdamW(model.parameters()).state_dict())
    others = torch.optim.SGD([model.weight], lr=0.1)
    with pytest.raises(ValueError, match=r"parameter groups of \[2\] tensors, this optimizer of \[1\]"):
        load_optimizer(tmp_path, others)
    with pytest.raises(ValueError, match="resume with the backend that the run started with"):
        load_optimizer(tmp_path / "elsewhere", others)


def test_an_evaluation_is_the_best_only_if_it_beats_the_best() -> None:
    state = TrainingState()
    for metric in (0.5, 0.4, 0.5):
        state.advance(examples=64, tokens=1000, truncated=1)
        state.record_evaluation(metric)
    assert state == TrainingState(
        step=3, tokens=3000, examples=192, truncated=3, best_metric=0.5, best_step=1, evaluations_since_best=2
    )
