"""What both training recipes do alike around their loop: processes, batches, checkpoints, reports, the result."""

import io
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from nestling.backends import Backend
from nestling.batching import Plan, Planner, Source
from nestling.checkpoint import (
    Checkpoints,
    NonFiniteGuard,
    RunFolder,
    StopSignal,
    TrainingState,
    ignore_stop_signals,
    load_state,
    on_rank_zero,
    restore_tensors,
    write_training,
)
from nestling.config import require
from nestling.distributed import launched_with, require_launch, sum_over_ranks
from nestling.gate import alone
from nestling.model_card import DataLine, before_and_after
from nestling.optim import learning_rate_at
from nestling.tracking import Progress, Results, Tracker, evaluation_at, table

Batch = TypeVar("Batch")

# Batches among which a dry run takes the longest.
REHEARSED = 16

# Ranks wait so long for rank 0, which converts data before the loop and exports after it.
PATIENCE = timedelta(hours=12)

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


@dataclass
class Run:
    """A run in training: what it was made of, and where it stands.

    Args:
        folder: Where it writes.
        planner: What it trains on.
        backend: The model, and how its ranks synchronise.
        checkpoints: Those that are kept.
        state: Where it stands.
        guard: Against losses that are not finite.
        tracker: Takes its figures.
        progress: Shows them.
        total: Steps of the whole run.
        main_rank: Whether this is rank 0.
        measure: Evaluates the model as it is now.
        cut: What evaluations are made at beside the data: "dim" or "depth".
    """

    folder: RunFolder
    planner: Planner
    backend: Backend
    checkpoints: Checkpoints
    state: TrainingState
    guard: NonFiniteGuard
    tracker: Tracker
    progress: Progress
    total: int
    main_rank: bool
    measure: Callable[[], Results]
    cut: str

    def due(self, every: int) -> bool:
        """Whether something happens now: every so many steps, or after each epoch with 0; always at the end."""
        return self.state.step % (every or self.planner.steps_per_epoch) == 0 or self.state.step == self.total

    def evaluate(self) -> None:
        """Measure, report, and judge by nDCG@10 at the largest cut, averaged over the dev sets."""
        results = self.measure()
        self.tracker.log_evaluation(self.state.step, results)
        if self.state.step:  # the model as it came is there to compare with, not a checkpoint
            self.state.judge(fmean(by_cut[max(by_cut)]["nDCG@10"] for by_cut in results.values()))
        self.progress.say(f"step {self.state.step}\n{evaluation_table(results, self.cut)}")

    def report(self, learning_rate: float, figures: dict[str, float]) -> None:
        """Write a line of metrics and move the progress bar."""
        state = self.state
        counts = {"tokens": state.tokens, "examples": state.examples, "truncated": state.truncated}
        line = {"epoch": state.step / self.planner.steps_per_epoch, "learning_rate": learning_rate, **figures, **counts}
        self.tracker.log(state.step, {**line, "skipped_steps": self.guard.skipped})
        self.progress.update(
            state.step,
            loss=figures["loss"],
            learning_rate=learning_rate,
            tokens_per_second=figures["tokens_per_second"],
        )

    def save(self) -> None:
        """Write a checkpoint, on all ranks."""
        self.state.skipped_steps, self.state.skipped_in_a_row = self.guard.skipped, self.guard.in_a_row
        tensors = self.backend.tensors()

        def write(path: Path) -> None:
            if self.main_rank:
                write_training(path, tensors, self.state)
            self.backend.save_optimizer(path)

        self.checkpoints.save(self.state.step, write, best_step=self.state.best_step)

    def leave(self, stop: StopSignal) -> None:
        """Say where the run stands after SIGTERM or Ctrl-C, and end with the signal's status."""
        name = stop.received.name if stop.received else "a signal to another process"
        saved = self.checkpoints.path(self.state.step)
        self.progress.say(f"stopped by {name}; saved {saved}; go on with the same command and --resume true")
        sys.exit(128 + (stop.received or signal.SIGTERM))

    def give_up(self, chunk_tokens: int, otherwise: str = "") -> NoReturn:
        """Forget the unfinished step, save the ones before it, and end: memory ran out on one of several ranks."""
        self.backend.discard()
        self.save()
        step = self.state.step
        raise ValueError(
            f"a rank ran out of memory in step {step + 1}; saved {self.checkpoints.path(step)}; go on with "
            f"--resume true and --chunk_tokens {max(1, chunk_tokens // 2)}{otherwise}"
        )

    def publish(self, export: Callable[[int], object], script: Path, *, best: bool, whole: bool) -> None:
        """Write final/ from the best checkpoint or the last, and print before and after.

        Args:
            export: Writes the model in memory, given its step; on rank 0.
            script: scripts/export.py.
            best: Take the best checkpoint where there is one.
            whole: Whether the weights in memory are; else the script loads the checkpoint in a process of its own.
        """
        state = self.state
        step = state.best_step if best and state.best_step is not None else state.step
        checkpoint = self.checkpoints.verified(step)
        if not whole or self.backend.sharded:
            on_rank_zero(lambda: export_checkpoint(script, checkpoint, self.folder.final))
        else:
            if step != state.step:
                restore_tensors(checkpoint, self.backend.model)
            on_rank_zero(lambda: export(step))
        if self.main_rank:
            scores = before_and_after(evaluation_at(self.folder.metrics, 0), evaluation_at(self.folder.metrics, step))
            rows = [[each.dataset, each.dim, each.before, each.after] for each in scores if each.metric == "nDCG@10"]
            print(table(["dev set", self.cut, "nDCG@10 before", "after"], rows, digits=4) if rows else "")
            print(f"{self.folder.final} holds the model of step {step}")


