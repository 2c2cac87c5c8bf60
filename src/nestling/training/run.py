"""A run in training: its state, what is due after a step, and how it ends."""

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import NoReturn

from nestling.backends.backend import Backend
from nestling.batches.sampling import BatchSampler
from nestling.checkpoint.guards import NonFiniteGuard, StopSignal, ZeroGuard
from nestling.checkpoint.run_folder import RunFolder
from nestling.checkpoint.state import TrainingState, restore_tensors, write_training
from nestling.checkpoint.store import Checkpoints
from nestling.config import TrainingConfig, require
from nestling.console import Progress, working
from nestling.disk_errors import WriteError
from nestling.distributed.launch import outside_launch
from nestling.distributed.ranks import any_rank, on_rank_zero
from nestling.export.gate import ExportError
from nestling.gpu import synchronize
from nestling.processes import ending_with_this
from nestling.run_files import Results, evaluation_at, evaluation_of_final, read_exported
from nestling.training.dev_details import DevEvaluation, keep_evaluation
from nestling.training.dev_results import evaluation_table, results_text
from nestling.training.objectives import zero_loss_reasons
from nestling.training.resumption import forget_missing_best, start_state
from nestling.training.tracking import Meter, Tracker, open_tracker


@dataclass
class Run:
    """A run in training: its parts, its state, and what is due after a step.

    Args:
        config: Settings of the recipe.
        folder: Where it writes.
        batch_sampler: What it trains on.
        backend: The model, and how its ranks synchronise.
        checkpoints: Those that are kept.
        state: Step, counts and best result so far.
        total: Steps of the whole run.
        measure: Evaluates the model as it is now on each dev set; None without dev sets.
        axis: Evaluation axis, what a dev set is evaluated at several values of: "dim" of an embedding, or "depth", the
            number of a reranker's candidates.
        first_stage: Metrics of the candidates of a reranker's dev sets in their own order; none for an embedder.
        main_rank: Whether this is rank 0.
        guard: Skips updates of losses that are not finite.
        tracker: Writes metrics.
        progress: Shows them.
        stop: Holds the signal that asked the run to stop.
    """

    config: TrainingConfig
    folder: RunFolder
    batch_sampler: BatchSampler
    backend: Backend
    checkpoints: Checkpoints
    state: TrainingState
    total: int
    measure: Callable[[], list[DevEvaluation]] | None
    axis: str
    first_stage: Results
    main_rank: bool
    guard: NonFiniteGuard
    tracker: Tracker
    progress: Progress
    stop: StopSignal

    def __post_init__(self) -> None:
        self._meter, self._started = Meter(self.state.tokens), time.perf_counter()
        self._zeros = ZeroGuard(limit=min(ZeroGuard.limit, self.total))

    @property
    def steps(self) -> range:
        """Steps that are left; none for a run that early stopping had ended."""
        return range(self.state.step, self.state.step if self.early_stopping else self.total)

    @property
    def early_stopping(self) -> bool:
        """Whether so many evaluations brought no better result that the run is to stop."""
        return 0 < self.config.early_stopping_patience <= self.state.evaluations_since_best

    @property
    def told_to_stop(self) -> bool:
        """Whether this process had a signal; the others may not have."""
        return self.stop.received is not None

    def due(self, every: int) -> bool:
        """Whether it is time for something done every so many steps, with 0 after each epoch; true at the last step."""
        return self.state.step % (every or self.batch_sampler.steps_per_epoch) == 0 or self.state.step == self.total

    def close_step(self, learning_rate: float, loss: float, gradient_norm: float, *, stopping: bool) -> bool:
        """Log, evaluate and save what is due; whether the run goes on. With `stopping` it saves and exits."""
        state, config = self.state, self.config
        if self.due(config.logging_steps):  # the clock counts what a GPU has done; elsewhere it need not be waited for
            synchronize(self.backend.model.device)
        self._meter.add(loss, gradient_norm, time.perf_counter() - self._started)
        if not math.isfinite(loss + gradient_norm):
            self.progress.say(f"step {state.step}: loss {loss}, gradient norm {gradient_norm}; its update was skipped")
        if self.due(config.logging_steps):
            self.report(learning_rate, self._meter.read(state.tokens))
        if self._zeros.reached(loss, gradient_norm):
            self.end_without_learning()
        if self.measure is not None and self.due(config.eval_steps):
            self.evaluate()
        if state.best_step == state.step or self.early_stopping or stopping or self.due(config.save_steps):
            self.save()
        if stopping:
            self.leave()
        if self.early_stopping:
            self.progress.say(
                f"no better result in {config.early_stopping_patience} evaluations: stopping at step {state.step}"
            )
        self._started = time.perf_counter()
        return not self.early_stopping

    def evaluate(self) -> None:
        """Measure and log; results are compared by nDCG@10 at the axis' largest value, averaged over the dev sets."""
        assert self.measure is not None
        evaluations, best_before = self.measure(), self.state.best_step
        results = {each.retrieval_set.name: each.metrics for each in evaluations}
        self.tracker.log_evaluation(self.state.step, results)
        if self.state.step:  # the model as it came is there to compare with, not a checkpoint
            self.state.record_evaluation(fmean(by_value[max(by_value)]["nDCG@10"] for by_value in results.values()))
        if self.state.step == 0 or self.state.best_step == self.state.step:
            self.keep(self.state.step, [each.with_details() for each in evaluations], best_before)
        self.progress.say(f"step {self.state.step}\n{evaluation_table(results, self.axis, self.first_stage)}")
        self._started = time.perf_counter()  # of the next step: the evaluation before the first is no part of it

    def report(self, learning_rate: float, figures: dict[str, float]) -> None:
        """Log a line of metrics and update the progress bar."""
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

    def save(self) -> Path:
        """Write a checkpoint, on all ranks; gives its folder."""
        self.state.skipped_steps, self.state.skipped_in_a_row = self.guard.skipped, self.guard.in_a_row
        tensors = self.backend.tensors()

        def write(path: Path) -> None:
            if self.main_rank:
                write_training(path, tensors, self.state)
            self.backend.save_optimizer(path)

        return self.checkpoints.save(self.state.step, write, best_step=self.state.best_step)

    def leave(self) -> NoReturn:
        """Say how to resume after a stop signal, and exit with the signal's status."""
        received = self.stop.received
        name = received.name if received else "a signal to another process"
        saved = self.checkpoints.path(self.state.step)
        self.progress.say(f"stopped by {name}; saved {saved}; continue with the same command and --resume true")
        sys.exit(128 + (received or signal.SIGTERM))

    def give_up(self, chunk_tokens: int, otherwise: str = "") -> NoReturn:
        """Discard the unfinished step, save the ones before it, and fail: memory ran out on one of several ranks."""
        self.backend.zero_grad()
        saved = self.save()
        raise ValueError(
            f"a rank ran out of memory in step {self.state.step + 1}; saved {saved}; continue with "
            f"--resume true and --chunk_tokens {max(1, chunk_tokens // 2)}{otherwise}"
        )

    def end_without_learning(self) -> NoReturn:
        """Fail after steps whose loss and gradient were 0; what the steps before them have learnt is saved first."""
        zeros, step = self._zeros.in_a_row, self.state.step
        saved = "no step taught anything, and none is saved"
        if zeros < step:
            self.checkpoints = replace(self.checkpoints, keep=self.checkpoints.keep + 1)  # removes no older one
            self.save()
            saved = f"saved {self.checkpoints.path(step)}, which scripts/export.py turns into a model to serve"
        reasons = "\n".join(f"- {each}" for each in zero_loss_reasons(self.config, self.batch_sampler.sources))
        raise ValueError(
            f"the loss and the gradient of steps {step - zeros + 1} to {step} are exactly 0: nothing is learnt any "
            f"more. {saved}. What this can come from:\n{reasons}"
        )

    def export(
        self,
        write: Callable[[int], object],
        script: Path,
        between: Callable[[int], None] | None = None,
    ) -> None:
        """Write final/ from the best checkpoint or the last, and print the results before and after.

        Args:
            write: Exports the model in memory, given its step; called on rank 0.
            between: Given the step, leaves in the model what goes into final/, between the base's and the trained
                weights; called on all ranks.
            script: scripts/export.py, which exports a checkpoint in a process of its own where the weights in memory
                are quantised or sharded.
        """
        best = self.state.best_step
        step = self.state.step if best is None else best
        if self.config.tuning == "qlora" or self.backend.sharded:
            checkpoint = self.checkpoints.verified(step)
            on_rank_zero(lambda: export_checkpoint(script, checkpoint, self.folder.final, self.config))
        else:
            if step != self.state.step:  # else they are in memory, and no byte of the checkpoint is read
                checkpoint = self.checkpoints.verified(step)
                with working(f"loading {checkpoint}", shown=self.main_rank):
                    restore_tensors(checkpoint, self.backend.model)
            if between is not None:
                between(step)
            on_rank_zero(lambda: self._export_here(write, step, f"{script.parent.name}/{script.name}"))
        if self.main_rank:
            self._print_results(step)

    def keep(self, step: int, evaluations: list[DevEvaluation], best_before: int | None = None) -> None:
        """Leave details of an evaluation for the page of the run."""
        if self.main_rank:
            about = {"model": self.config.model, "axis": self.axis}
            keep_evaluation(self.folder.path, step, best_before, evaluations, **about)

    def _export_here(self, write: Callable[[int], object], step: int, script: str) -> None:
        try:
            write(step)
        except ExportError as error:
            checkpoint, final = self.checkpoints.path(step), self.folder.final
            command = f"python {script} --checkpoint {checkpoint} --output {final} --allow_failed_gate true"
            raise ExportError(f"{error}\nfor this run that is: {command}") from error
        except WriteError as error:
            raise WriteError(error.errno, f"{error}; checkpoints are intact: --resume true writes it later") from error

    def _print_results(self, step: int) -> None:
        before, after = evaluation_at(self.folder.metrics, 0), evaluation_of_final(self.folder.path, step)
        print(results_text(before, after, self.axis, self.first_stage))
        print(f"{self.folder.final} holds {self._held(step)}")

    def _held(self, step: int) -> str:
        """What is in final/, where it is of a step, or between that and the base."""
        exported = read_exported(self.folder.path)
        if exported is None or exported.step != step or exported.share == 1:
            return f"the model of step {step}"
        return (
            f"{exported.share:g} of what training changed up to step {step}" if exported.share else "the base's weights"
        )


