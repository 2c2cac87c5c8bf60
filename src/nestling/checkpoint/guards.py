"""What ends a run early: a signal from outside, or losses that are not finite."""

import math
import signal
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a flag, `received`, so that the loop can finish its step, save and leave.

    With several ranks one may be told before the others: they agree with what else they sum up after a step.

    A second Ctrl-C raises KeyboardInterrupt at once. Use it in the main thread:

        with StopSignal() as stop:
            for batch in batches:
                ...
                if any_rank(stop.received is not None):
                    save(), break
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._interrupted = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or number == signal.SIGINT
        self.received = signal.Signals(number)


def ignore_stop_signals(worker_id: int) -> None:
    """`worker_init_fn` of a DataLoader: schedulers and Ctrl-C signal a whole process group, workers included.

    A worker that died of it would raise in the middle of the main process's step. It ends with its parent anyhow.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@dataclass
class NonFiniteGuard:
    """Counts the steps that a non-finite loss or gradient spoils, and gives up after `limit` in a row.

    Args:
        limit: Steps in a row that raise.
        skipped: Such steps since the run began.
        in_a_row: Such steps just before the next one.
    """

    limit: int = 5
    skipped: int = 0
    in_a_row: int = 0

    def accepts(self, step: int, loss: float, gradient_norm: float) -> bool:
        """Whether the step may update the weights; its values must be those of all ranks, so that all of them agree.

        Raises:
            FloatingPointError: This was the last of `limit` such steps in a row.
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
