"""Where a step waits for the GPU."""

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from scripts.gpu.place import ROOT, Place
from scripts.gpu.training_step import open_step

SOURCES = ROOT / "src"


def find(place: Place) -> None:
    """List the waits of a step by the line of ours that they come from."""
    step = open_step(place, "lora", rows=64)
    batch, budget = step.batch(2048), step.budget()
    step.take(batch, budget)
    found: Counter[str] = Counter()
    with listed(found), sync_debug_mode():
        step.take(batch, budget)
    for line, count in found.most_common():
        place.add("waits of a step", line=line, count=count, chunks=len(batch.chunks))


@contextmanager
def sync_debug_mode() -> Iterator[None]:
    """torch warns of every wait."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def listed(found: "Counter[str]") -> Iterator[None]:
    """Warnings are counted by the innermost line of this repository that they come from."""

    def count(message: Warning | str, *where: Any, **more: Any) -> None:
        frames = [each for each in traceback.extract_stack() if each.filename.startswith(str(SOURCES))]
        if "synchroniz" in str(message):
            found[place_of(frames[-1]) if frames else "elsewhere"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count
        yield


def place_of(frame: traceback.FrameSummary) -> str:
    return f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno}"
