"""Loading training records from files, BEIR folders and datasets into a `RecordTable`, through the cache."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from nestling.records.arrow_rows import read_dataset
from nestling.records.beir import BeirSource, is_beir
from nestling.records.columns import ColumnMap
from nestling.records.convert import RecordSource, convert
from nestling.records.corpus_sets import find_corpus_set
from nestling.records.fields import NumberedRows
from nestling.records.reader import DialectReader
from nestling.records.record import Record, located
from nestling.records.sources import SUFFIXES, file_suffix, read_rows
from nestling.records.store import cached, digest, file_state
from nestling.records.summary import DropCounter
from nestling.records.table import RecordTable
from nestling.records.used_columns import used_columns

DATASET_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?(:[\w.-]+)?")


def load_records(
    source: str | Path,
    *,
    split: str = "train",
    name: str | None = None,
    instruction: str | None = None,
    default_instruction: str | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
    allow_no_positives: bool = False,
    columns: Mapping[str, str] | None = None,
    keep: np.ndarray | None = None,
) -> RecordTable:
    """Load training rows in any dialect (see `docs/data.md`).

    The first call converts the source into an Arrow file in the cache; later calls memory-map that file as long as
    the path and the content of the source are unchanged (`store.file_state`).

    Args:
        source: A JSONL, JSON, CSV, TSV (each also .gz) or Parquet file, a BEIR folder, a folder that
            `datasets` wrote or can read, or a dataset id (`owner/name`, or `owner/name:config`).
        split: Split of a BEIR folder or dataset; a single file has none.
        name: The dataset's name; by default that of the file or folder.
        instruction: Instruction of the rows that have none. A row that has this one counts as one without: their
            queries are equal if their texts are.
        default_instruction: What such rows are read with where `instruction` is None; only to find equal queries.
        cache_dir: Folder of the Arrow file; by default $NESTLING_CACHE or ~/.cache/nestling.
        progress: Show a progress bar for conversions that take more than a second.
        allow_no_positives: Keep rows that have negatives only, which can train rerankers; otherwise they are an error
            (queries of a BEIR folder: dropped).
        columns: Field (query, positive, negatives, ...) -> column of the source; by default fields are known by name.
        keep: [n] bool, which rows of the source to read, in its order; by default all.

    Raises:
        ValueError: `file:line: field: reason` for rows that cannot be read; also for a missing file or split.
    """
    name = name or default_name(Path(source))
    cache_key, open_source = find_source(source, split, cache_dir, progress, allow_no_positives, columns)

    implied = instruction or default_instruction

    def build(file: Path) -> None:
        source = open_source() if keep is None else KeptRows(open_source(), keep)
        convert(source, file, allow_no_positives=allow_no_positives, instruction=implied)

    key = [*cache_key, "allow_no_positives"] if allow_no_positives else cache_key
    if implied is not None and not is_beir(Path(source)):  # whose rows have no instructions
        key = [*key, "instruction", implied]
    if keep is not None:
        key = [*key, "keep", xxhash.xxh3_128_hexdigest(np.packbits(keep).tobytes())]
    return RecordTable(cached(name, key, cache_dir, build), name, instruction)


def find_source(
    source: str | Path,
    split: str,
    cache_dir: Path | None,
    progress: bool,
    allow_no_positives: bool,
    columns: Mapping[str, str] | None = None,
) -> tuple[list[Any], Callable[[], RecordSource]]:
    """The cache key of a source and a function that opens it; the arguments are those of `load_records`."""
    path = Path(source)
    if not str(source).strip():
        raise ValueError("a dataset has an empty name; expected a file, folder or dataset id (is a comma too many?)")
    columns_key = [dict(columns)] if columns else []
    if path.is_file():
        if not file_suffix(path):
            raise ValueError(f"{path}: file: cannot tell its format; expected a name in {', '.join(SUFFIXES)}")
        corpus_set = find_corpus_set(path) if path.suffix.lower() in (".json", ".jsonl") else None
        cache_key: list[Any]
        if corpus_set is None:
            cache_key, rows = (
                ["file", file_state(path)],
                partial(read_rows, path, progress, partial(used_columns, columns)),
            )
        else:
            if corpus_set.folders and columns:
                raise ValueError(f"{path}: columns: its rows name documents by their ids; leave the columns out")
            cache_key, rows = ["corpus set", *corpus_set.state()], partial(corpus_set.rows, cache_dir, progress)
        return [*cache_key, *columns_key], lambda: DialectSource(str(path), rows(), allow_no_positives, columns)
    if is_beir(path):
        if columns:
            raise ValueError(f"{path}: columns: a BEIR folder has no columns to name; leave them out")
        return BeirSource.cache_key(path, split), lambda: BeirSource(path, split, cache_dir, progress)
    dataset = _open_dataset(source, split)
    location = f"{source}[{split}]"
    cache_key = ["dataset", _dataset_state(dataset), split, *columns_key]
    return cache_key, lambda: DialectSource(
        location, read_dataset(dataset, progress, partial(used_columns, columns)), allow_no_positives, columns
    )


def require_splits(source: str | Path, split: str) -> None:
    """Raise ValueError for a split of a source that has none: all of it would be read."""
    path = Path(source)
    if split != "train" and (path.is_file() or (path / "state.json").exists()):
        raise ValueError(
            f"{source}: split is {split}, and this has no splits, so that all of it would be read; leave split out, or "
            "name the file of that split"
        )


class DialectSource:
    """The rows of a file or dataset as records; a `RecordSource`."""

    def __init__(
        self,
        location: str,
        rows: NumberedRows,
        allow_no_positives: bool,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self.name = self.location = location
        self.drops = DropCounter()
        self._columns = ColumnMap(columns or {})
        self._rows, self._reader = rows, DialectReader(allow_no_positives=allow_no_positives)

    @property
    def dialect(self) -> str:
        assert self._reader.dialect is not None
        return self._reader.dialect.name

    @property
    def ignored(self) -> Counter[str]:
        return self._reader.ignored + self._columns.ignored

    def records(self) -> Iterator[tuple[int, Record]]:
        last = None
        for line, row in self._rows:
            with located(self.location, line):
                record = self._reader.convert(self._columns.rename(row))
            yield line, record
            last = line, row
        if last is not None:
            with located(self.location, last[0]):
                self._columns.check_seen(last[1])
                self._reader.check_scores()


class KeptRows:
    """Some rows of a source; a `RecordSource`.

    Args:
        source: The source.
        keep: [n] bool, which of its rows to yield.
    """

    def __init__(self, source: RecordSource, keep: np.ndarray) -> None:
        self.name, self.location, self.drops = source.name, source.location, source.drops
        self._source, self._keep = source, keep

    @property
    def dialect(self) -> str:
        return self._source.dialect

    @property
    def ignored(self) -> Mapping[str, int]:
        return self._source.ignored

    def records(self) -> Iterator[tuple[int, Record]]:
        for kept, numbered in zip(self._keep.tolist(), self._source.records(), strict=True):
            if kept:
                yield numbered


def default_name(path: Path) -> str:
    """The name of a dataset that the user did not name: its file or folder, without the suffix."""
    return path.name.removesuffix(".gz").removesuffix(file_suffix(path)) or str(path)


def _open_dataset(source: str | Path, split: str) -> Any:
    """A `datasets.Dataset` from a folder or an id. Raises ValueError if there is none of that name."""
    import datasets

    path = Path(source)
    if path.is_dir():
        if (path / "dataset_dict.json").exists():
            return _pick_split(datasets.load_from_disk(str(path)), source, split)
        if (path / "state.json").exists():
            return datasets.load_from_disk(str(path))
        _refuse_empty_folder(path)
    elif path.is_absolute() or file_suffix(path) or not DATASET_ID.fullmatch(str(source)):
        raise ValueError(f"{source}: file: there is no such file or folder")
    identifier, _, config = str(source).partition(":")
    try:
        return datasets.load_dataset(identifier, config or None, split=split, cache_dir=_datasets_cache(path))
    except Exception as error:  # the library raises many kinds, from network, hub and its builders
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        place = "" if path.is_dir() else "there is no such file or folder, and as a dataset "
        raise ValueError(f"{source}: dataset: {place}split {split!r} cannot be loaded: {reason}") from error


def _datasets_cache(path: Path) -> Path | None:
    """Where `datasets` converts a folder of files, of which it compares only the times; None, its default, for ids."""
    from datasets.config import HF_DATASETS_CACHE

    if not path.is_dir():
        return None
    states = [file_state(file) for file in sorted(path.rglob("*")) if file.is_file()]
    return Path(HF_DATASETS_CACHE) / "nestling" / digest(states)


def _pick_split(splits: Any, source: str | Path, split: str) -> Any:
    if split not in splits:
        raise ValueError(f"{source}: split: there is no {split!r}; available: {', '.join(splits)}")
    return splits[split]


def _refuse_empty_folder(path: Path) -> None:
    if not any(file_suffix(file) for file in path.rglob("*")):
        raise ValueError(
            f"{path}: folder: expected corpus.jsonl and queries.jsonl (BEIR), a folder that datasets saved, or data "
            f"files; found {', '.join(sorted(file.name for file in path.iterdir())) or 'nothing'}"
        )


def _dataset_state(dataset: Any) -> list[Any]:
    files = [file_state(Path(file["filename"])) for file in dataset.cache_files]
    return [files, len(dataset), dataset.column_names]
