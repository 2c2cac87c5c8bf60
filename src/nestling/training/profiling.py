"""Profiling a step: how much memory it takes, how fast it is, and whether chunks of another size would be faster."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil
import torch
from accelerate import Accelerator

from nestling.config import require
from nestling.console import table
from nestling.gpu import synchronize


@dataclass(frozen=True)
class StepProfile:
    """One step with chunks of some size.

    Args:
        chunk_tokens: Token budget of a chunk.
        seconds: Forward and backward.
        tokens_per_second: Real tokens, padding excluded.
        padding: Positions over tokens.
        peak: Bytes at most in use; None where memory ran out.
    """

    chunk_tokens: int
    seconds: float
    tokens_per_second: float
    padding: float
    peak: float | None


def profile_step(
    step: Callable[[int], tuple[int, int]], sizes: Sequence[int], device: torch.device
) -> Iterator[StepProfile]:
    """Run a step with chunks of each size; the first that fits runs once more before, to warm up.

    Where memory runs out, larger sizes are left out, and smaller ones go on.

    Args:
        step: Runs a step with a token budget of a chunk; returns its real tokens and its positions, padding included.
        sizes: Token budgets.
        device: Where the model computes.
    """
    warm, full = False, math.inf
    for size in sizes:
        if size >= full:
            continue
        try:
            if not warm:
                step(size)
                warm = True
            yield timed(step, size, device)
        except torch.OutOfMemoryError:
            full = size
            yield StepProfile(size, math.nan, math.nan, math.nan, None)


def timed(step: Callable[[int], tuple[int, int]], size: int, device: torch.device) -> StepProfile:
    """Run a step with chunks of a size; raises `torch.OutOfMemoryError` if they do not fit."""
    peak = PeakMemory(device)
    synchronize(device)  # a GPU computes long after the calls have returned
    started = time.perf_counter()
    with peak:
        tokens, positions = step(size)
        synchronize(device)
    seconds = time.perf_counter() - started
    return StepProfile(size, seconds, tokens / seconds, positions / tokens, peak.bytes)


def profiled_sizes(size: int, ranks: int) -> list[int]:
    """The size that is set, smaller ones, and, in one process, larger ones: of several ranks one that runs out of
    memory would leave the others waiting."""
    larger = [2 * size, 4 * size] if ranks == 1 else []
    return [size, *(each for each in (size // 4, size // 2) if each), *larger]


def profile_table(found: Sequence[StepProfile], tokens: int) -> str:
    """What each size took for the `tokens` of a step, and the fastest."""
    fitting = [each for each in found if each.peak is not None]
    rows = [[each.chunk_tokens, each.tokens_per_second, each.padding, (each.peak or 0) / 1e9] for each in fitting]
    lines = [table(["chunk_tokens", "tokens/s", "positions a token", "peak GB"], rows)] if rows else []
    lines += [f"out of memory with --chunk_tokens {each.chunk_tokens}" for each in found if each.peak is None]
    if fitting:
        best = max(fitting, key=lambda each: each.tokens_per_second)
        lines.append(f"{tokens:,} tokens a step; fastest here: --chunk_tokens {best.chunk_tokens}")
    return "\n".join(lines)


def profile_run(
    step: Callable[[int], tuple[int, int]], *, chunk_tokens: int, tokens: int, accelerator: Accelerator
) -> None:
    """--dry_run: profile a step in chunks of several sizes, and print the table on rank 0.

    Args:
        step: Takes a step, without an update, in chunks of so many tokens; gives its tokens and positions.
        chunk_tokens: The size that is set.
        tokens: Tokens of the step.
        accelerator: This rank, and its device.
    """
    sizes = profiled_sizes(chunk_tokens, accelerator.num_processes)
    profiles = list(profile_step(step, sizes, accelerator.device))
    require(
        any(each.peak is not None for each in profiles),
        f"out of memory with chunks of {min(sizes)} tokens; set gradient_checkpointing_length, a lower chunk_tokens, "
        "lower maximum lengths, or fewer negatives",
    )
    if accelerator.is_main_process:
        print(profile_table(profiles, tokens))


class PeakMemory:
    """The most memory in use inside a block: of the device, or for a CPU of this process, looked at every 5 ms.

    Attributes:
        bytes: The peak, once the block is left.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0.0
        self._over = threading.Event()

    def __enter__(self) -> None:
        if self.device.type == "cpu":
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        else:
            torch.get_device_module(self.device).reset_peak_memory_stats(self.device)

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cpu":
            self._over.set()
            self._watcher.join()
        else:
            self.bytes = float(torch.get_device_module(self.device).max_memory_allocated(self.device))

    def _watch(self) -> None:
        process, over = psutil.Process(), False
        while not over:
            over = self._over.wait(0.005)
            self.bytes = max(self.bytes, float(process.memory_info().rss))
