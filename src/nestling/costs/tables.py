"""Tables of the memory and work of stages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nestling.config import MineConfig
from nestling.config.costs import GpuName, LaunchCosts, StageCosts
from nestling.console import table
from nestling.costs.recipes import read_recipe
from nestling.costs.stage import StageEstimate
from nestling.training.memory import gigabytes

# (gigabytes, operations per second in bfloat16 without sparsity) from the data sheets of the manufacturers.
GPUS: dict[GpuName, tuple[float, float]] = {
    "l4": (24, 121e12),
    "a100-40": (40, 312e12),
    "a100-80": (80, 312e12),
    "h100": (80, 989e12),
    "h200": (141, 989e12),
}


@dataclass(frozen=True)
class StageRow:
    """A stage and one way of launching it.

    Args:
        stage: Recipe and data of the stage.
        launch: How it is launched.
        costs: The estimate.
    """

    stage: StageCosts
    launch: LaunchCosts
    estimate: StageEstimate

    @property
    def name(self) -> str:
        """Folder and file name of the recipe."""
        return f"{Path(self.stage.path).parent.name} {Path(self.stage.path).stem}"

    @property
    def launched_on(self) -> str:
        """Number of GPUs, backend, and full fine-tuning or LoRA."""
        count = f"{self.launch.num_processes} GPU{'s' if self.launch.num_processes > 1 else ''}"
        recipe = read_recipe(self.stage.script, self.stage.path)
        if isinstance(recipe, MineConfig):
            return count
        backend = "" if self.launch.backend == "one" else f", {self.launch.backend}"
        return f"{count}{backend}, {self.launch.tuning or recipe.tuning}"


def memory_table(rows: Sequence[StageRow], *, markdown: bool) -> str:
    """A table of the gigabytes of each process."""
    headers = ["recipe", "started on", "weights", "gradients", "optimizer", "chunk", "kept", "in all", "fits"]
    return table(headers, list(map(memory_cells, rows)), digits=1, markdown=markdown)


def memory_cells(row: StageRow) -> list[object]:
    memory = row.estimate.memory
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.chunk, memory.kept, memory.total)
    return [row.name, row.launched_on, *(part / 1e9 for part in parts), "yes" if row.estimate.fits else "no"]


def work_table(rows: Sequence[StageRow], speed: float, *, markdown: bool) -> str:
    """A table of tokens, operations and time; `speed` is in operations per second of a GPU."""
    headers = ["recipe", "started on", "billion tokens", "forward passes", "exaflop", "GPU hours", "hours"]
    return table(headers, [work_cells(row, speed) for row in rows], digits=2, markdown=markdown)


def work_cells(row: StageRow, speed: float) -> list[object]:
    hours = row.estimate.gpu_hours(speed)
    figures = (
        row.estimate.tokens / 1e9,
        float(row.estimate.forwards),
        row.estimate.operations / 1e18,
        hours,
        hours / row.launch.num_processes,
    )
    return [row.name, row.launched_on, *figures]


def advice(rows: Sequence[StageRow]) -> Iterator[str]:
    """Lines about stages that do not fit into memory, with advice."""
    for row in rows:
        memory = row.estimate.memory
        if memory.advice is not None:
            needed = f"{gigabytes(memory.total)} of {gigabytes(memory.room)}"
            yield f"{row.name} on {row.launched_on}: {needed}; {memory.advice}"
