"""What the comparisons of whole steps share: processes that take turns, the memory of a step, tables of the results.

A side is one way to take a step. It has a process of its own, so that no library finds another's modules or settings.
"""

import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nestling.config import require
from nestling.console import table
from nestling.heap import trim_heap

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

K = TypeVar("K")


@dataclass
class Result:
    """What a side's process found.

    Args:
        loss: Of the whole batch.
        gradient: [parameters] float32, its gradient.
        mebibytes: Peak of activations.
        padding: Positions that ran through the model with a graph, over real tokens.
        seconds: Of the timed steps.
        cpu_seconds: Processor time of these, of all threads, which other work on the machine changes less.
    """

    loss: float
    gradient: "np.ndarray"
    mebibytes: float
    padding: float
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu_seconds)

    def add(self, took: tuple[float, float]) -> None:
        """A timed step, as `measured_steps` gives it."""
        self.seconds.append(took[0])
        self.cpu_seconds.append(took[1])

    def difference(self, expected: "Result") -> tuple[float, float]:
        """Relative differences of the loss, and of the gradient in the L2 norm."""
        import numpy as np

        loss = abs(self.loss - expected.loss) / abs(expected.loss)
        return loss, float(np.linalg.norm(self.gradient - expected.gradient) / np.linalg.norm(expected.gradient))


def comparison(results: Mapping[str, Result], reference: str, *, heading: str = "", alone: str | None = None) -> str:
    """A line for each side, with ratios over that of the reference, as Markdown.

    Args:
        results: By side.
        reference: The side that the others are compared with.
        heading: Of the first column.
        alone: A side that does other work, so that its loss and gradient are not compared.
    """
    base = results[reference]
    lines = [
        [
            side,
            result.median,
            result.median / base.median,
            result.cpu_median,
            result.cpu_median / base.cpu_median,
            round(result.mebibytes),
            result.mebibytes / base.mebibytes,
            result.padding,
            *((1e6 * each for each in result.difference(base)) if side != alone else ("", "")),
        ]
        for side, result in results.items()
    ]
    measures = [name for measure in ("seconds", "CPU seconds", "MiB") for name in (measure, "ratio")]
    headings = [heading, *measures, "positions / tokens", "loss off, 1e-6", "gradient off, 1e-6"]
    return table(headings, lines, markdown=True)


def met(found: list[list[object]], headings: list[str]) -> str:
    """Which of the project's targets were met, as Markdown.

    Args:
        found: A line for each: its name, what was found, perhaps more of that, and at last the most that is allowed.
        headings: Of all but that last column.
    """
    lines = [[*line, "yes" if float(str(line[1])) <= float(str(line[-1])) else "no"] for line in found]
    return table([*headings, "at most", "met"], lines, markdown=True)


class Turns(Generic[K]):
    """A process for each side, which computes the next item of an iterator when it is its turn.

    Args:
        sides: What makes the iterator, in the side's own process.

    Attributes:
        first: Each side's first item, made before the next side's process starts.
    """

    def __init__(self, sides: Mapping[K, Callable[[], Iterator[Any]]]) -> None:
        context = get_context("spawn")
        self.pipes: dict[K, Connection[Any, Any]] = {}
        self.first: dict[K, Any] = {}
        for side, make in sides.items():
            self.pipes[side], other = context.Pipe()
            context.Process(target=serve, args=(other, make), daemon=True).start()
            other.close()
            self.first[side] = self._answer(side)

    def __enter__(self) -> "Turns[K]":
        return self

    def __exit__(self, *raised: object) -> None:
        for pipe in self.pipes.values():
            pipe.close()

    def take(self) -> Iterator[tuple[K, Any]]:
        """The next item of each side, one side after the other."""
        for side, pipe in self.pipes.items():
            pipe.send("next")
            yield side, self._answer(side)

    def add(self, repeats: int) -> None:
        """Timed steps of all sides, added to their `Result`, which is their first item."""
        for _ in range(repeats):
            for side, took in self.take():
                self.first[side].add(took)

    def _answer(self, side: K) -> Any:
        try:
            return self.pipes[side].recv()
        except EOFError as error:
            raise ValueError(
                f"the process of {side!r} ended; its error is above, or it was killed for memory"
            ) from error


