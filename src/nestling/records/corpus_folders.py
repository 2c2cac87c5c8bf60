"""Folders of documents that rows name by id: merlin_metadata.json and files of `id` and `text` (NVIDIA NeMo Automodel).

Ids are looked up by their hashes; texts stay in memory-mapped files.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nestling.records import fields
from nestling.records.collection import open_collection
from nestling.records.record import FieldError, located, text_id, without_none
from nestling.records.sources import read_rows

METADATA = "merlin_metadata.json"
DOCUMENTS = (".parquet", ".jsonl", ".jsonl.gz")
# Of files for several splits, `datasets` takes those with this word in their path as the split that is trained on.
TRAIN = re.compile(r"(?:^|[^0-9a-zA-Z])train(?:ing)?(?:[^0-9a-zA-Z]|$)")
INSTRUCT = re.compile(r"Instruct: (.+)\nQuery:\s*")


@dataclass(frozen=True)
class CorpusFolder:
    """A folder of documents.

    Args:
        path: The folder.
        identifier: The id by which rows name it.
        files: Its files with documents.
        instruction: Task instruction of the queries about it.
        unread: What else the metadata say about training, and rows cannot have: field -> value.
    """

    path: Path
    identifier: str
    files: tuple[Path, ...]
    instruction: str | None
    unread: Mapping[str, str]


def open_folder(path: Path) -> CorpusFolder:
    """Read the metadata of a folder and find its files. Raises ValueError for those that cannot be read."""
    file = path / METADATA
    if not file.is_file():
        raise ValueError(f'{file}: file: missing; expected {{"class": "TextQADataset", "corpus_id": …}}')
    with located(str(file), 1):
        metadata = _read_metadata(file)
        if metadata.get("class") != "TextQADataset":
            raise FieldError("class", f"{metadata.get('class')!r} cannot be read, only TextQADataset: texts")
        identifier = fields.text(metadata, "corpus_id")
        query, passage = (fields.optional_text(metadata, f"{kind}_instruction") for kind in ("query", "passage"))
    instruct = INSTRUCT.fullmatch(query or "")
    unread = {"query_instruction": None if instruct else query, "passage_instruction": passage}
    return CorpusFolder(path, identifier, _files(path), instruct[1] if instruct else None, without_none(unread))


def _read_metadata(file: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FieldError("file", f"broken JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise FieldError("file", "expected an object with class and corpus_id")
    return metadata


def _files(path: Path) -> tuple[Path, ...]:
    """The files with documents in a folder and those below it."""
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("[!.]*") if file.is_file())
    documents = [name for name in names if name.lower().endswith(DOCUMENTS)]
    if not documents:
        raise ValueError(
            f"{path}: folder: expected documents (id, text) in {', '.join(DOCUMENTS)} files; found "
            f"{fields.shown_names(names)}"
        )
    return tuple([path / name for name in [name for name in documents if TRAIN.search(name)] or documents])


class Corpus:
    """The documents of a folder by id; its texts stay on disk."""

    def __init__(self, folder: CorpusFolder, cache_dir: Path | None, progress: bool) -> None:
        self.folder = folder
        self._collection = open_collection(folder.files, "documents", cache_dir, progress, read_rows)
        self._texts = self._collection.texts()

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        """The texts of those documents that are there and have one."""
        ids = np.array(list(ids), dtype=object)
        positions = self._collection.find(np.array([text_id(identifier) for identifier in ids], np.int64))
        found = positions >= 0
        return dict(zip(ids[found], self._texts[positions[found]], strict=True))

    def missing(self, identifier: str) -> str:
        """Why there is no text for an id."""
        empty = text_id(identifier) in self._collection.empty_keys
        return (
            f"document {identifier!r} of {self.folder.path} {'has neither title nor text' if empty else 'is not there'}"
        )
