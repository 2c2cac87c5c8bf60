"""Guards that end a run early: on a signal, or after repeated losses and gradients that are not finite, or 0."""

import math
import signal
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self

from nestling.processes import STOP_SIGNALS, discard_unread_output, stop_signals


class StopSignal:
    """A context that turns stop signals into a flag, so that the training loop can finish its step and save.

    They are SIGTERM, Ctrl-C (SIGINT) and, unless it is ignored as under nohup, the end of the terminal (SIGHUP).

    A second Ctrl-C raises KeyboardInterrupt at once. One of several ranks may get the signal earlier than others, so
    they must agree after each step. Use it in the main thread:

        with StopSignal() as stop:
            for batch in batches:
                ...
                if any_rank(stop.received is not None):
                    save(), break

    Attributes:
        received: The signal that was received; None before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._interrupted = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in stop_signals()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        discard_unread_output()
        self._interrupted = self._interrupted or number == signal.SIGINT
        self.received = signal.Signals(number)


def ignore_stop_signals(worker_id: int) -> None:
    """`worker_init_fn` of a DataLoader that makes workers ignore stop signals.

    Schedulers and Ctrl-C signal all processes of a group, workers included. A worker that died would raise an error in
    the main process in the middle of a step.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@dataclass
class NonFiniteGuard:
    """Skips the update of a step whose loss or gradient is not finite, and raises after `limit` such steps in a row.

    Args:
        limit: How many such steps in a row raise an error.
        skipped: How many updates have been skipped since the run began.
        in_a_row: How many of the latest steps were skipped in a row.
    """

    limit: int = 5
    skipped: int = 0
    in_a_row: int = 0

    def accepts(self, step: int, loss: float, gradient_norm: float) -> bool:
        """Whether the step may update the weights; also counts it.

        Args:
            step: Number of the step, for the error.
            loss: The loss over all ranks, so that all of them decide alike.
            gradient_norm: The norm of the gradient over all ranks.

        Raises:
            FloatingPointError: The loss or gradient of `limit` steps in a row was not finite.
        """
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise FloatingPointError(
                f"step {step}: {self.in_a_row} steps in a row had a loss or gradient that is not finite (now loss "
                f"{loss}, gradient norm {gradient_norm}); their updates were skipped. Try a lower learning rate, a "
                "longer warm-up, a higher temperature or precision fp32, in a new run folder"
            )
        return False


@dataclass
class ZeroGuard:
    """Counts the latest steps in a row whose loss and gradient were both exactly 0, from which nothing is learnt.

    A learning rate of 0 and frozen weights leave the loss as it is, and do not count.

    Args:
        limit: So many in a row end a run. Batches that happen to be of one grade teach nothing either: where one graded
            pair in twenty has another grade than the rest, two of three batches of 8 do, and 50 in a row once in 10^9.
        in_a_row: How many there are now.
    """

    limit: int = 50
    in_a_row: int = 0

    def reached(self, loss: float, gradient_norm: float) -> bool:
        """Count a step by its loss and gradient over all ranks, so that all decide alike; whether to end the run."""
        self.in_a_row = self.in_a_row + 1 if loss == gradient_norm == 0 else 0
        return self.in_a_row >= self.limit