def start_state(backend: Backend, newest: Path | None, data: str, folder: RunFolder) -> TrainingState:
    """Where to start: from the beginning, or at a checkpoint, whose data must be the same."""
    if newest is None:
        return TrainingState(data=data)
    state = load_state(newest)
    require(
        state.data == data,
        f"the training data is not what the run in {folder.path} began with; start a new run for it",
    )
    backend.restore(newest)
    return state


def total_steps(planner: Planner, *, epochs: float, max_steps: int | None) -> int:
    """Steps of a whole run."""
    return max_steps or math.ceil(epochs * planner.steps_per_epoch)


def course(total: int, *, peak: float, warmup: float, schedule: str) -> Callable[[int], float]:
    """The learning rate of each step."""
    return partial(learning_rate_at, total=total, peak=peak, warmup=round(warmup * total), schedule=schedule)


def load_batches(collator: Dataset[Batch], planner: Planner, steps: range, workers: int) -> Iterator[Batch]:
    """Batches of some steps, tokenised in workers."""
    plans = islice(planner.plans(skip=steps.start), len(steps))
    loader: DataLoader[bytes] = DataLoader(
        cast(Dataset[bytes], collator),
        sampler=cast(Sampler[Plan], plans),
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


def longest_plan(planner: Planner, tokens_of: Callable[[Plan], int], device: torch.device) -> Plan:
    """The one of the first batches that is longest over all ranks, which so agree on it; `tokens_of` is a rank's."""
    plans = list(islice(planner.plans(), REHEARSED))
    tokens = sum_over_ranks([tokens_of(plan) for plan in plans], device)
    return plans[tokens.index(max(tokens))]


def start_worker(worker_id: int) -> None:
    ignore_stop_signals(worker_id)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive the fork


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make dropout a function of (seed, step, rank), different on every rank."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def evaluation_table(results: Results, cut: str) -> str:
    """Results in a table, a line for each dev set and cut."""
    rows = [[name, at, *metrics.values()] for name, by_cut in results.items() for at, metrics in by_cut.items()]
    names = list(next(iter(next(iter(results.values())).values())))
    return table(["dev set", cut, *names], rows, digits=4)


def data_line(source: Source) -> DataLine:
    """A dataset in one line of the model card."""
    table = source.table
    negatives = f", {table.summary.negatives:,} hard negatives" if table.summary.negatives else ""
    instruction = f", instruction: {table.instruction}" if table.instruction else ""
    text = f"{table.summary.positives:,} positives{negatives}{instruction}"
    return DataLine(table.name, len(table), text)


def export_checkpoint(script: Path, checkpoint: Path, output: Path) -> None:
    """scripts/export.py in a process of its own."""
    command: list[Any] = [sys.executable, script, "--checkpoint", checkpoint, "--output", output]
    subprocess.run([str(each) for each in command], env=alone(os.environ), check=True)
