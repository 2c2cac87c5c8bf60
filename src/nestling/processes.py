"""Processes that end with the one that started them, also where SIGKILL or the kernel, out of memory, ends that one."""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Environment variable: id and start of the process with which a command of Nestling ends.
STARTER = "NESTLING_STARTER"
# Seconds between two looks at a process.
INTERVAL = 0.5

# Id of a process and its start, in clock ticks since boot on Linux, elsewhere in seconds since 1970.
Process = tuple[int, float]


def identify(pid: int) -> Process:
    """A process by its id and its start, since ids are used again. Raises psutil.NoSuchProcess."""
    return pid, look_at(pid)[1]


def still_runs(process: Process) -> bool:
    """Whether a process has not ended; a zombie has."""
    try:
        zombie, start = look_at(process[0])
    except psutil.NoSuchProcess:
        return False
    return not zombie and abs(start - process[1]) < 1


def ends_within(process: Process, seconds: float) -> bool:
    """Wait for the end of a process, at most so long; whether it has ended."""
    deadline = time.monotonic() + seconds
    while still_runs(process):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def look_at(pid: int) -> tuple[bool, float]:
    """Whether a process is a zombie, and its start.

    On Linux the start is read from /proc: psutil's is relative to the time of day, and a clock that is set meanwhile
    would make a process look like another one.
    """
    if sys.platform != "linux":
        found = psutil.Process(pid)
        return found.status() == psutil.STATUS_ZOMBIE, found.create_time()
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    fields = text.rpartition(")")[2].split()  # those after the name, which may hold spaces
    return fields[0] in ("Z", "X"), float(fields[19])


def end_with(process: Process, number: signal.Signals) -> None:
    """Send this process a signal once another process has ended."""

    def watch() -> None:
        while still_runs(process):
            time.sleep(INTERVAL)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, name="end_with", daemon=True).start()


def ending_with_this() -> Mapping[str, str]:
    """Environment of a command of Nestling that is to end with this process."""
    pid, start = identify(os.getpid())
    return {STARTER: f"{pid} {start}"}


def end_with_starter() -> None:
    """Send this process SIGTERM, at which a training saves, once the command or launcher that started it has ended."""
    if STARTER in os.environ:
        pid, start = os.environ[STARTER].split()
        end_with((int(pid), float(start)), signal.SIGTERM)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(identify(os.getppid()), signal.SIGTERM)


def stop_signals() -> list[signal.Signals]:
    """The signals that ask this process to stop: not SIGHUP where it is ignored, as under nohup."""
    return [each for each in STOP_SIGNALS if each != signal.SIGHUP or signal.getsignal(signal.SIGHUP) != signal.SIG_IGN]


def discard_unread_output() -> None:
    """Discard output from now on that goes to a terminal or a pipe whose other end is gone.

    Writing there is an error, which would keep a run that is to stop from saving.
    """
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)  # only errors
        if poll.poll(0):
            discard_output(descriptor)


def discard_unwritable_output() -> None:
    """Discard what is left of the output if it cannot be written, to a full disk for instance.

    Python would try again at the end, print a traceback and change the exit status.
    """
    try:
        sys.stdout.flush()
    except OSError:
        discard_output(1)


def discard_output(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
