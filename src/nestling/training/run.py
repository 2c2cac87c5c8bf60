"""A run in training: where it stands, what is due after a step, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn

from nestling.backends import Backend
from nestling.batches.sampling import BatchSampler
from nestling.checkpoint import (
    Checkpoints,
    NonFiniteGuard,
    RunFolder,
    StopSignal,
    TrainingState,
    load_state,
    restore_tensors,
    write_training,
)
from nestling.config import require
from nestling.console import Progress, table
from nestling.distributed.ranks import on_rank_zero
from nestling.export.embedder_card import before_and_after
from nestling.export.gate import alone
from nestling.run_files import Results, evaluation_at
from nestling.training.tracking import Meter, Tracker, open_tracker


@dataclass(frozen=True)
class Intervals:
    """How often things happen, in steps; 0 is after each epoch.

    Args:
        log: A line of metrics; at least 1.
        evaluate: An evaluation on the dev sets.
        save: A checkpoint.
        patience: The run stops after so many evaluations without a better result; 0 never does.
    """

    log: int
    evaluate: int
    save: int
    patience: int


@dataclass
class Run:
    """A run in training: what it was made of, and where it stands.

    Args:
        folder: Where it writes.
        batch_sampler: What it trains on.
        backend: The model, and how its ranks synchronise.
        checkpoints: Those that are kept.
        state: Where it stands.
        cadence: How often it does what.
        total: Steps of the whole run.
        measure: Evaluates the model as it is now; None without dev sets.
        cut: What evaluations are made at beside the data: "dim" or "depth".
        main_rank: Whether this is rank 0.
        guard: Against losses that are not finite.
        tracker: Takes its figures.
        progress: Shows them.
        stop: Whether it was told to stop.
    """

    folder: RunFolder
    batch_sampler: BatchSampler
    backend: Backend
    checkpoints: Checkpoints
    state: TrainingState
    cadence: Intervals
    total: int
    measure: Callable[[], Results] | None
    cut: str
    main_rank: bool
    guard: NonFiniteGuard
    tracker: Tracker
    progress: Progress
    stop: StopSignal

    def __post_init__(self) -> None:
        self._meter, self._started = Meter(self.state.tokens), time.perf_counter()

    @property
    def steps(self) -> range:
        """Those that are left; none for a run that had stopped for want of better results."""
        return range(self.state.step, self.state.step if self.stale else self.total)

    @property
    def stale(self) -> bool:
        """Whether it is time to stop for want of better results."""
        return 0 < self.cadence.patience <= self.state.evaluations_since_best

    @property
    def told_to_stop(self) -> bool:
        """Whether this process had a signal; the others may not have."""
        return self.stop.received is not None

    def due(self, every: int) -> bool:
        """Whether something happens now: every so many steps, or after each epoch with 0; always at the end."""
        return self.state.step % (every or self.batch_sampler.steps_per_epoch) == 0 or self.state.step == self.total

    def close_step(self, learning_rate: float, loss: float, gradient_norm: float, *, stopping: bool) -> bool:
        """Report, evaluate and save what is due; whether the run goes on. With `stopping` it is saved and left."""
        state, cadence = self.state, self.cadence
        self._meter.add(loss, gradient_norm, time.perf_counter() - self._started)
        if self.due(cadence.log):
            self.report(learning_rate, self._meter.read(state.tokens))
        if self.measure is not None and self.due(cadence.evaluate):
            self.evaluate()
        if state.best_step == state.step or self.stale or stopping or self.due(cadence.save):
            self.save()
        if stopping:
            self.leave()
        if self.stale:
            self.progress.say(f"no better result in {cadence.patience} evaluations: stopping at step {state.step}")
        self._started = time.perf_counter()
        return not self.stale

    def evaluate(self) -> None:
        """Measure, report, and judge by nDCG@10 at the largest cut, averaged over the dev sets."""
        assert self.measure is not None
        results = self.measure()
        self.tracker.log_evaluation(self.state.step, results)
        if self.state.step:  # the model as it came is there to compare with, not a checkpoint
            self.state.record_evaluation(fmean(by_cut[max(by_cut)]["nDCG@10"] for by_cut in results.values()))
        self.progress.say(f"step {self.state.step}\n{evaluation_table(results, self.cut)}")

    def report(self, learning_rate: float, figures: dict[str, float]) -> None:
        """Write a line of metrics and move the progress bar."""
        state = self.state
        counts = {"tokens": state.tokens, "examples": state.examples, "truncated": state.truncated}
        line = {
            "epoch": state.step / self.batch_sampler.steps_per_epoch,
            "learning_rate": learning_rate,
            **figures,
            **counts,
        }
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

    def leave(self) -> NoReturn:
        """Say where the run stands after SIGTERM or Ctrl-C, and end with the signal's status."""
        received = self.stop.received
        name = received.name if received else "a signal to another process"
        saved = self.checkpoints.path(self.state.step)
        self.progress.say(f"stopped by {name}; saved {saved}; go on with the same command and --resume true")
        sys.exit(128 + (received or signal.SIGTERM))

    def give_up(self, chunk_tokens: int, otherwise: str = "") -> NoReturn:
        """Forget the unfinished step, save the ones before it, and end: memory ran out on one of several ranks."""
        self.backend.zero_grad()
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


