"""The process group of a launch, checked against what the launcher was asked for; and processes outside of it."""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

from nestling.distributed.ranks import open_waiting_group

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
    """Whether `accelerate launch` was asked for a plugin, "DEEPSPEED" or "FSDP"."""
    return os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() in ("1", "true")


def require_launch(world_size: int, backend: str) -> None:
    """Raise ValueError if Accelerate silently trains in another way than the launcher was asked to.

    That is in separate processes instead of a group, or without sharding.

    Args:
        world_size: Number of processes in the group.
        backend: Accelerate's distributed type, such as DEEPSPEED or FSDP.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != world_size:
        raise ValueError(
            f"the launcher started {launched} processes, but they form a group of {world_size}; on a CPU launch with "
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N, or torchrun with --use_cpu true"
        )
    for plugin in ("DEEPSPEED", "FSDP"):
        if launched_with(plugin) and backend != plugin:
            raise ValueError(
                f"the launcher was asked for {plugin}, but Accelerate gives {backend}; "
                + (
                    "FSDP needs GPUs"
                    if plugin == "FSDP"
                    else "ACCELERATE_USE_CPU=true excludes DeepSpeed, --use_cpu true does not"
                )
            )


def require_all_processes(command: Sequence[str]) -> None:
    """Raise ValueError if `accelerate launch` was asked for several processes and starts one, as with --cpu alone.

    Args:
        command: The words of the command that has started this process.
    """
    words = [each.replace("-", "_").lstrip("_") for each in command]
    if "launch" not in words or not any(each.endswith("accelerate") for each in words[: words.index("launch")]):
        return
    for word, following in pairwise([*words, ""]):
        name, _, value = word.partition("=")
        if name.endswith(".py"):
            return
        count = value or following
        if name == "num_processes" and count.isdecimal() and int(count) > 1:
            raise ValueError(
                f"accelerate was asked for {count} processes and started one, as it does on a CPU; launch with "
                f"torchrun --nproc_per_node {count} SCRIPT and --use_cpu true"
            )


# A collective of training that takes longer hangs, and burns the time of all GPUs. The longest that do not are those of
# saving sharded weights, in which ranks wait while rank 0 writes to a slow disk.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def start_ranks(*, cpu: bool = False) -> Accelerator:
    """Start the process group that the launcher asked for; on a CPU with gloo."""
    on_cpu = cpu or not torch.accelerator.is_available()
    zero = launched_with("DEEPSPEED")  # told to use the CPU, Accelerate would replace DeepSpeed by DDP
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not several:
        starter = psutil.Process().parent()
        require_all_processes([] if starter is None else starter.cmdline())
    accelerator = Accelerator(
        cpu=on_cpu and not zero,
        mixed_precision="no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(backend="gloo" if on_cpu and several else None, timeout=COLLECTIVE_TIMEOUT),
        ],
    )
    require_launch(accelerator.num_processes, accelerator.distributed_type)
    if several:
        open_waiting_group()
    return accelerator


def outside_launch(parent: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that a rank starts and that belongs to no distributed launch."""
    kept = {name: value for name, value in parent.items() if not name.startswith(LAUNCHER_VARIABLES)}
    source = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(source), kept.get("PYTHONPATH")]))
    return kept | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
