"""Arrow files: record batches that are memory-mapped when they are read, and a text in their metadata."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

METADATA_KEY = b"nestling"


def open_batches(path: Path) -> tuple[list[Any], str]:
    """The record batches of an Arrow file, memory-mapped, and the text in its metadata."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        return batches, (reader.schema.metadata or {}).get(METADATA_KEY, b"").decode()


@contextmanager
def write_batches(path: Path, schema: Any, meta: str = "") -> Iterator[Any]:
    """A writer of record batches to an uncompressed Arrow file, which can be memory-mapped."""
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, schema.with_metadata({METADATA_KEY: meta})) as writer,
    ):
        yield writer


def is_valid_file(path: Path) -> bool:
    """Whether an Arrow file exists, is complete, and has valid offsets and UTF-8; reads the whole file."""
    try:
        batches, _ = open_batches(path)
        for batch in batches:
            batch.validate(full=True)
    except (OSError, ValueError):
        return False
    return bool(batches)
