"""Keeps a server from outliving the process that started it: `python -m nestling.serving.keeper COMMAND ...`.

Once standard input ends, as it does when the process at its other end ends in whatever way, or once the command ends,
the command and all that it has started are told to stop, and killed if they are there after `GRACE` seconds. They are
known by a variable in their environment, which also those have whose parents are gone.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from threading import Lock, Thread

import psutil

from nestling.processes import STOP_SIGNALS, ends_within, identify

GRACE = 10.0
KEPT = "NESTLING_KEPT"  # the environment variable
stopping = Lock()  # this process must not end while what it keeps is being stopped


def main() -> int:
    """Run the command until it ends, or standard input does; returns its status."""
    for number in STOP_SIGNALS:  # meant for the starter, whose end ends the input
        signal.signal(number, signal.SIG_IGN)
    mark = secrets.token_hex(16)
    process = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=default_signals,
        env={**os.environ, KEPT: mark},
    )
    Thread(target=stop_at_end_of_input, args=(mark,), daemon=True).start()
    status = process.wait()
    stop(mark)
    return status


def default_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def stop_at_end_of_input(mark: str) -> None:
    while os.read(0, 4096):  # not through sys.stdin, whose lock the interpreter takes when it ends
        pass
    stop(mark)


def stop(mark: str) -> None:
    """End all processes with a mark."""
    with stopping:
        for number in (signal.SIGTERM, signal.SIGKILL):
            told = []
            for each in processes_with(mark):
                with suppress(psutil.NoSuchProcess):
                    told.append(identify(each.pid))
                    each.send_signal(number)
            deadline = time.monotonic() + GRACE
            for process in told:  # a zombie has ended; whose child it is may never ask, as in a container without init
                ends_within(process, deadline - time.monotonic())


def processes_with(mark: str) -> list[psutil.Process]:
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it has ended, or is somebody else's
            if each.environ().get(KEPT) == mark:
                found.append(each)
    return found


if __name__ == "__main__":
    sys.exit(main())
