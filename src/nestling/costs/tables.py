"""Tables of what stages need and take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nestling.config import MineConfig
from nestling.config.costs import GpuName, LaunchCosts, StageCosts
from nestling.console import table
from nestling.costs.recipes import read_recipe
from nestling.costs.stage import Costs
from nestling.training.memory import gigabytes

# Gigabytes, and operations a second in bfloat16 without sparsity, of the makers' data sheets.
GPUS: dict[GpuName, tuple[float, float]] = {
    "l4": (24, 121e12),
    "a100-40": (40, 312e12),
    "a100-80": (80, 312e12),
    "h100": (80, 989e12),
    "h200": (141, 989e12),
}


@dataclass(frozen=True)
class Row:
    """A stage that is started in some way.

    Args:
        stage: Its recipe and data.
        launch: How it is started.
        costs: What it takes.
    """

    stage: StageCosts
    launch: LaunchCosts
    costs: Costs

    @property
    def name(self) -> str:
        return f"{Path(self.stage.path).parent.name} {Path(self.stage.path).stem}"

    @property
    def started(self) -> str:
        """The backend, the number of GPUs and what is trained."""
        count = f"{self.launch.num_processes} GPU{'s' if self.launch.num_processes > 1 else ''}"
        recipe = read_recipe(self.stage.script, self.stage.path)
        if isinstance(recipe, MineConfig):
            return count
        backend = "" if self.launch.backend == "one" else f", {self.launch.backend}"
        return f"{count}{backend}, {self.launch.tuning or recipe.tuning}"


def memory_table(rows: Sequence[Row], *, markdown: bool) -> str:
    """Gigabytes of each process."""
    headers = ["recipe", "started on", "weights", "gradients", "optimizer", "chunk", "kept", "in all", "fits"]
    return table(headers, list(map(memory_cells, rows)), digits=1, markdown=markdown)


def memory_cells(row: Row) -> list[object]:
    found = row.costs.memory
    parts = (found.weights, found.gradients, found.optimizer, found.chunk, found.kept, found.total)
    return [row.name, row.started, *(part / 1e9 for part in parts), "yes" if row.costs.fits else "no"]


def work_table(rows: Sequence[Row], speed: float, *, markdown: bool) -> str:
    """What is computed, and how long that takes at so many operations a second on each GPU."""
    headers = ["recipe", "started on", "billion tokens", "forward passes", "exaflop", "GPU hours", "hours"]
    return table(headers, [work_cells(row, speed) for row in rows], digits=2, markdown=markdown)


def work_cells(row: Row, speed: float) -> list[object]:
    hours = row.costs.gpu_hours(speed)
    figures = (
        row.costs.tokens / 1e9,
        float(row.costs.forwards),
        row.costs.operations / 1e18,
        hours,
        hours / row.launch.num_processes,
    )
    return [row.name, row.started, *figures]


def advice(rows: Sequence[Row]) -> Iterator[str]:
    """What does not fit, and what to do."""
    for row in rows:
        found = row.costs.memory
        if found.advice is not None:
            needed = f"{gigabytes(found.total)} of {gigabytes(found.room)}"
            yield f"{row.name} on {row.started}: {needed}; {found.advice}"
