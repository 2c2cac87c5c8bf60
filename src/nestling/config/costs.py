"""Settings of scripts/costs.py."""

from dataclasses import dataclass, field
from typing import Literal

from nestling.config.checks import require, require_at_least, require_share
from nestling.config.training import OptimName

BackendName = Literal["one", "ddp", "zero1", "zero2", "zero2-offload", "zero3", "fsdp2"]
GpuName = Literal["l4", "a100-40", "a100-80", "h100", "h200"]
ScriptName = Literal["embed", "rerank", "mine"]


@dataclass(frozen=True, kw_only=True)
class StageCosts:
    """A stage and the data that it reads.

    Args:
        path: YAML file of train/embed.py, train/rerank.py or scripts/mine.py.
        script: The script that the file is for; by default told by its keys.
        examples: Rows of the data, without regard to the weights of datasets.
        query_tokens: Mean tokens of a query with its prompt; for a reranker, of all before the document.
        document_tokens: Mean tokens of a document; for a reranker, with all after it.
        positives: Mean positives of a row.
        documents: For mining: documents that are searched; by default as many as there are positives.
        model: Directory or hub id of a model of the same shape; by default the model of the file.
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
        backend: one for a single process, or the name of a file in configs/accelerate.
        num_processes: Processes on all machines together, one for each GPU.
        tuning: What is trained, in place of the recipe's own setting.
        optim: The optimizer, in place of the recipe's own.
    """

    backend: BackendName
    num_processes: int
    tuning: Literal["lora", "full"] | None = None
    optim: OptimName | None = None

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_processes", section="launches: ")
        require(
            (self.backend == "one") == (self.num_processes == 1),
            f"launches: {self.num_processes} processes with backend {self.backend}; one process has the backend one",
        )


@dataclass(frozen=True, kw_only=True)
class CostsConfig:
    """Memory, operations and GPU hours of recipes, from their settings alone.

    Args:
        stages: Recipes and what they read.
        launches: How each is started.
        gpu: Kind of GPU, whose memory and published dense bfloat16 speed are known.
        gpu_memory: Gigabytes of memory of a GPU; by default what is published.
        mfu: Model FLOPs utilization: share of the published speed that is reached; by default by a model of the traffic
            of each stage's layers.
        markdown: Print the tables in Markdown.
    """

    stages: list[StageCosts]
    launches: list[LaunchCosts] = field(default_factory=lambda: [LaunchCosts(backend="one", num_processes=1)])
    gpu: GpuName = "h100"
    gpu_memory: float | None = None
    mfu: float | None = None
    markdown: bool = False

    def __post_init__(self) -> None:
        require(bool(self.stages), "stages is empty; give at least one recipe and what it reads")
        require(bool(self.launches), "launches is empty; give at least one")
        require_share(self, "mfu")
        require(self.gpu_memory is None or self.gpu_memory > 0, f"gpu_memory is {self.gpu_memory}, expected above 0")
