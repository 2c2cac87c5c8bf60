"""How a training recipe begins: its run folder, its processes."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from nestling.backends.optimizer import require_optimizer
from nestling.checkpoint.run_folder import RunFolder, check_run_folder, open_run_folder
from nestling.config import EmbedConfig, RerankConfig, TrainingConfig, require
from nestling.config.yaml_files import read_yaml
from nestling.distributed.launch import start_ranks
from nestling.distributed.ranks import on_rank_zero
from nestling.models.remote_code import trust_code
from nestling.run_files import CONFIG
from nestling.training.exportable import require_exportable
from nestling.training.recorded_code import record_code, require_same_code
from nestling.training.tracking import require_trackers

# Settings that change how much memory a step takes, and not its result.
MEMORY = ("chunk_tokens", "activation_memory", "gradient_checkpointing_length")

# A resumed run may differ in these: they touch neither data, weights nor learning-rate schedule.
MAY_DIFFER = (
    "output_dir",
    "resume",
    "report_to",
    "dataloader_num_workers",
    "logging_steps",
    "export_dtype",
    "save_total_limit",
    "use_cpu",
    "interpolate",  # of the end alone
    *MEMORY,
)

# Of these, the ones that final/ is written with.
OF_FINAL = ("interpolate", "export_dtype")


def start(config: EmbedConfig | RerankConfig) -> Accelerator | None:
    """The process group of a recipe, once its run folder can be used; None if that run is complete already.

    What an export would refuse is refused before the group is formed, in which transformers may shard models. The model
    itself computes in the precision asked for: Accelerate's mixed precision stays off.

    Raises:
        ValueError: The run folder belongs to another run, the model cannot be exported, or the batch does not divide by
            the number of processes.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    output = Path(config.output_dir)
    # Dimensions that are not named are, once the model's files can be read, those that the run began with.
    unnamed = ("matryoshka_dims",) if isinstance(config, EmbedConfig) and config.matryoshka_dims is None else ()
    check_run_folder(output, asdict(config), resume=config.resume, may_differ=(*MAY_DIFFER, *unnamed))
    if (output / "final").exists():
        print(complete_text(output, asdict(config)))
        return None
    if config.trust_remote_code:
        trust_code(config.model)
    if config.resume:
        require_same_code(output, config.model)
    require_exportable(config)
    accelerator = start_ranks(cpu=config.use_cpu)
    sharded = accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)
    require_optimizer(config.optim, sharded=sharded, device=accelerator.device.type)
    require(
        config.batch_size % accelerator.num_processes == 0,
        f"batch_size {config.batch_size} is for all {accelerator.num_processes} processes together and must divide by "
        "their number",
    )
    if not config.dry_run:
        on_rank_zero(lambda: require_trackers(config.report_to))
    torch.manual_seed(config.seed)
    return accelerator


def complete_text(output: Path, config: Mapping[str, object]) -> str:
    """A line for a run whose final/ is there, with the settings that would have it written otherwise than it began."""
    began, final = read_yaml(output / CONFIG), output / "final"
    changed = [
        f"{name} {config[name]} ({began.get(name)} in {CONFIG})"
        for name in OF_FINAL
        if name in config and config[name] != began.get(name)
    ]
    advice = f"; {', '.join(changed)} changes nothing in it: move it away, and this command writes it again"
    return f"{output} is complete: {final} holds its model" + (advice if changed else "")


@contextmanager
def run_folder(config: TrainingConfig) -> Iterator[RunFolder]:
    """The run's folder, held by this run: new, or that of the run that is resumed."""
    settings = asdict(config)
    with open_run_folder(Path(config.output_dir), settings, resume=config.resume, may_differ=MAY_DIFFER) as folder:
        on_rank_zero(lambda: record_code(folder.path, config.model))
        yield folder
