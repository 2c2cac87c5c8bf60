"""Batches for the loop, tokenised in worker processes, and the random numbers of a step."""

import io
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from nestling.batches.sampling import BatchIndices, BatchSampler
from nestling.checkpoint.guards import ignore_stop_signals
from nestling.distributed.ranks import sum_over_ranks
from nestling.distributed.seeds import seed_torch
from nestling.processes import Process, end_with, identify

Batch = TypeVar("Batch")


# Batches among which a dry run takes the longest.
PROFILED = 16


def load_batches(collator: Dataset[Batch], batch_sampler: BatchSampler, steps: range, workers: int) -> Iterator[Batch]:
    """Batches of some steps, tokenised in workers."""
    indices = islice(batch_sampler.batches(skip=steps.start), len(steps))
    loader: DataLoader[bytes] = DataLoader(
        cast(Dataset[bytes], collator),
        sampler=cast(Sampler[BatchIndices], indices),
        batch_size=None,
        collate_fn=to_bytes,
        num_workers=workers,
        worker_init_fn=partial(start_worker, identify(os.getpid())),
        pin_memory=False,
    )
    return map(pickle.loads, loader)


def to_bytes(batch: object) -> bytes:
    """A pickle that holds the tensors themselves: torch would share each through a file of its own, and the hundreds of
    a batch in small chunks are more than a process may open, after which the run would hang."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = {Tensor: lambda tensor: (torch.from_numpy, (tensor.numpy(),))}
    pickler.dump(batch)
    return stream.getvalue()


def longest_batch(
    batch_sampler: BatchSampler, tokens_of: Callable[[BatchIndices], int], device: torch.device
) -> BatchIndices:
    """The one of the first batches with the most tokens, summed over all ranks; every rank must call it.

    Args:
        batch_sampler: Yields the batches.
        tokens_of: The tokens of this rank's part of a batch.
        device: Of the model; the ranks communicate on it.
    """
    first = list(islice(batch_sampler.batches(), PROFILED))
    tokens = sum_over_ranks([tokens_of(indices) for indices in first], device)
    return first[tokens.index(max(tokens))]


def start_worker(trainer: Process, worker_id: int) -> None:
    """`worker_init_fn` of a DataLoader: the worker ends with the process that loads from it, and not before."""
    ignore_stop_signals(worker_id)
    end_with(trainer, signal.SIGKILL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive the fork


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make dropout a function of (seed, step, rank), different on every rank."""
    seed_torch(seed, step, rank)
