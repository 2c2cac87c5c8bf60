"""The process group that a launcher asked for, or a refusal; and processes outside of it."""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

# Settings of a distributed launch, which would make another process wait for ranks that never come.
LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "MASTER_",
    "TORCHELASTIC_",
    "ACCELERATE_",
    "FSDP_",
    "PET_",
)


def launched_with(plugin: str) -> bool:
    """Whether `accelerate launch` was asked for DEEPSPEED or FSDP."""
    return os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() in ("1", "true")


def require_launch(world_size: int, backend: str) -> None:
    """Refuse to train otherwise than the launcher was asked to: alone, or without sharding; both happen in silence.

    Args:
        world_size: Processes of the group.
        backend: Accelerate's name of what they form, DEEPSPEED or FSDP for instance.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != world_size:
        raise ValueError(
            f"the launcher started {launched} processes, but they form a group of {world_size}; on a CPU launch with "
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N, or torchrun with --cpu true"
        )
    for plugin in ("DEEPSPEED", "FSDP"):
        if launched_with(plugin) and backend != plugin:
            raise ValueError(
                f"the launcher was asked for {plugin}, but Accelerate gives {backend}; "
                + (
                    "FSDP needs GPUs"
                    if plugin == "FSDP"
                    else "ACCELERATE_USE_CPU=true excludes DeepSpeed, --cpu true does not"
                )
            )


# Ranks wait so long for rank 0, which converts data before the loop and exports after it.
PATIENCE = timedelta(hours=12)


def start_ranks(*, cpu: bool = False) -> Accelerator:
    """The process group that the launcher asked for; over gloo on a CPU."""
    on_cpu = cpu or not torch.accelerator.is_available()
    zero = launched_with("DEEPSPEED")  # which Accelerate would give up for DDP if it were told of a CPU
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = Accelerator(
        cpu=on_cpu and not zero,
        mixed_precision="no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(backend="gloo" if on_cpu and several else None, timeout=PATIENCE),
        ],
    )
    require_launch(accelerator.num_processes, accelerator.distributed_type)
    return accelerator


def outside_launch(parent: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that a rank starts and that belongs to no distributed launch."""
    kept = {name: value for name, value in parent.items() if not name.startswith(LAUNCHER_VARIABLES)}
    source = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(source), kept.get("PYTHONPATH")]))
    return kept | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
