"""Real commands that succeed, fail, or are stopped by a signal."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from nestling.pipeline.running import StoppedError, run_command
from nestling.processes import Process, still_runs

SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print("saved"), sys.exit(143)))
print("ready", flush=True)
time.sleep(60)
"""
LAUNCHES = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"


def test_output_is_shown_and_logged(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    processes: list[Process] = []
    for _ in range(2):
        command = [sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr)"]
        run_command(command, tmp_path / "log.txt", processes.append)
    assert sorted((tmp_path / "log.txt").read_text().split()) == ["err", "err", "out", "out"]
    assert sorted(capfdbinary.readouterr().out.split()) == [b"err", b"err", b"out", b"out"]
    assert not any(map(still_runs, processes))


def test_a_failure_shows_the_last_lines_of_this_start(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("an earlier start\n")
    command = [sys.executable, "-c", "for i in range(99): print(i)\nraise SystemExit(3)"]
    with pytest.raises(ValueError, match="status 3") as error:
        run_command(command, log, lambda _: None)
    first, *lines = str(error.value).splitlines()
    assert first == f"it ended with status 3; the last lines of {log}:"
    assert [line.strip() for line in lines] == [str(number) for number in range(79, 99)]


@pytest.mark.parametrize("launcher", [[], ["-c", LAUNCHES]], ids=["itself", "behind a launcher"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_waited_for(launcher: list[str], number: signal.Signals, tmp_path: Path) -> None:
    """Behind a launcher that dies of it too, as accelerate's does with one process."""
    log = tmp_path / "log.txt"

    def stop() -> None:
        while not (log.exists() and "ready\n" in log.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    command = [sys.executable, *launcher, SAVES] if launcher else [sys.executable, "-c", SAVES]
    before = signal.getsignal(number)
    with pytest.raises(StoppedError) as stopped:
        run_command(command, log, lambda _: None)
    thread.join()
    assert stopped.value.number == number
    assert log.read_text().split() == ["ready", "saved"]
    assert signal.getsignal(number) == before


def test_a_full_disk_is_named(full_device: Path) -> None:
    with pytest.raises(OSError, match="cannot write /dev/full: No space left on device; free space there"):
        run_command([sys.executable, "-c", "print('out')"], full_device, lambda _: None)
