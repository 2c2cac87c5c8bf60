"""How fast training is, and how much memory it takes, against what is estimated."""

from dataclasses import replace
from typing import Any, cast

import torch

from nestling.backends.sizes import StateFractions
from nestling.batches.packing import TokenBatch
from nestling.costs.operations import operations_of
from nestling.training.cached import ActivationBudget, cached_backward
from nestling.training.memory import estimate
from nestling.training.profiling import PeakMemory
from scripts.gpu.place import Place
from scripts.gpu.training_step import ChunkClock, TrainingStep, Tuning, open_step

PEAK = 989e12  # operations a second of bfloat16 products on an H100 or H200, as published


def lora(place: Place) -> None:
    measure(place, "lora")


def full(place: Place) -> None:
    measure(place, "full")


def measure(place: Place, tuning: Tuning) -> None:
    """Steps in chunks of several sizes."""
    step = open_step(place, tuning, rows=place.size(192, 4))
    budget = step.budget()
    for chunk_tokens in place.size((16384, 8192, 2048), (64,)):
        batch = step.batch(chunk_tokens)
        figures = speed(step, batch, budget) | memory(step, batch, budget)
        place.add("training", tuning=tuning, chunk_tokens=chunk_tokens, **figures)
        if place.gpu:
            torch.cuda.empty_cache()


def speed(step: TrainingStep, batch: TokenBatch, budget: ActivationBudget) -> dict[str, object]:
    """Of a step: its time, and what it does in it."""
    passes = operations_of(step.model, step.workload)
    seconds = step.place.median_seconds(lambda: step.take(batch, budget))
    return {
        "seconds": seconds,
        "tokens_per_second": round(batch.tokens / seconds),
        "share_of_989_TFLOPS": (passes.forward + passes.backward) / seconds / PEAK,
        "positions_a_token": sum(chunk.positions for chunk in batch.chunks) / batch.tokens,
        "outside_chunks": time_outside_chunks(step, batch, budget),
    }


def time_outside_chunks(step: TrainingStep, batch: TokenBatch, budget: ActivationBudget) -> float:
    """The share of a step's time that is no chunk's, with waits around each chunk."""
    clock = ChunkClock(step.backend, step.place.device)

    def take() -> None:
        cached_backward(cast(Any, clock), batch, step.loss, budget)
        step.backend.update(1e-5, 1.0, lambda norm: True)

    whole = step.place.seconds(take)
    return 1 - clock.seconds / whole


def memory(step: TrainingStep, batch: TokenBatch, budget: ActivationBudget) -> dict[str, object]:
    """Of a step: its peak, the estimate, and how many chunks keep their activations."""
    kept, peak = budget.kept(batch.chunks), PeakMemory(step.place.device)
    with peak:
        step.take(batch, budget)
    positions = sum(chunk.positions for chunk in batch.chunks[len(batch.chunks) - kept :])
    largest = max(chunk.positions for chunk in batch.chunks)
    estimated = estimate(
        step.model, StateFractions(), chunk=budget.position * largest, kept=budget.position * positions
    )
    # With all chunks kept, no other chunk's activations come on top.
    most = replace(estimated, chunk=0.0) if kept == len(batch.chunks) else estimated
    return {
        "peak_GB": peak.bytes / 1e9,
        "estimated_GB": most.total / 1e9,
        "kB_a_position": budget.position / 1e3,
        "chunks_kept": f"{kept} of {len(batch.chunks)}",
    }
