"""Settings of scripts/costs.py."""

from dataclasses import dataclass, field
from typing import Literal

from nestling.config.checks import require

BackendName = Literal["one", "ddp", "zero1", "zero2", "zero2-offload", "zero3", "fsdp2"]
GpuName = Literal["l4", "a100-40", "a100-80", "h100", "h200"]
ScriptName = Literal["embed", "rerank", "mine"]


@dataclass(frozen=True, kw_only=True)
class StageCosts:
    """A stage and the data that it reads.

    Args:
        path: YAML file of train/embed.py, train/rerank.py or scripts/mine.py.
        script: Which of them; by default told by the file's keys.
        examples: Rows of its data; weights of datasets are not looked at.
        query_tokens: Mean tokens of a query with its prompt; for a reranker of all that stands before the document.
        document_tokens: Mean tokens of a document; for a reranker with what stands behind it.
        positives: Mean positives of a row, as far as the recipe draws them.
        documents: Of mining: documents that are searched; by default as many as there are positives.
        model: Of which hub id or directory it has the shape; by default that of its YAML.
    """

    path: str
    script: ScriptName | None = None
    examples: int
    query_tokens: float
    document_tokens: float
    positives: float = 1.0
    documents: int | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        for name in ("examples", "query_tokens", "document_tokens", "positives"):
            require(getattr(self, name) > 0, f"{self.path}: {name} is {getattr(self, name):g}, expected above 0")


@dataclass(frozen=True, kw_only=True)
class LaunchCosts:
    """How a stage is started.

    Args:
        backend: one process, or a file of configs/accelerate.
        processes: GPUs of all machines.
        tuning: In place of the recipe's own.
    """

    backend: BackendName
    processes: int
    tuning: Literal["lora", "full"] | None = None

    def __post_init__(self) -> None:
        require(self.processes >= 1, f"launches: processes is {self.processes}, expected at least 1")
        require(
            (self.backend == "one") == (self.processes == 1),
            f"launches: {self.processes} processes with backend {self.backend}; one process has the backend one",
        )


@dataclass(frozen=True, kw_only=True)
class CostsConfig:
    """Memory, operations and GPU hours of recipes, from their settings alone.

    Args:
        stages: Recipes and what they read.
        launches: How each is started.
        gpu: Its memory and its published speed in bfloat16, dense.
        gpu_memory: Gigabytes of it, in place of the published ones.
        mfu: Share of the published speed that is reached.
        markdown: Print tables for a page.
    """

    stages: list[StageCosts]
    launches: list[LaunchCosts] = field(default_factory=lambda: [LaunchCosts(backend="one", processes=1)])
    gpu: GpuName = "h100"
    gpu_memory: float | None = None
    mfu: float = 0.4
    markdown: bool = False

    def __post_init__(self) -> None:
        require(bool(self.stages), "stages is empty; give at least one recipe and what it reads")
        require(bool(self.launches), "launches is empty; give at least one")
        require(0 < self.mfu <= 1, f"mfu is {self.mfu:g}, expected a share: 0 < mfu <= 1")
        require(self.gpu_memory is None or self.gpu_memory > 0, f"gpu_memory is {self.gpu_memory}, expected above 0")
