"""Outputs of a script: new ones, that no other process writes."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nestling.config.checks import require, require_new
from nestling.locks import claim


@contextmanager
def new_outputs(*outputs: tuple[str, str | Path | None]) -> Iterator[None]:
    """A context in which no other process writes some outputs, each given with its flag; of several ranks one claims.

    Raises:
        ValueError: One exists, has no folder, is being written by another process, or is another one too.
    """
    flags: dict[Path, str] = {}
    for flag, path in outputs:
        if path is not None:
            place = Path(path).resolve()
            require(place not in flags, f"{flag} {path}: {flags.get(place)} is the same file; give it another name")
            flags[place] = flag
    with ExitStack() as stack:
        for flag, path in outputs:
            require_new(flag, path)
            if path is not None and os.environ.get("RANK", "0") == "0":
                stack.enter_context(claim(Path(path)))
                require_new(flag, path)  # another process may have written it in between
        yield
