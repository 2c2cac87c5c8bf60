"""A folder of vectors in place of a guide or teacher, such as those of an API: texts.jsonl and vectors.npy.

Line i of texts.jsonl, `{"text": ...}`, is the text of row i of vectors.npy, [n, G] of floating point.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nestling.batches.sampling import Source
from nestling.config import EmbedConfig, TrainData, require
from nestling.mining.array_cache import digest_of
from nestling.mining.frozen_models import require_same_model
from nestling.mining.pool import flat_values
from nestling.mining.query_set import QuerySet
from nestling.mining.vectors import Vectors
from nestling.records.json_files import read_jsonl
from nestling.records.load import find_source
from nestling.records.record import cut, text_id
from nestling.records.table import RecordTable
from nestling.retrieval.metrics import Integers

TEXTS, VECTORS = "texts.jsonl", "vectors.npy"
ROWS_PER_BLOCK = 1 << 14


class StoredVectors:
    """The vectors in a folder, found by text; a text that has several has the first.

    Raises:
        ValueError: A file is missing or broken, or the two do not fit.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.identities = read_identities(folder / TEXTS)
        values = read_array(folder / VECTORS, len(self.identities))
        self.vectors, self.width = Vectors([values], max(len(values), 1)), int(values.shape[1])

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of each file."""
        paths = [self.folder / name for name in (TEXTS, VECTORS)]
        return {path.name: digest_of(path, path.stat().st_size).hex() for path in paths}

    def require_all(self, name: str, data: TrainData, table: RecordTable) -> None:
        """Raise ValueError, with file and line, for a query or document of a dataset that has no vector."""
        documents = [flat_values(table, column) for column in ("positive_ids", "negative_ids")]
        wanted = np.concatenate([text_identities(QuerySet.of(table)), *documents])
        missing = set(np.setdiff1d(wanted, self.identities).tolist())
        if missing:
            place, text = find_text(data, missing)
            raise ValueError(
                f"{place}: loss.{name}: {self.folder} has no vector of {cut(text, 60)!r}, nor of {len(missing) - 1:,} "
                f"other texts; add them to its {TEXTS} and {VECTORS}"
            )


def require_stored_vectors(config: EmbedConfig, sources: Sequence[Source]) -> None:
    """Raise ValueError, before any weights load, for a text that has no vector in a folder of them, and for a folder
    that has changed since the run that is resumed began."""
    for name, model in (("guide", config.guide), ("teacher", config.loss.teacher)):
        if model is None or not is_stored(model):
            continue
        stored = StoredVectors(Path(model))
        require_same_model(Path(config.output_dir), name, model, stored.digests)
        for data, source in zip(config.train, sources, strict=True):
            if not source.table.graded:
                stored.require_all(name, data, source.table)


def is_stored(model: str) -> bool:
    """Whether a guide or teacher is a folder of vectors."""
    return (Path(model) / VECTORS).is_file()


def text_identities(queries: QuerySet) -> Integers:
    """[Q] int64, `text_id` of each query: instructions make no difference to stored vectors."""
    return np.fromiter(map(text_id, queries.texts), np.int64, len(queries))


def read_identities(path: Path) -> Integers:
    """[n] int64, `text_id` of each line."""
    require(path.is_file(), f'{path}: no such file; expected a line {{"text": ...}} for each row of {VECTORS}')
    identities = []
    for line, row in read_jsonl(path):
        text = row.get("text")
        if not isinstance(text, str):
            raise ValueError(f'{path}:{line}: expected {{"text": ...}}, a text')
        identities.append(text_id(text))
    return np.array(identities, np.int64)


def read_array(path: Path, rows: int) -> Any:
    """[rows, G], memory-mapped; ValueError for anything else, or for a row that is no direction."""
    try:
        # Copy on write, since torch warns about arrays that it cannot write to; nothing is ever written.
        values = np.load(path, mmap_mode="c")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not an array that numpy.save has written: {error}") from None
    require(
        values.ndim == 2 and len(values) == rows and np.issubdtype(values.dtype, np.floating),
        f"{path}: {values.dtype} of shape {list(values.shape)}; expected floating point of shape [{rows}, dimensions], "
        f"a row for each line of {TEXTS}",
    )
    for start in range(0, rows, ROWS_PER_BLOCK):
        norms = np.linalg.norm(values[start : start + ROWS_PER_BLOCK].astype(np.float64), axis=1)
        wrong = np.flatnonzero(~((norms > 1e-3) & (norms < 1e4)))  # kept in float16
        require(
            not len(wrong),
            f"{path}: row {start + int(wrong[0]) if len(wrong) else 0} has a length outside 0.001 to 10,000; expected "
            "normalised vectors",
        )
    return values


def find_text(data: TrainData, missing: set[int]) -> tuple[str, str]:
    """`file:line` of the first of some texts in a dataset, and the text."""
    source = find_source(data.path, data.split, None, False, True, data.columns)[1]()
    for line, record in source.records():
        for text in (record.query, *record.positives, *record.negatives):
            if text_id(text) in missing:
                return f"{source.location}:{line}", text
    raise AssertionError("its texts are those of the table")
