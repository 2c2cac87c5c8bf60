"""Lines of UTF-8 text files, plain or gzip-compressed, with a progress bar."""

import gzip
import io
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

LINES_PER_UPDATE = 256  # of the progress bar


def read_lines(path: Path, progress: bool = False) -> Generator[tuple[int, str], None, None]:
    """Yield (1-based line number, line) for each line of a UTF-8 file.

    A byte order mark is skipped and .gz files are decompressed.

    Raises:
        ValueError: Invalid UTF-8 or a damaged gzip file.
    """
    with open_bytes(path) as (stream, raw), byte_progress(path, progress) as bar:
        for number, line in enumerate(_checked_gzip(path, stream), start=1):
            try:
                decoded = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: line: invalid UTF-8 at byte {error.start} of the line") from None
            if number % LINES_PER_UPDATE == 0:
                bar.update(raw.tell() - bar.n)
            yield number, decoded


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file as (decompressed stream, raw file); the position in the raw file tells the progress."""
    with path.open("rb") as raw:
        if path.suffix.lower() != ".gz":
            yield raw, raw
        else:
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield io.BufferedReader(unpacked), raw


@contextmanager
def byte_progress(path: Path, progress: bool) -> Iterator[Any]:
    """A progress bar over the bytes of a file."""
    size = path.stat().st_size
    with tqdm(total=size, unit="B", unit_scale=True, desc=path.name, delay=1, disable=not progress) as bar:
        yield bar


def _checked_gzip(path: Path, stream: IO[bytes]) -> Iterator[bytes]:
    try:
        yield from stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}:1: file: broken gzip data: {error}") from None
