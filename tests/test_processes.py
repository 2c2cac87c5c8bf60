"""Processes that end with another one, and the identity of a process."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from nestling.processes import ending_with_this, identify, still_runs

STARTS = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.DEVNULL).pid, flush=True)
sys.stdin.read()
"""
ENDS = "import os, time; from nestling.processes import end_with_starter; end_with_starter(); time.sleep(60)"
STARTS_ONE_THAT_ENDS = f"""
import os, subprocess, sys
from nestling.processes import ending_with_this
launcher = {STARTS!r}
environment = {{**os.environ, **ending_with_this()}}
subprocess.run([sys.executable, "-c", launcher, {ENDS!r}], env=environment)
"""


def test_a_process_is_known_by_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    pid, start = identify(os.getpid())
    assert still_runs((pid, start))
    assert not still_runs((pid, start - 100)), "another with the same id"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    found = identify(ended.pid)
    while still_runs(found):
        time.sleep(0.01)
    assert psutil.pid_exists(ended.pid), "a zombie"
    ended.wait()
    assert not still_runs(found)
    with pytest.raises(psutil.NoSuchProcess):
        identify(ended.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the start is a time of day")
def test_a_clock_that_jumps_makes_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    found = identify(os.getpid())
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 1e6)
    assert psutil.Process().create_time() < 1e8
    assert still_runs(found)


def test_a_command_ends_with_the_killed_process_that_started_it_behind_a_launcher() -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTS_ONE_THAT_ENDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    command = identify(int(starter.stdout.readline()))
    time.sleep(1.5)
    assert still_runs(command)
    starter.kill()
    starter.communicate()
    deadline = time.monotonic() + 5
    while still_runs(command):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_environment_names_this_process() -> None:
    (value,) = ending_with_this().values()
    pid, start = value.split()
    assert (int(pid), float(start)) == identify(os.getpid())
