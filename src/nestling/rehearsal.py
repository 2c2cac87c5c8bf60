"""A step before the first: how much memory it takes, how fast it is, and whether other chunks would be faster."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from nestling.packing import PackedChunk, TokenBatch, pack


@dataclass(frozen=True)
class Rehearsal:
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


def rehearse(
    step: Callable[[TokenBatch], object], batch: TokenBatch, sizes: Sequence[int], pad_id: int, device: torch.device
) -> Iterator[Rehearsal]:
    """Run `step` on the texts of `batch` in chunks of each of `sizes`, the first of them once more to warm up."""
    ids, packed = unpack(batch), isinstance(batch.chunks[0], PackedChunk)
    for number, size in enumerate([sizes[0], *sizes]):
        tokens = pack(ids, size, pad_id, padding_free=packed).to(device)
        peak = PeakMemory(device)
        started = time.perf_counter()
        try:
            with peak:
                step(tokens)
                seconds = time.perf_counter() - started
        except torch.OutOfMemoryError:
            yield Rehearsal(size, float("nan"), float("nan"), float("nan"), None)
            return
        if number:
            positions = sum(chunk.positions for chunk in tokens.chunks)
            yield Rehearsal(size, seconds, tokens.tokens / seconds, positions / tokens.tokens, peak.bytes)


def unpack(batch: TokenBatch) -> list[list[int]]:
    """Token ids of the texts, in the caller's order."""
    rows: list[list[int]] = []
    for chunk in batch.chunks:
        lengths = chunk.lengths.tolist()
        parts: Sequence[Tensor] = (
            chunk.input_ids[0].split(lengths)
            if isinstance(chunk, PackedChunk)
            else [row[:length] for row, length in zip(chunk.input_ids, lengths, strict=True)]
        )
        rows += [part.tolist() for part in parts]
    return [rows[place] for place in batch.position.tolist()]


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