@contextmanager
def open_run(
    folder: RunFolder,
    batch_sampler: BatchSampler,
    backend: Backend,
    *,
    keep_checkpoints: int,
    cadence: Intervals,
    total: int,
    measure: Callable[[], Results] | None,
    cut: str,
    main_rank: bool,
    max_bad_steps: int,
    settings: Mapping[str, Any],
    describe: Callable[[int], str],
) -> Iterator[Run]:
    """The run in a folder: at its newest complete checkpoint if it is resumed, else from the beginning, measured.

    Args:
        folder: Where it writes.
        batch_sampler: What it trains on.
        backend: The model, and how its ranks synchronise.
        keep_checkpoints: How many beside the best.
        cadence: As in `Run`, as are the next four.
        total: Steps of the whole run.
        measure: Evaluates the model as it is now; None without dev sets.
        cut: What evaluations are made at beside the data.
        main_rank: Whether this is rank 0.
        max_bad_steps: The run stops after so many steps in a row that are not finite.
        settings: All of the recipe's, for the trackers, which of `wandb` and `tensorboard` among them.
        describe: What is to come, given the steps that are done; printed on rank 0.
    """
    checkpoints = Checkpoints(folder.checkpoints, keep_checkpoints)
    newest = checkpoints.recover() if folder.resumed else None
    state = start_state(backend, newest, batch_sampler.fingerprint(), folder)
    if main_rank:
        print(describe(state.step), flush=True)
    with (
        open_tracker(
            folder.path,
            main_rank=main_rank,
            resumed_step=state.step if newest else None,
            wandb_project=settings["wandb"],
            tensorboard=settings["tensorboard"],
            config=settings,
        ) as tracker,
        Progress(total, done=state.step, shown=main_rank) as progress,
        StopSignal() as stop,
    ):
        guard = NonFiniteGuard(max_bad_steps, state.skipped_steps, state.skipped_in_a_row)
        made_of = (folder, batch_sampler, backend, checkpoints, state, cadence, total, measure, cut, main_rank)
        run = Run(*made_of, guard, tracker, progress, stop)
        if measure is not None and newest is None:
            run.evaluate()
        yield run


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


def evaluation_table(results: Results, cut: str) -> str:
    """Results in a table, a line for each dev set and cut."""
    rows = [[name, at, *metrics.values()] for name, by_cut in results.items() for at, metrics in by_cut.items()]
    names = list(next(iter(next(iter(results.values())).values())))
    return table(["dev set", cut, *names], rows, digits=4)


def export_checkpoint(script: Path, checkpoint: Path, output: Path) -> None:
    """scripts/export.py in a process of its own."""
    command: list[Any] = [sys.executable, script, "--checkpoint", checkpoint, "--output", output]
    subprocess.run([str(each) for each in command], env=alone(os.environ), check=True)
