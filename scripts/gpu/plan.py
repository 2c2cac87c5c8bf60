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
        function: `module:function` below scripts.gpu; takes a `Place`.
        seconds: What it may take; it starts only while that much time is left.
        stage: When it runs.
        cpu: Whether it runs without a GPU too, in small shapes.
    """

    name: str
    function: str
    seconds: int
    stage: Stage
    cpu: bool = True

    @property
    def slug(self) -> str:
        """The name for files."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())


MACHINE = Check("machine", "machine:describe", 60, "prepare")

CHECKS = (
    MACHINE,
    Check("models", "models:write", 60, "prepare"),
    Check("packed attention", "attention:check", 60, "correct"),
    Check("loss", "losses:check", 60, "correct"),
    Check("loss with TF32 allowed", "losses:check_with_tf32", 90, "correct"),
    Check("cached step", "cached_step:check", 60, "correct"),
    Check("embedder recipe", "recipes:embedder", 120, "correct"),
    Check("reranker recipe", "recipes:reranker", 120, "correct"),
    Check("little memory", "recipes:with_little_memory", 120, "correct", cpu=False),
    Check("DDP on NCCL", "launches:ddp", 120, "correct", cpu=False),
    Check("FSDP2 on NCCL", "launches:fsdp2", 120, "correct", cpu=False),
    Check("waits of a step", "waits:find", 60, "correct", cpu=False),
    Check("evaluate, mine, merge", "recipes:use", 90, "use"),
    Check("training with LoRA", "throughput:lora", 80, "measure"),
    Check("training of all weights", "throughput:full", 80, "measure"),
    Check("profile of a chunk", "kernels:profile", 40, "measure"),
    Check("remedies", "remedies:measure", 100, "measure"),
    Check("sentence-transformers", "peer:measure", 60, "measure"),
    Check("loss at size", "losses:measure", 40, "measure"),
    Check("cuDNN attention", "kernels:cudnn", 40, "measure", cpu=False),
    Check("encoding and reranking", "inference:measure", 60, "measure"),
    Check("search", "inference:search", 40, "measure"),
)
