"""Locks for one process at a time: on the folder of a run, and on a file or folder that is being written.

All are POSIX record locks, not flock: forked data workers would inherit a flock and keep it for seconds after the
process is killed. A process loses such a lock when it closes any descriptor of the file, so it opens a file only once.
"""

import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from nestling.disk_errors import ADVICE, named, write_error

logger = logging.getLogger(__name__)

SUFFIX = ".partial.lock"
# A lock file that nobody holds is of a killed process, unless it was made so recently that its lock may be on the way.
ABANDONED_SECONDS = 60

# (process, claimed path) -> its temporary path.
_claims: dict[tuple[int, Path], Path] = {}


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Lock a file until the end of the block or of the process; ValueError if another process has locked it."""
    with path.open("a+", encoding="utf-8") as file:
        take(file, f"{path.parent} is in use", "wait for it")
        yield


@contextmanager
def claim(path: Path) -> Iterator[Path]:
    """The right to write a file or folder, held until the end of the block or of the process.

    Yields a temporary path beside `path`, unique to this claim, to write to and to rename; what is still there at the
    end of the block is removed. `.NAME.partial.lock` is locked meanwhile. Temporary files of processes that were killed
    are removed from the folder. A process that has claimed a path may claim it again.

    Raises:
        ValueError: Another process has claimed `path`.
    """
    place = path.absolute().parent.resolve() / path.name
    partial = _claims.get((os.getpid(), place))
    with ExitStack() as stack:
        if partial is None:
            remove_abandoned(place.parent)
            partial = stack.enter_context(hold(place, path))
        try:
            yield partial
        finally:
            remove(partial)


@contextmanager
def claimed_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is claimed until the end of the block, open to read and to append; ValueError as of `claim`."""
    with claim(path):
        file = path.open("a+b")
        try:
            yield file
        finally:
            with named(path):  # closing writes what could not be written before
                file.close()


@contextmanager
def hold(place: Path, shown: Path) -> Iterator[Path]:
    """Claim a path that this process has not claimed; yields the temporary path. `shown` is its name in errors."""
    lock_file = place.with_name(f".{place.name}{SUFFIX}")
    file, exclusive = open_locked(lock_file, shown)
    with file:
        partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
        _claims[os.getpid(), place] = partial
        try:
            if exclusive:
                remove_partials(place)
            yield partial
        finally:
            del _claims[os.getpid(), place]
            lock_file.unlink(missing_ok=True)


def open_locked(lock_file: Path, shown: Path) -> tuple[TextIO, bool]:
    """An open lock file that this process has locked, and whether the file system has locks.

    Raises:
        WriteError: There can be no such file, so that `shown` cannot be written either.
    """
    while True:
        with ExitStack() as stack:
            try:
                file = stack.enter_context(lock_file.open("a+", encoding="utf-8"))
            except OSError as error:
                if error.errno in ADVICE:
                    raise write_error(shown, error.errno) from None
                raise
            exclusive = take(file, f"{shown} is being written", "wait for it, or choose another name")
            with suppress(FileNotFoundError):  # removed by the process that had it, after it was opened here
                if os.path.samestat(os.fstat(file.fileno()), lock_file.stat()):
                    stack.pop_all()
                    return file, exclusive


def take(file: TextIO, refusal: str, advice: str) -> bool:
    """Lock an open file and write the name of this process into it; False if the file system has no locks.

    Raises:
        ValueError: Another process has locked it; the message is "`refusal` by PROCESS; `advice`".
    """
    exclusive = True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise ValueError(f"{refusal} by {file.read().strip() or 'another process'}; {advice}") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        exclusive = False
        folder = Path(file.name).parent
        logger.warning("%s: this file system has no locks; make sure that no other process writes there", folder)
    with suppress(OSError):  # a full disk takes the name from refusals, not the lock
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return exclusive


def remove_abandoned(folder: Path) -> None:
    """Remove the lock files and temporary paths that killed processes left in a folder."""
    for lock_file in folder.glob(f".*{SUFFIX}"):
        place = folder / lock_file.name[1 : -len(SUFFIX)]
        with suppress(ValueError, OSError):  # in use, or of another user
            old = time.time() - lock_file.stat().st_mtime > ABANDONED_SECONDS
            if old and (os.getpid(), place) not in _claims:
                with hold(place, place):
                    pass


def remove_partials(place: Path) -> None:
    """Remove the temporary paths of earlier claims of a path."""
    name = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{8}}\.partial")
    for path in list(place.parent.iterdir()):
        if name.fullmatch(path.name):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
