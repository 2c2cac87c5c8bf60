"""Servers that a measurement starts: it waits for them, and nothing of them is left, however it ends."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ranks import ROOT, environment

from nestling.serving.keeper import GRACE, KEPT, stop
from nestling.serving.started import started_server

# A server of /health that starts a child in a session of its own, as servers with several processes do.
SERVER = """
import http.server, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("child", child.pid, flush=True)
time.sleep(0.2)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()
    def log_message(self, *arguments):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def command(port: int, program: str = SERVER) -> str:
    return shlex.join([sys.executable, "-c", program, str(port)])


def child_of(log: Path) -> int:
    """The process that the server says it has started."""
    deadline = time.monotonic() + 60
    while not (log.exists() and (words := log.read_text().split())[:1] == ["child"] and len(words) > 1):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(words[1])


def gone(pid: int) -> bool:
    """Whether a process ends within a while."""
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_server_is_waited_for_and_stopped_with_its_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port, log = free_port(), tmp_path / "server.log"
    url = f"http://127.0.0.1:{port}"
    with started_server(command(port), f"{url}/v1", health="/health", timeout=60, log=log):
        child = child_of(log)
        assert psutil.pid_exists(child)
        taken = started_server(command(port), url, health="/health", timeout=60, log=log)
        with pytest.raises(ValueError, match=r"is answered before .* end that server, or choose another port"), taken:
            pass
    assert f"{url}/health: ready after" in capsys.readouterr().err
    assert gone(child)


def measured(port: int, log: Path, ends: bool) -> None:
    """A measurement that fails, in the middle of which the server may be killed."""
    with started_server(command(port), f"http://127.0.0.1:{port}", health="/health", timeout=60, log=log):
        if ends:
            (server,) = psutil.Process(child_of(log)).parents()[:1]
            keeper = server.ppid()
            server.kill()
            assert gone(keeper)
        raise ValueError("no answer")


def test_a_server_that_ends_while_it_is_measured_is_told_with_its_last_lines(tmp_path: Path) -> None:
    """Its log goes with the temporary folder where no --output is given."""
    with pytest.raises(ValueError, match=r"(?s)no answer; .* ended with status 247 meanwhile; the last .*child \d+"):
        measured(free_port(), tmp_path / "ended.log", ends=True)
    with pytest.raises(ValueError, match=r"\Ano answer\Z"):
        measured(free_port(), tmp_path / "server.log", ends=False)


STARTS = """
import os, subprocess, sys
name, mark = sys.argv[1:]
child = [sys.executable, "-c", "import time; time.sleep(600)"]
print(subprocess.Popen(child, env={**os.environ, name: mark}).pid, flush=True)
sys.stdin.read()
"""


def test_what_has_ended_is_not_waited_for_though_its_parent_never_asks_how() -> None:
    """As in a container whose first process adopts orphans and leaves them."""
    command = [sys.executable, "-c", STARTS, KEPT, "of this test"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child, began = psutil.Process(int(parent.stdout.readline())), time.monotonic()
        stop("of this test")
        assert time.monotonic() - began < GRACE
        assert child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_server_that_fails_or_is_never_ready_is_told_with_its_last_lines(tmp_path: Path) -> None:
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", tmp_path / "server.log"
    failing = started_server(
        command(port, "print('no such model'); raise SystemExit(7)"), url, health="/health", timeout=60, log=log
    )
    with pytest.raises(ValueError, match=r"ended with status 7 before .*/health answered.*\n  no such model"), failing:
        pass
    never = started_server(command(port), url, health="/other", timeout=2, log=log)
    with pytest.raises(ValueError, match=r"/other answers (status 503|nothing) after 2 s \(--start_timeout\)"), never:
        pass
    assert gone(int(log.read_text().split()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_a_server_whose_measurement_is_killed(number: signal.Signals, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "server.log"
    program = (
        "import sys, time; from pathlib import Path; from nestling.serving.started import started_server\n"
        "command, url, log = sys.argv[1:]\n"
        "with started_server(command, url, health='/health', timeout=60, log=Path(log)):\n    time.sleep(600)"
    )
    arguments = [sys.executable, "-c", program, command(port), f"http://127.0.0.1:{port}", str(log)]
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    child = child_of(log)
    assert process.stderr is not None
    assert "ready after" in process.stderr.readline()
    started = [each.pid for each in psutil.Process(process.pid).children(recursive=True)]
    assert child in started
    os.kill(process.pid, number)
    process.stderr.close()
    process.wait(timeout=60)
    assert all(map(gone, started))
