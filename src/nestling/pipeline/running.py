"""Running a command as a subprocess, with its output on the terminal and in a file, and with signals forwarded."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from nestling.disk_errors import named
from nestling.processes import Process, discard_unread_output, ending_with_this, identify, stop_signals

TAIL = 20  # lines of output in the message about a failure


class StoppedError(Exception):
    """A signal stopped the pipeline; the running command has ended too.

    Args:
        number: The signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


def run_command(command: Sequence[str], log: Path, started: Callable[[Process], None]) -> None:
    """Run a command to its end and append its output to `log`; a command of Nestling ends if this process is killed.

    Args:
        command: The words of the command.
        log: The log file.
        started: Called with the process.

    Raises:
        ValueError: The command failed; the message has its last lines of output.
        StoppedError: A stop signal was received and forwarded; the command has ended.
    """
    environment = {**os.environ, **ending_with_this(), "PYTHONUNBUFFERED": "1"}  # so that lines appear at once
    with log.open("ab", buffering=0) as file:
        begin = file.tell()
        with (
            forwarding_signals() as received,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process,
        ):
            started(identify(process.pid))  # before terminate(), which reaps a process that has ended
            if received:  # before the process existed
                process.terminate()
            copy_output(process, file, log)
    if received:
        raise StoppedError(received[0])
    if process.returncode != 0:
        lines = log.read_bytes()[begin:].decode("utf-8", errors="replace").splitlines()[-TAIL:]
        shown = "".join(f"\n  {line}" for line in lines)
        raise ValueError(f"it ended with status {process.returncode}; the last lines of {log}:{shown}")


def copy_output(process: subprocess.Popen[bytes], file: IO[bytes], log: Path) -> None:
    """Copy the output of a process to stdout and to the open file of `log`.

    It ends when all writers have ended: a launcher may end while the process that it started still saves.
    """
    assert process.stdout is not None
    while part := os.read(process.stdout.fileno(), 65536):
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        with named(log):
            file.write(part)


@contextmanager
def forwarding_signals() -> Iterator[list[signal.Signals]]:
    """Forward stop signals to all descendants as SIGTERM; yields the list of received signals.

    Ctrl-C in a terminal reaches all of them already. A second SIGINT would end a training that is about to save, so
    SIGTERM is forwarded in its place.
    """
    received: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        discard_unread_output()
        received.append(signal.Signals(number))
        for each in psutil.Process().children(recursive=True):
            # Processes of other groups are ranks of torchrun, which forwards the signal itself.
            if process_group(each.pid) == os.getpgrp():
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGTERM)

    previous = {number: signal.signal(number, handle) for number in stop_signals()}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def process_group(process: int) -> int | None:
    """Process group of a process; None if it has ended."""
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return None
