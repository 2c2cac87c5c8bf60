"""Estimates of memory beside what a real step allocates."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nestling.backends.optimizer import adamw
from nestling.backends.plain import Plain
from nestling.backends.sizes import StateFractions, full_bytes
from nestling.batches.packing import pack
from nestling.models.adapters import attach_lora
from nestling.models.embedder import Embedder
from nestling.training.cached import ActivationBudget, cached_backward
from nestling.training.memory import MemoryEstimate, estimate, kept_bytes, room_for_activations


def held(tensors: list[Tensor]) -> int:
    """Bytes of tensors, each storage once."""
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


@pytest.mark.parametrize("lora", [False, True])
def test_the_state_of_a_model_is_what_a_step_leaves(lora: bool, qwen3: Path) -> None:
    model = Embedder.from_pretrained(qwen3, dtype=torch.float32)
    if lora:
        model.backbone = attach_lora(model.backbone, r=4, alpha=8, dropout=0.0)
    optimizer = adamw(model, learning_rate=1e-3, weight_decay=0.0)
    backend = Plain(model, optimizer)
    found = estimate(model, backend.state_fractions, chunk=10.0, kept=1.0)
    batch = pack([[5, 6, 7], [8, 9]], 8, 0)
    cached_backward(backend, batch, lambda each: each.square().sum(), ActivationBudget(0.0, 1.0))
    assert found.weights == held([*model.parameters(), *model.buffers()])
    assert found.gradients == held([each.grad for each in model.parameters() if each.grad is not None]) > 0
    optimizer.step()
    moments = [each[name] for each in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert found.optimizer == held(moments)
    assert found.total == found.weights + found.gradients + found.optimizer + 11.0
    assert found.room > found.weights


def test_a_rank_holds_its_share(bert: Path) -> None:
    model = Embedder.from_pretrained(bert, dtype=torch.float32)
    whole = estimate(model, StateFractions(), chunk=0.0, kept=0.0)
    part = estimate(model, StateFractions(0.25, 1.25, 0.5), chunk=0.0, kept=0.0)
    assert full_bytes(model.parameters()) <= whole.weights == 4 * part.weights
    assert (part.gradients, part.optimizer) == (1.25 * whole.gradients, 0.25 * whole.optimizer)


def test_graphs_get_half_of_what_gradients_and_optimizer_leave() -> None:
    """Of four ranks with FSDP2: a quarter of gradients and moments, and whole gradients where they fit."""
    assert room_for_activations(100.0, 10.0, StateFractions()) == 35.0
    assert room_for_activations(100.0, 10.0, StateFractions(0.25, 0.25, 0.5)) == 46.25
    assert room_for_activations(100.0, 10.0, StateFractions(0.25, 1.25, 0.5)) == 41.25
    assert [kept_bytes(room, 2.0, 10.0) for room in (-1.0, 15.0, 40.0)] == [0.0, 15.0, 20.0]


GIGABYTES = MemoryEstimate(weights=4e9, gradients=3e9, optimizer=6e9, chunk=2e9, kept=5e9, room=24e9)


def test_a_summary_says_what_is_needed() -> None:
    assert GIGABYTES.items() == {
        "memory": "20.00 GB of 24.00 GB on each process",
        "- weights": "4.00 GB",
        "- gradients": "3.00 GB",
        "- optimizer": "6.00 GB",
        "- largest chunk": "2.00 GB",
        "- kept activations": "up to 5.00 GB",
    }


@pytest.mark.parametrize(
    ("room", "advice"), [(12.9e9, "tuning lora"), (14.9e9, "lower chunk_tokens"), (19.9e9, "lower activation_memory")]
)
def test_what_does_not_fit_comes_with_advice(room: float, advice: str) -> None:
    assert advice in str(replace(GIGABYTES, room=room).items()["WARNING"])
