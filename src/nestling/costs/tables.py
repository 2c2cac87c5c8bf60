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

# Gigabytes of memory, from the data sheets of the manufacturers.
GPUS: dict[GpuName, float] = {"l4": 24, "a100-40": 40, "a100-80": 80, "h100": 80, "h200": 141}


@dataclass(frozen=True)
class StageRow:
    """A stage and one way of launching it.

    Args:
        stage: Recipe and data of the stage.
        launch: How it is launched.
        estimate: The estimate.
        share: Share of the published speed of a GPU that it reaches.
    """

    stage: StageCosts
    launch: LaunchCosts
    estimate: StageEstimate
    share: float

    @property
    def name(self) -> str:
        """Folder and file name of the recipe."""
        return f"{Path(self.stage.path).parent.name} {Path(self.stage.path).stem}"

    @property
    def launched_on(self) -> str:
        """Number of GPUs, backend, full fine-tuning or LoRA, and an optimizer other than the default."""
        count = f"{self.launch.num_processes} GPU{'s' if self.launch.num_processes > 1 else ''}"
        recipe = read_recipe(self.stage.script, self.stage.path)
        if isinstance(recipe, MineConfig):
            return count
        backend = "" if self.launch.backend == "one" else f", {self.launch.backend}"
        optim = self.launch.optim or recipe.optim
        named = "" if optim == "adamw_torch_fused" else f", {optim}"
        return f"{count}{backend}, {self.launch.tuning or recipe.tuning}{named}"


def memory_table(rows: Sequence[StageRow], *, markdown: bool) -> str:
    """A table of the gigabytes of each process."""
    headers = ["recipe", "started on", "weights", "gradients", "optimizer", "chunk", "kept", "in all", "fits"]
    return table(headers, list(map(memory_cells, rows)), digits=1, markdown=markdown)


def memory_cells(row: StageRow) -> list[object]:
    memory = row.estimate.memory
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.chunk, memory.kept, memory.total)
    return [row.name, row.launched_on, *(part / 1e9 for part in parts), "yes" if row.estimate.fits else "no"]


def work_table(rows: Sequence[StageRow], published: float, *, markdown: bool) -> str:
    """A table of tokens, operations and time; `published` is in operations per second of a GPU."""
    headers = ["recipe", "started on", "billion tokens", "forward passes", "exaflop", "of peak", "GPU hours", "hours"]
    return table(headers, [work_cells(row, published) for row in rows], digits=2, markdown=markdown)


def work_cells(row: StageRow, published: float) -> list[object]:
    hours = row.estimate.gpu_hours(row.share * published)
    return [
        row.name,
        row.launched_on,
        row.estimate.tokens / 1e9,
        float(row.estimate.forwards),
        row.estimate.operations / 1e18,
        row.share,
        hours,
        hours / row.launch.num_processes,
    ]


def advice(rows: Sequence[StageRow]) -> Iterator[str]:
    """Lines about stages that do not fit into memory, with advice."""
    for row in rows:
        memory = row.estimate.memory
        if memory.advice is not None:
            needed = f"{gigabytes(memory.total)} of {gigabytes(memory.room)}"
            yield f"{row.name} on {row.launched_on}: {needed}; {memory.advice}"
