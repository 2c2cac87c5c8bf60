"""Estimates of memory beside what a real step allocates."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nestling.backends.optimizer import adamw
from nestling.backends.plain import Plain
from nestling.backends.sizes import StateFractions, free_memory, full_bytes
from nestling.batches.packing import AnyChunk, pack
from nestling.models.adapters import attach_lora
from nestling.models.embedder import Embedder
from nestling.training.cached import ActivationBudget, cached_backward
from nestling.training.memory import (
    ON_CPU,
    MemoryEstimate,
    activation_bytes,
    bytes_per_position,
    estimate,
    kept_bytes,
    most_per_position,
    room_for_activations,
    room_of,
    sample_chunk,
)


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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpoint_above", [None, 0, 48])
def test_a_small_chunk_tells_what_a_large_one_takes(attention: str, checkpoint_above: int | None, qwen3: Path) -> None:
    """Two whole chunks of 16,384 positions took 71 GB before step 1. Eager attention keeps more for longer texts."""
    model = Embedder.from_pretrained(qwen3, dtype=torch.float32, attn_implementation=attention)
    if checkpoint_above is not None:
        model.checkpoint_activations_above(checkpoint_above)
    whole = [
        activation_bytes(model, model, sample_chunk(length, 512, 60, torch.device("cpu"))) / 512
        for length in (128, min(checkpoint_above or 128, 128))
    ]
    assert most_per_position(model, model, 128, 64) == pytest.approx(max(whole), rel=0.03)


class FullDevice(Plain):
    """Its memory holds a chunk of so many positions."""

    room = 0

    def forward(self, chunk: AnyChunk, *, last_backward: bool) -> Tensor:
        if chunk.positions > self.room:
            raise torch.OutOfMemoryError("a full device")
        return super().forward(chunk, last_backward=last_backward)


def test_measuring_survives_running_out_of_memory(qwen3: Path) -> None:
    model = Embedder.from_pretrained(qwen3, dtype=torch.float32)
    backend = FullDevice(model, adamw(model, learning_rate=1e-3, weight_decay=0.0))
    backend.room = ON_CPU
    wanted = bytes_per_position(backend, 64)
    backend.room = 100
    assert bytes_per_position(backend, 64) == pytest.approx(wanted, rel=0.02)
    backend.sharded = True
    with pytest.raises(ValueError, match="ZeRO-3 or FSDP2"):
        bytes_per_position(backend, 64)
    backend.sharded, backend.room = False, 0
    with pytest.raises(ValueError, match="out of memory in a forward of one position; use tuning lora"):
        bytes_per_position(backend, 64)


def test_what_the_allocator_holds_in_reserve_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a card of 100 bytes other processes have 20 and this one 70, of which 30 are not in use."""

    class Gpu:
        mem_get_info = staticmethod(lambda device: (10, 100))
        memory_reserved = staticmethod(lambda device: 70)
        memory_allocated = staticmethod(lambda device: 40)

    monkeypatch.setattr(torch, "get_device_module", lambda device: Gpu)
    assert free_memory(torch.device("cuda")) == 40
    assert room_of(torch.device("cuda"), 35) == 80


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
