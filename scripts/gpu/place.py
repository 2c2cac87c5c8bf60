"""Where a check runs, in which sizes, and where its figures go."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
REPEATS = 5


class NotRunError(Exception):
    """A check that cannot run here, and why."""


@dataclass(frozen=True)
class Place:
    """What a check is given.

    Args:
        gpu: Whether it runs on a GPU, in real sizes and bfloat16; on a CPU sizes are small, and all is float32.
        work: Folder of the models and the data that checks share.
        rows: File that its figures are written to, a line at once for each, so that what follows cannot take them away.
    """

    gpu: bool
    work: Path
    rows: Path

    def log(self, name: str) -> Path:
        """The file for what a process that a check starts says."""
        return self.rows.parent / f"{name}.log"

    @property
    def device(self) -> "torch.device":
        import torch

        return torch.device("cuda" if self.gpu else "cpu")

    @property
    def precision(self) -> "torch.dtype":
        import torch

        return torch.bfloat16 if self.gpu else torch.float32

    @property
    def repeats(self) -> int:
        return self.size(REPEATS, 1)

    def size(self, on_gpu: T, on_cpu: T) -> T:
        return on_gpu if self.gpu else on_cpu

    def add(self, table: str, **figures: object) -> None:
        """Write a row of a table."""
        with self.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"table": table, **figures}) + "\n")

    def require(self, quantity: str, found: float, limit: float) -> None:
        """Write down a difference, and raise an error if it is above the limit or not a number."""
        self.add("differences", quantity=quantity, found=found, limit=limit)
        if not found <= limit:
            raise AssertionError(f"{quantity}: {found:.3g}, which is above {limit:g}")

    def seconds(self, call: Callable[[], object]) -> float:
        """Seconds of a call, until the device has done all of it."""
        from nestling.gpu import synchronize

        synchronize(self.device)
        started = time.perf_counter()
        call()
        synchronize(self.device)
        return time.perf_counter() - started

    def median_seconds(self, call: Callable[[], object]) -> float:
        """The median of several calls, after one that warms up."""
        call()
        return median(self.seconds(call) for _ in range(self.repeats))
