"""Where a run's metrics go while it trains: metrics.jsonl always, Weights & Biases and TensorBoard when asked for."""

import json
import logging
import math
import os
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Protocol, Self

from nestling.disk_errors import named
from nestling.files import replace_text
from nestling.run_files import METRICS

logger = logging.getLogger(__name__)

WANDB_ID, TENSORBOARD = "wandb_id", "tensorboard"


class Sink(Protocol):
    """A destination of metrics."""

    def write(self, step: int, values: Mapping[str, object]) -> None:
        """Write the values of a step: numbers, null, or mappings of these, as `finite` returns them."""

    def close(self) -> None:
        """Write what is still buffered."""


class Tracker:
    """Sends each line of metrics to every sink; without sinks, on ranks other than 0, it does nothing."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = sinks

    def log(self, step: int, values: Mapping[str, object]) -> None:
        """Write the values of a step; NaN and infinities become null."""
        for sink in self.sinks:
            sink.write(step, {key: finite(value) for key, value in values.items()})

    def log_evaluation(self, step: int, results: Mapping[str, object]) -> None:
        """Write results, {dev set: {dimension or depth: {metric: value}}}, under the key "eval"."""
        self.log(step, {"eval": results})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in self.sinks:
            sink.close()


def open_tracker(
    folder: Path,
    *,
    main_rank: bool,
    resumed_step: int | None = None,
    report_to: Collection[str] = (),
    config: Mapping[str, object] | None = None,
) -> Tracker:
    """Open the sinks of a run; none on ranks other than 0.

    Args:
        folder: The run folder.
        main_rank: Whether this is rank 0.
        resumed_step: Step of the checkpoint that training resumes from: later lines of metrics.jsonl are removed.
            None for a run that starts at step 0.
        report_to: "wandb", whose project is WANDB_PROJECT (nestling by default) and which works without a network with
            WANDB_MODE=offline; "tensorboard", which writes into the run folder; or both.
        config: The resolved settings, shown by wandb.

    Raises:
        ValueError: wandb or TensorBoard is asked for and not installed.
    """
    if not main_rank:
        return Tracker([])
    sinks: list[Sink] = []
    if "wandb" in report_to:
        sinks.append(Wandb(folder, config or {}))
    if "tensorboard" in report_to:
        sinks.append(TensorBoard(folder / TENSORBOARD, resumed_step))
    return Tracker([JsonLines(folder / METRICS, resumed_step), *sinks])


def require_trackers(report_to: Collection[str]) -> None:
    """Raise ValueError for a tracker that is not installed, and for wandb without a key: before models are loaded."""
    if "tensorboard" in report_to:
        import_writer()
    if "wandb" in report_to:
        wandb = import_wandb()
        if os.environ.get("WANDB_MODE") not in ("offline", "dryrun", "disabled"):
            with wandb_errors(wandb):
                wandb.login()  # which asks for the key on a terminal


def import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        message = "report_to: wandb is not installed; pip install wandb, or leave it out of report_to"
        raise ValueError(message) from error
    return wandb


def import_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "report_to: tensorboard is not installed; pip install tensorboard, or leave it out of report_to"
        ) from error
    return SummaryWriter


@contextmanager
def wandb_errors(wandb: Any) -> Iterator[None]:
    """A context in which what wandb refuses is a ValueError."""
    try:
        yield
    except wandb.errors.Error as error:
        raise ValueError(
            f"report_to: wandb: {error} WANDB_MODE=offline keeps metrics here for `wandb sync`; or leave it out of "
            "report_to"
        ) from error


class JsonLines:
    """One JSON object a line, flushed after each line, so that a kill damages at most the last one."""

    def __init__(self, path: Path, resumed_step: int | None) -> None:
        keep_lines(path, resumed_step)
        with named(path):
            self.path, self.file = path, path.open("a", encoding="utf-8", buffering=1)

    def write(self, step: int, values: Mapping[str, object]) -> None:
        with named(self.path):
            self.file.write(json.dumps({"step": step, **values}, allow_nan=False, ensure_ascii=False) + "\n")

    def close(self) -> None:
        with named(self.path):
            self.file.close()


def keep_lines(path: Path, last_step: int | None) -> None:
    """Remove the lines of metrics.jsonl after `last_step` (all with None), atomically: no step is logged twice."""
    if not path.exists():
        return
    kept = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            step = step_of(line)
            if step is None:
                logger.warning("%s:%d: an incomplete line of metrics, left by a kill; it is removed", path, number)
            elif last_step is not None and step <= last_step:
                kept.append(line)
    replace_text(path, "".join(kept))


def step_of(line: str) -> int | None:
    """The step of a complete line of metrics, else None."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) and line.endswith("\n") else None


class Wandb:
    """Weights & Biases, imported only here. A resumed run continues under its id, which is kept in the run folder.

    The step is logged as a value, and is the x-axis of all other values: wandb drops values logged for a step of its
    own counter that is past, and a run that was killed repeats some steps.
    """

    def __init__(self, folder: Path, config: Mapping[str, object]) -> None:
        wandb = import_wandb()
        if not (folder / WANDB_ID).exists():
            replace_text(folder / WANDB_ID, secrets.token_hex(4))
        run_id = (folder / WANDB_ID).read_text(encoding="utf-8")
        with wandb_errors(wandb):
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "nestling"),
                name=folder.resolve().name,
                id=run_id,
                resume="allow",
                dir=folder,
                config=dict(config),
            )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, object]) -> None:
        self.run.log({"step": step, **dict(flat_numbers(values))})

    def close(self) -> None:
        self.run.finish()


class TensorBoard:
    """TensorBoard event files; a resumed run replaces the steps that it repeats."""

    def __init__(self, folder: Path, resumed_step: int | None) -> None:
        writer = import_writer()
        self.folder = folder
        with named(folder):
            self.writer = writer(folder, purge_step=0 if resumed_step is None else resumed_step + 1)

    def write(self, step: int, values: Mapping[str, object]) -> None:
        with named(self.folder):
            for key, value in flat_numbers(values):
                self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        with named(self.folder):
            self.writer.close()


def finite(value: object) -> object:
    """A value that JSON can hold: Python numbers, null for NaN and infinities, mappings with text keys, lists."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    return value


def flat_numbers(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of nested mappings by path (`eval/nl2bash/384/nDCG@10`); other values are skipped."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value


class Meter:
    """Means over the steps between two logged steps.

    Args:
        tokens: Tokens trained on so far.
    """

    def __init__(self, tokens: int) -> None:
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._seconds = 0.0
        self._tokens = tokens

    def add(self, loss: float, gradient_norm: float, seconds: float) -> None:
        """Add a step."""
        self._losses.append(loss)
        self._norms.append(gradient_norm)
        self._seconds += seconds

    def read(self, tokens: int) -> dict[str, float]:
        """The means since the last call, given the tokens trained on so far."""
        figures = {
            "loss": fmean(self._losses),
            "grad_norm": fmean(self._norms),
            "seconds": self._seconds,
            "tokens_per_second": (tokens - self._tokens) / self._seconds,
        }
        self._losses, self._norms, self._seconds, self._tokens = [], [], 0.0, tokens
        return figures
