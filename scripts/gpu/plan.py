"""What is checked on a GPU, in order: what makes the rest possible, what has to be right, what is measured."""

from dataclasses import dataclass
from typing import Literal

Stage = Literal["prepare", "correct", "use", "measure"]

# Checks of these stages run side by side; of the others one at a time.
SIDE_BY_SIDE: tuple[Stage, ...] = ("correct", "use")


@dataclass(frozen=True)
class Check:
    """A check, which runs in a process of its own.

    Args:
        name: For people, and for --only.
        function: `module:function`; it takes a `Place`.
        seconds: What it may take; it starts only while that much time is left.
        stage: When it runs.
        cpu: Whether it runs without a GPU too, in small shapes.
        needs: Names of the checks that write what it reads.
    """

    name: str
    function: str
    seconds: int
    stage: Stage
    cpu: bool = True
    needs: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """The name for files."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())


MACHINE = Check("machine", "scripts.gpu.machine:describe", 150, "prepare")

CHECKS = (
    MACHINE,
    Check("models", "scripts.gpu.models:write", 60, "prepare"),
    Check("packed attention", "scripts.gpu.attention:check", 60, "correct"),
    Check("loss", "scripts.gpu.losses:check", 60, "correct"),
    Check("loss with TF32 allowed", "scripts.gpu.losses:check_with_tf32", 90, "correct"),
    Check("cached step", "scripts.gpu.cached_step:check", 60, "correct"),
    Check("embedder recipe", "scripts.gpu.recipes:embedder", 120, "correct"),
    Check("reranker recipe", "scripts.gpu.recipes:reranker", 120, "correct"),
    Check("little memory", "scripts.gpu.recipes:with_little_memory", 120, "correct", cpu=False),
    Check("DDP on NCCL", "scripts.gpu.launches:ddp", 120, "correct", cpu=False),
    Check("FSDP2 on NCCL", "scripts.gpu.launches:fsdp2", 120, "correct", cpu=False),
    Check("waits of a step", "scripts.gpu.waits:find", 60, "correct", cpu=False),
    Check(
        "evaluate, mine, merge",
        "scripts.gpu.recipes:use",
        90,
        "use",
        needs=("embedder recipe", "reranker recipe"),
    ),
    Check("training with LoRA", "scripts.gpu.throughput:lora", 80, "measure"),
    Check("training of all weights", "scripts.gpu.throughput:full", 80, "measure"),
    Check("profile of a chunk", "scripts.gpu.kernels:profile", 40, "measure"),
    Check("remedies", "scripts.gpu.remedies:measure", 100, "measure"),
    Check("compiled layers", "scripts.gpu.remedies:compiled", 120, "measure", cpu=False),
    Check("sentence-transformers", "scripts.gpu.peer:measure", 60, "measure"),
    Check("loss at size", "scripts.gpu.losses:measure", 40, "measure"),
    Check("cuDNN attention", "scripts.gpu.kernels:cudnn", 40, "measure"),
    Check("encoding and reranking", "scripts.gpu.inference:measure", 60, "measure"),
    Check("search", "scripts.gpu.inference:search", 40, "measure"),
)
