"""Output on a terminal: progress with the remaining time, tables and summaries."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from textwrap import indent
from threading import Event, Thread
from types import TracebackType
from typing import Self

from tabulate import tabulate
from tqdm import tqdm


class Progress:
    """Progress of a training run on stderr: a bar on a terminal, otherwise a line from time to time.

    Args:
        total: Number of steps of the whole run.
        done: Number of steps done before this launch.
        shown: Whether to print; False on all ranks except the main one.
        seconds: Minimum time between two lines if stderr is not a terminal.
    """

    def __init__(self, total: int, *, done: int = 0, shown: bool = True, seconds: float = 30.0) -> None:
        self.total, self.first, self.shown, self.seconds = total, done, shown, seconds
        self.started = self.last_line = time.monotonic()
        self.bar = tqdm(
            total=total, initial=done, unit="step", dynamic_ncols=True, disable=not (shown and sys.stderr.isatty())
        )

    def update(self, step: int, *, loss: float, learning_rate: float, tokens_per_second: float) -> None:
        """Show that `step` steps are done, with loss, learning rate and speed."""
        figures = f"loss {loss:.4f}, lr {learning_rate:.2e}, {tqdm.format_sizeof(tokens_per_second)} tokens/s"
        if not self.bar.disable:
            self.bar.set_postfix_str(figures, refresh=False)
            self.bar.update(step - self.bar.n)
        elif self.shown and (step == self.total or time.monotonic() - self.last_line >= self.seconds):
            self.last_line = time.monotonic()
            seconds_left = (self.last_line - self.started) / (step - self.first) * (self.total - step)
            left = tqdm.format_interval(seconds_left)
            self.say(f"step {step}/{self.total} ({step / self.total:.0%}), {figures}, {left} left")

    def say(self, text: str) -> None:
        """Print a text on stderr, above the bar if there is one."""
        if self.shown:
            say(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()


@contextmanager
def working(task: str, *, shown: bool = True, seconds: float = 10.0) -> Iterator[None]:
    """Say on stderr, every so many seconds, that a task without any other output goes on.

    Args:
        task: What is done, such as "writing the checkpoint step-500".
        shown: Whether to print; False on all ranks except the main one.
        seconds: Between two lines.
    """
    ended, started = Event(), time.monotonic()

    def say_so() -> None:
        while not ended.wait(seconds):
            say(f"{task}: {tqdm.format_interval(time.monotonic() - started)} so far")

    if not shown:
        yield
        return
    thread = Thread(target=say_so, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def say(text: str) -> None:
    """Print text on stderr, above a bar if there is one."""
    tqdm.write(text, file=sys.stderr)


@cache
def say_once(text: str) -> None:
    """Print a text on stderr, once in a process."""
    say(text)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, digits: int = 3, markdown: bool = False) -> str:
    """A table with numbers aligned at the decimal point, floats with `digits` digits after it, and None as a dash."""
    style = "github" if markdown else "simple"
    return tabulate(rows, headers, tablefmt=style, floatfmt=f".{digits}f", missingval="-")


def summary(title: str, items: Mapping[str, object]) -> str:
    """A title and an indented line `name  value` for each item; integers have thousands separators."""
    rows = [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in items.items()]
    return f"{title}\n{indent(tabulate(rows, tablefmt='plain', disable_numparse=True), '  ')}"
