"""Steps of wrapped models on the pretended device, in a process group of one rank."""

import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import launches
import pytest
import steps
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from launches import Weights, free_port, join
from steps import Case

from nestling.models.embedder import Embedder
from nestling.training.cached import cached_backward
from pretended.commands import DEVICE


def ddp(place: Path) -> None:
    """DistributedDataParallel: steps with gradients reduced in the last backward pass, saved and restored."""
    with a_group_of_one():
        wrapped(place, Case("ddp", "some", "lora"))


def fsdp(place: Path) -> None:
    """FSDP2: sharded weights."""
    with a_group_of_one():
        wrapped(place, Case("fsdp", "some"))


def wrapped(place: Path, case: Case) -> None:
    """Steps on the device in a process group of one rank, saved and restored, against the same on the CPU."""
    folder = place / str(case)
    folder.mkdir()
    steps.write_data(folder)
    shutil.copytree(place / "qwen3", folder / "model")
    found = {}
    for target, backend in ((torch.device("cpu"), "ddp"), (DEVICE, case.backend)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launches, "start", started_on(target, launches.start))
            patch.setattr(steps, "load", loaded_on(target, steps.load))
            found[target.type] = saved_and_restored(folder, replace(case, backend=backend), target)
    for name, tensor in found["cpu"].items():
        torch.testing.assert_close(found[DEVICE.type][name], tensor, rtol=0, atol=1e-4, msg=name)


def saved_and_restored(folder: Path, case: Case, target: torch.device) -> Weights:
    """Weights after three steps, that a checkpoint gives back to another backend."""
    backend = steps.prepared(folder, case, 1, adam=True)
    collator = steps.collate(folder, case, backend.model, 0, 1)
    assert backend.model.device == target
    for indices in launches.global_batches():
        batch = collator[indices].to(target)
        loss = partial(steps.recipe_loss, batch=batch, loss=steps.loss_config(case))
        cached_backward(backend, batch.tokens, loss, steps.BUDGETS[case.kept])
        backend.update(0.01, 1.0, math.isfinite)
    steps.save(backend, folder / target.type, 0)
    weights = {name: each.cpu() for name, each in backend.tensors().items()}
    again = steps.prepared(folder, case, 1, adam=True)
    again.restore(folder / target.type / "step-1")
    restored = again.tensors()
    for name, tensor in weights.items():
        assert torch.equal(restored[name].cpu(), tensor), name
    return weights


@contextmanager
def a_group_of_one() -> Iterator[None]:
    variables = dict(os.environ)
    join(0, 1, free_port())
    dist.init_process_group(f"cpu:gloo,{DEVICE.type}:gloo")
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        os.environ.clear()
        os.environ.update(variables)


def started_on(target: torch.device, start: Callable[[str], Accelerator]) -> Callable[[str], Accelerator]:
    def started(backend: str) -> Accelerator:
        accelerator = start(backend)
        PartialState._shared_state["device"] = AcceleratorState._shared_state["device"] = target
        return accelerator

    return started


def loaded_on(target: torch.device, load: Callable[..., Embedder]) -> Callable[..., Embedder]:
    """FSDP2 moves weights in a way that only tensors of torch's own know: they are on the device before."""
    return lambda *arguments: load(*arguments).to(target)