def serve(pipe: "Connection[Any, Any]", make: Callable[[], Iterator[Any]]) -> None:
    """In a process of its own: an item at once, then one for each message."""
    for item in make():
        pipe.send(item)
        try:
            pipe.recv()
        except EOFError:
            return


def measured_steps(
    model: "nn.Module",
    optimizer: "Optimizer",
    backward: Callable[[], "Tensor"],
    *,
    warm_up: Callable[[], "Tensor"],
    tokens: int,
    device: "torch.device",
    counted: str = "norm",
) -> Iterator[Result | tuple[float, float]]:
    """The untimed first step's `Result`, then seconds and processor seconds of steps without end.

    Args:
        model: Whose gradients are compared, and the calls of one of whose modules are counted.
        optimizer: Over its parameters.
        backward: Adds the gradient of the loss, which it returns.
        warm_up: The same on little, after which gradients and optimizer state exist and kernels are loaded.
        tokens: Of the batch.
        device: Where the model is.
        counted: The name of that module, which every position goes through once.
    """
    take_step(optimizer, warm_up)
    yield first_step(model, partial(take_step, optimizer, backward), tokens, device, counted)
    while True:
        synchronize(device)
        start, cpu_start = time.perf_counter(), time.process_time()
        take_step(optimizer, backward)
        synchronize(device)
        yield time.perf_counter() - start, time.process_time() - cpu_start


def take_step(optimizer: "Optimizer", backward: Callable[[], "Tensor"]) -> "Tensor":
    optimizer.zero_grad(set_to_none=False)  # gradients stay allocated, and do not count as activations
    loss = backward()
    optimizer.step()
    return loss


def first_step(
    model: "nn.Module", step: Callable[[], "Tensor"], tokens: int, device: "torch.device", counted: str
) -> Result:
    import torch

    positions = 0

    def count(module: object, arguments: tuple["Tensor"]) -> None:
        nonlocal positions
        if torch.is_grad_enabled():  # once for each text, however often it is encoded
            positions += arguments[0].shape[:-1].numel()

    hook = model.get_submodule(counted).register_forward_pre_hook(count)
    loss, mebibytes = peak(step, device)
    hook.remove()
    gradient = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
    return Result(float(loss), gradient.cpu().numpy(), mebibytes, positions / tokens)


def peak(step: Callable[[], "Tensor"], device: "torch.device") -> tuple["Tensor", float]:
    """What the step returns, and MiB that it needs at most beside what is there before it."""
    memory = Peak(device)
    result = step()
    return result, memory.read()


class Peak:
    """The most memory in use since the last reading, in MiB over what was in use at the start."""

    def __init__(self, device: "torch.device") -> None:
        import torch

        self.device = device
        if device.type == "cuda":
            self.start = torch.cuda.memory_allocated(device) / 2**20
        else:
            trim_heap()  # what the warm-up has freed must not hide what the step takes
            self.start = status("VmRSS") / 1024
        self._reset()

    def read(self) -> float:
        import torch

        of_gpu = self.device.type == "cuda"
        most = torch.cuda.max_memory_allocated(self.device) / 2**20 if of_gpu else status("VmHWM") / 1024
        self._reset()
        return most - self.start

    def _reset(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts at VmRSS again


def status(key: str) -> int:
    """KiB of a line of /proc/self/status."""
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert match is not None, key
    return int(match[1])


def pick_device(name: str) -> "torch.device":
    """Of a setting: cpu, cuda, or auto."""
    import torch

    require(name != "cuda" or torch.cuda.is_available(), "device is cuda, and torch sees no GPU")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(automatic if name == "auto" else name)


def synchronize(device: "torch.device") -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: "torch.device") -> str:
    """What a table's numbers were measured with."""
    import torch

    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"torch {torch.__version__}, {device.type}, {hardware}"
