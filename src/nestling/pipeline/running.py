"""A command in a process of its own: its output on the terminal and in a file, signals passed on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from nestling.files import named

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
TAIL = 20  # lines of output that a failure shows


class StoppedError(Exception):
    """A signal from outside ended the pipeline, after the command had ended too.

    Args:
        number: The signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


def run_command(command: Sequence[str], log: Path, started: Callable[[tuple[int, float]], None]) -> None:
    """Run a command to its end, and add what it prints to the end of `log`.

    Args:
        command: One word each.
        log: The file.
        started: Called with id and start, in seconds since 1970, of the process.

    Raises:
        ValueError: It failed; with its last lines.
        StoppedError: SIGTERM or SIGINT came; the command had them too, and has ended.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # lines appear when they are printed, not when there are many
    with log.open("ab", buffering=0) as file:
        begin = file.tell()
        with (
            passing_on() as received,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process,
        ):
            started((process.pid, psutil.Process(process.pid).create_time()))  # first: terminate() forgets a dead one
            if received:  # before it was there
                process.terminate()
            assert process.stdout is not None
            # Until all that write have ended: a launcher may be gone while the process that it started still saves.
            while part := os.read(process.stdout.fileno(), 65536):
                sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()
                with named(log):
                    file.write(part)
    if received:
        raise StoppedError(received[0])
    if process.returncode != 0:
        lines = log.read_bytes()[begin:].decode("utf-8", errors="replace").splitlines()[-TAIL:]
        shown = "".join(f"\n  {line}" for line in lines)
        raise ValueError(f"it ended with status {process.returncode}; the last lines of {log}:{shown}")


@contextmanager
def passing_on() -> Iterator[list[signal.Signals]]:
    """Pass signals that would end us on to all processes below us; gives a list of those that came.

    A terminal's Ctrl-C reaches all of them by itself. A second SIGINT would end a training that is about to save, so
    what is passed on is always SIGTERM.
    """
    received: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        for each in psutil.Process().children(recursive=True):
            # Those of other groups are ranks of torchrun, which passes it on itself.
            if group_of(each.pid) == os.getpgrp():
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGTERM)

    previous = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def group_of(process: int) -> int | None:
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return None


def still_runs(process: tuple[int, float]) -> bool:
    """Whether it is the same process as when it was started, and no other with its id."""
    try:
        found = psutil.Process(process[0])
        return abs(found.create_time() - process[1]) < 1 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