@contextmanager
def open_run(
    config: TrainingConfig,
    folder: RunFolder,
    batch_sampler: BatchSampler,
    backend: Backend,
    *,
    total: int,
    measure: Callable[[], list[DevEvaluation]] | None,
    axis: str,
    main_rank: bool,
    describe: Callable[[int], str],
    first_stage: Results | None = None,
) -> Iterator[Run]:
    """The run in a folder: from its newest complete checkpoint if it is resumed, else from step 0, evaluated first.

    Args:
        config: As in `Run`, as are all but `describe`.
        folder: Where it writes.
        batch_sampler: What it trains on.
        backend: The model, and how its ranks synchronise.
        total: Steps of the whole run.
        measure: Evaluates the model as it is now; None without dev sets.
        axis: What evaluations are made at.
        main_rank: Whether this is rank 0.
        first_stage: Metrics of a reranker's candidates in their own order.
        describe: A summary of the run, given the number of steps done before; printed on rank 0.
    """
    checkpoints = Checkpoints(folder.checkpoints, config.save_total_limit)
    newest = checkpoints.recover() if folder.resumed else None
    state = start_state(backend, newest, batch_sampler.fingerprint(), folder)
    forget_missing_best(state, checkpoints)
    if main_rank:
        print(describe(state.step), flush=True)
    with (
        open_tracker(
            folder.path,
            main_rank=main_rank,
            resumed_step=state.step if newest else None,
            report_to=config.report_to,
            config=asdict(config),
        ) as tracker,
        Progress(total, done=state.step, shown=main_rank) as progress,
        StopSignal() as stop,
    ):
        run = Run(
            config=config,
            folder=folder,
            batch_sampler=batch_sampler,
            backend=backend,
            checkpoints=checkpoints,
            state=state,
            total=total,
            measure=measure,
            axis=axis,
            first_stage=first_stage or {},
            main_rank=main_rank,
            guard=NonFiniteGuard(skipped=state.skipped_steps, in_a_row=state.skipped_in_a_row),
            tracker=tracker,
            progress=progress,
            stop=stop,
        )
        if measure is not None and newest is None:
            run.evaluate()
        yield run
        # A signal in the evaluation of the last step came after the ranks had agreed on how that step ends.
        if any_rank(run.told_to_stop, backend.model.device):
            run.leave()


def export_checkpoint(script: Path, checkpoint: Path, output: Path, config: TrainingConfig) -> None:
    """Run scripts/export.py in a process of its own. Raises ValueError if it fails, after what it said itself."""
    arguments = [str(each) for each in (script, "--checkpoint", checkpoint, "--output", output)]
    arguments += ["--trust_remote_code", "true"] if config.trust_remote_code else []
    environment = {**outside_launch(os.environ), **ending_with_this()}
    done = subprocess.run([sys.executable, *arguments], env=environment, check=False)
    require(
        done.returncode == 0,
        f"{output} was not written, for the reason above; checkpoints are intact. Once that is mended, write it with "
        f"{shlex.join(['python', *arguments])}",
    )
