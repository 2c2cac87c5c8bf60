"""What both training recipes do alike before their loop and for it: processes, batches, seeds, learning rates."""

import io
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from nestling.batches.sampling import BatchIndices, BatchSampler, Source
from nestling.checkpoint import ignore_stop_signals
from nestling.config import require
from nestling.distributed.launch import start_ranks
from nestling.distributed.ranks import sum_over_ranks
from nestling.records.retrieval_set import RetrievalSet
from nestling.run_files import DataLine, DataRead, write_data_lines, write_data_read

Batch = TypeVar("Batch")

# Batches among which a dry run takes the longest.
PROFILED = 16


# How a step fits into memory.
MEMORY = ("chunk_tokens", "graph_memory", "checkpoint_length")

# A resumed run may differ in these: they touch neither data, weights nor schedule.
MAY_DIFFER = (
    "output_dir",
    "resume",
    "wandb",
    "tensorboard",
    "workers",
    "log_steps",
    "keep_checkpoints",
    "cpu",
    *MEMORY,
)


def start(*, cpu: bool, batch_size: int, seed: int) -> Accelerator:
    """The process group of a recipe; the model itself computes in the precision asked for."""
    accelerator = start_ranks(cpu=cpu)
    require(
        batch_size % accelerator.num_processes == 0,
        f"batch_size {batch_size} is for all {accelerator.num_processes} processes together and must divide by their "
        "number",
    )
    torch.manual_seed(seed)
    return accelerator


def load_batches(collator: Dataset[Batch], batch_sampler: BatchSampler, steps: range, workers: int) -> Iterator[Batch]:
    """Batches of some steps, tokenised in workers."""
    plans = islice(batch_sampler.batches(skip=steps.start), len(steps))
    loader: DataLoader[bytes] = DataLoader(
        cast(Dataset[bytes], collator),
        sampler=cast(Sampler[BatchIndices], plans),
        batch_size=None,
        collate_fn=to_bytes,
        num_workers=workers,
        worker_init_fn=start_worker,
        pin_memory=False,
    )
    return map(pickle.loads, loader)


def to_bytes(batch: object) -> bytes:
    """A pickle that holds the tensors themselves: torch would share each through a file of its own, and the hundreds of
    a batch in small chunks are more than a process may open, upon which the run would wait for ever."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = {Tensor: lambda tensor: (torch.from_numpy, (tensor.numpy(),))}
    pickler.dump(batch)
    return stream.getvalue()


def longest_batch(
    batch_sampler: BatchSampler, tokens_of: Callable[[BatchIndices], int], device: torch.device
) -> BatchIndices:
    """The one of the first batches that is longest over all ranks, which so agree on it; `tokens_of` is a rank's."""
    plans = list(islice(batch_sampler.batches(), PROFILED))
    tokens = sum_over_ranks([tokens_of(indices) for indices in plans], device)
    return plans[tokens.index(max(tokens))]


def start_worker(worker_id: int) -> None:
    ignore_stop_signals(worker_id)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive the fork


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make dropout a function of (seed, step, rank), different on every rank."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def record_data(folder: Path, sources: Sequence[Source], dev_sets: Sequence[RetrievalSet]) -> None:
    """Leave in a run's folder what its model's card says of the data, and what its report does."""
    write_data_lines(folder, [data_line(source) for source in sources])
    train = [DataRead(source.table.name, "train", asdict(source.table.summary)) for source in sources]
    write_data_read(folder, [*train, *(DataRead(each.name, "dev", asdict(each.summary)) for each in dev_sets)])


def data_line(source: Source) -> DataLine:
    """A dataset in one line of the model card."""
    table = source.table
    negatives = f", {table.summary.negatives:,} hard negatives" if table.summary.negatives else ""
    instruction = f", instruction: {table.instruction}" if table.instruction else ""
    text = f"{table.summary.positives:,} positives{negatives}{instruction}"
    return DataLine(table.name, len(table), text)
