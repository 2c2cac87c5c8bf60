"""Outputs of a script: new ones, that no other process writes."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nestling.config.checks import require_new
from nestling.locks import claim


@contextmanager
def new_outputs(*outputs: tuple[str, str | Path | None]) -> Iterator[None]:
    """A context in which no other process writes some outputs, each given with its flag; of several ranks one claims.

    Raises:
        ValueError: One exists, has no folder, or is being written by another process.
    """
    with ExitStack() as stack:
        for flag, path in outputs:
            require_new(flag, path)
            if path is not None and os.environ.get("RANK", "0") == "0":
                stack.enter_context(claim(Path(path)))
                require_new(flag, path)  # another process may have written it in between
        yield
