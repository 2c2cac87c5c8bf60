"""Errors of writing in words: a full disk, a quota, a limit on the size of files, a folder that cannot be written.

Libraries wrap such errors in ones of their own, which name no file: `named` names it, and `nestling.config.run` prints
what `find_write_error` finds behind the error that ends a command.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ELSEWHERE = "or choose a place on another disk"
# What to do, by the number of an error. The first four come from writing only; the others may come from reading too.
ADVICE = {
    errno.ENOSPC: f"free space there, {ELSEWHERE}",
    errno.EDQUOT: f"free space or raise the quota, {ELSEWHERE}",
    errno.EFBIG: f"raise the limit on the size of files (ulimit -f), {ELSEWHERE}",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
}
WRITING_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# How safetensors and tokenizers, which are written in Rust, give the number of an error: in their messages alone.
NUMBER = re.compile(r"\(os error (\d+)\)")


class WriteError(OSError):
    """A file or folder could not be written. Its message stands alone: what, why, and what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


def write_error(path: Path | str, number: int) -> WriteError:
    """The error of writing a file or folder, for one of the errno numbers of `ADVICE`."""
    return WriteError(number, f"cannot write {path}: {os.strerror(number)}; {ADVICE[number]}")


def find_write_error(error: BaseException | None, path: Path | str | None = None) -> WriteError | None:
    """The error of writing that an error is or is due to, in words; None if there is none.

    torch keeps the OSError only as the context of its own RuntimeError.

    Args:
        error: Whatever was raised.
        path: What was written, if the error does not say.
    """
    while error is not None:
        if isinstance(error, WriteError):
            return error
        in_text = NUMBER.search(str(error))
        number = int(in_text[1]) if in_text else error.errno if isinstance(error, OSError) else None
        if number in WRITING_ONLY:
            name = error.filename if isinstance(error, OSError) else None
            return write_error(path or name or "the output", number)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


@contextmanager
def named(path: Path) -> Iterator[None]:
    """A context that writes a file or folder: errors of writing in it, whoever raises them, name it and say what to do.

    Other OSErrors get its name if they have none. Of contexts inside each other the inner one names.

    Raises:
        WriteError: It could not be written.
    """
    try:
        yield
    except Exception as error:
        found = find_write_error(error, path)
        if found is not None:
            raise found from error
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise
