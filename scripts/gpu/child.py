"""A check's own process: a fault of CUDA or a lack of memory ends with it."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from scripts.gpu.place import NotRunError, Place

NOT_RUN = 75  # exit status of a check that cannot run here


def run_check(function: str, place: Place, log: Path) -> None:
    """Call `module:function` with a place; what it prints goes to `log`, and so does the error that ends it."""
    os.setsid()  # so that it can be ended together with what it has started
    redirect(log)
    module, _, name = function.partition(":")
    from nestling.gpu import set_up_torch

    try:
        import torch  # noqa: F401  so that it is set up

        set_up_torch()
        getattr(import_module(module), name)(place)
    except NotRunError as reason:
        print(reason, flush=True)
        sys.exit(NOT_RUN)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def redirect(log: Path) -> None:
    """Write standard output and error of this process, and of those that it starts, to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


def last_line(log: Path) -> str:
    """The last line of a file that is not blank."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing was said")


def check_elsewhere(function: str, place: Place, **environment: str) -> None:
    """Run a check in a process of its own, which starts with other environment variables and imports all anew.

    Raises:
        RuntimeError: It failed.
    """
    log = place.log(place.rows.stem)
    with variables(environment):
        process = get_context("spawn").Process(target=run_check, args=(function, place, log))
        process.start()
    process.join()
    said = last_line(log)
    if process.exitcode == NOT_RUN:
        raise NotRunError(said)
    if process.exitcode:
        raise RuntimeError(said)


@contextmanager
def variables(changed: dict[str, str]) -> Iterator[None]:
    """Other environment variables inside a block."""
    before = dict(os.environ)
    os.environ.update(changed)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
