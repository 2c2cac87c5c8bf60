"""Servers that are started for a measurement, and stopped with it."""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from tqdm import tqdm

from nestling.config import require
from nestling.console import say, working

TAIL = 20  # lines of a server's output in the message about its failure
INTERVAL = 0.25  # seconds between two looks at a server that is starting


@contextmanager
def started_server(command: str, url: str, *, health: str, timeout: float, log: Path) -> Iterator[None]:
    """Start a server, wait until it is healthy, and stop it with all its processes at the end, or when this one ends.

    Args:
        command: The command, as in a shell, without pipes.
        url: Where it will answer.
        health: Path at which it answers a status of 2xx once it is ready.
        timeout: Seconds that it may take to.
        log: Where its output goes.

    Raises:
        ValueError: Something else answers there already, or it ended, or was not healthy in time; also for an error of
            the block after which it is found to have ended.
    """
    address = str(httpx.URL(url).join(health))
    require(
        status_of(address) is None,
        f"{address} is answered before {command!r} is started; end that server, or choose another port",
    )
    words = [sys.executable, "-m", "nestling.serving.keeper", *shlex.split(command)]
    with (
        log.open("ab") as output,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT) as keeper,
    ):
        assert keeper.stdin is not None
        try:
            with working(f"waiting for {address}"):
                seconds = wait_for(address, keeper, command, timeout, log)
            say(f"{address}: ready after {tqdm.format_interval(seconds)}")
            with telling_its_end(keeper, command, log):
                yield
        finally:
            keeper.stdin.close()
            keeper.wait()


@contextmanager
def telling_its_end(keeper: "subprocess.Popen[bytes]", command: str, log: Path) -> Iterator[None]:
    """A context in which an error that the end of a server may have caused says so, with its last lines."""
    try:
        yield
    except ValueError as error:
        if keeper.poll() is None:
            raise
        raise ValueError(f"{error}; {command!r} ended with status {keeper.returncode} meanwhile{tail(log)}") from None


def wait_for(address: str, keeper: "subprocess.Popen[bytes]", command: str, timeout: float, log: Path) -> float:
    """Wait until the server is healthy; the seconds that it took."""
    begun = time.monotonic()
    while (status := status_of(address)) is None or not 200 <= status < 300:
        passed = time.monotonic() - begun
        answered = "nothing" if status is None else f"status {status}"
        if keeper.poll() is not None:
            raise ValueError(f"{command!r} ended with status {keeper.returncode} before {address} answered{tail(log)}")
        if passed >= timeout:
            raise ValueError(f"{address} answers {answered} after {timeout:g} s (--start_timeout){tail(log)}")
        time.sleep(INTERVAL)
    return time.monotonic() - begun


def status_of(address: str) -> int | None:
    """The status that an address answers; None where nothing answers."""
    try:
        return httpx.get(address, timeout=5.0).status_code
    except httpx.HTTPError:
        return None


def tail(log: Path) -> str:
    """The last lines of a log, for an error."""
    lines = log.read_bytes().decode("utf-8", errors="replace").splitlines()[-TAIL:]
    return f"; the last lines of {log}:" + "".join(f"\n  {line}" for line in lines)
