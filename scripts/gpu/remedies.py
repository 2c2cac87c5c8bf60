"""What each remedy against slow steps is worth: a step with it and without it, where there is a switch."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import torch
from peft.tuners.lora.layer import LoraLayer

from nestling.gpu import BF16_RESIDUAL
from nestling.models.compiled_layers import compile_layers
from nestling.models.embedder import Embedder
from nestling.training.profiling import PeakMemory
from scripts.gpu.place import Place
from scripts.gpu.training_step import Tuning, open_step


def nothing(*_: object) -> None:
    """No change."""


def cast_inputs(model: Embedder) -> None:
    """Adapters cast their input to float32, as peft has them do."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = True


def round_hidden_states() -> None:
    """Hidden states are added up in bfloat16, as NESTLING_BF16_RESIDUAL=1 has it."""
    os.environ[BF16_RESIDUAL] = "1"


def fix_segments() -> None:
    """Memory comes in blocks of fixed size."""
    if torch.cuda.is_available():
        torch.cuda.memory._set_allocator_settings("expandable_segments:False")


@dataclass(frozen=True)
class Change:
    """What is different from training as it is.

    Args:
        before: Changes settings of torch.
        after: Changes the model that has been loaded.
        attention: Name of the attention implementation.
        tuning: lora, or full for all weights.
        memory: Bytes for activations that are kept between the passes; None for what the recipes choose.
    """

    before: Callable[[], object] = nothing
    after: Callable[[Embedder], object] = nothing
    attention: str = "auto"
    tuning: Tuning = "lora"
    memory: float | None = None


CHANGES = {
    "training as it is": Change(),
    "no activations kept": Change(memory=0.0),
    "attention varlen": Change(attention="varlen"),
    "cuDNN attention allowed": Change(before=partial(torch.backends.cuda.enable_cudnn_sdp, True)),
    "adapters cast their input": Change(after=cast_inputs),
    "memory in segments of fixed size": Change(before=fix_segments),
    "all weights": Change(tuning="full"),
    "all weights, hidden states added up in bf16": Change(round_hidden_states, tuning="full"),
}


COMPILED = {"layers as they are": Change(), "layers compiled": Change(after=compile_layers)}


def measure(place: Place) -> None:
    """A step with each change."""
    measure_each(place, CHANGES)


def compiled(place: Place) -> None:
    """A step before and after torch has compiled the layers, as NESTLING_COMPILE=1 has it do."""
    measure_each(place, COMPILED)


def measure_each(place: Place, changes: Mapping[str, Change]) -> None:
    """A step with each change, in a process of its own, since some can be made only once."""
    for name, change in changes.items():
        process = get_context("fork").Process(target=step_with, args=(place, change, name))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{name}: the step failed; its error is above in the log")


def step_with(place: Place, change: Change, name: str) -> None:
    change.before()
    step = open_step(place, change.tuning, rows=place.size(128, 4), attention=change.attention)
    change.after(step.model)
    batch, budget = step.batch(place.size(8192, 64)), step.budget(change.memory)
    peak = PeakMemory(place.device)
    with peak:
        seconds = place.median_seconds(lambda: step.take(batch, budget))
    kept = f"{budget.kept(batch.chunks)} of {len(batch.chunks)}"
    rate = round(batch.tokens / seconds)
    place.add(
        "remedies", step=name, seconds=seconds, tokens_per_second=rate, peak_GB=peak.bytes / 1e9, chunks_kept=kept
    )
