"""Training rows that name their documents by ids in a corpus beside them, as NVIDIA NeMo Automodel writes them.

One JSON object: `corpus` has the paths of folders with documents (`id`, `text`) and merlin_metadata.json, `data` the
rows: `question`, `corpus_id`, and ids of documents in `pos_doc` and `neg_doc`. Rows are read one at a time, texts from
memory-mapped files. Without folders the rows hold their texts.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling.records import fields
from nestling.records.clean import checked_text_id
from nestling.records.corpus_folders import METADATA, Corpus, CorpusFolder, open_folder
from nestling.records.fields import NumberedRows, Row
from nestling.records.json_files import read_json_members
from nestling.records.record import FieldError, located, without_none
from nestling.records.store import file_state

MEMBERS = ("corpus", "data")
HEAD = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(?:corpus"\s*:\s*[\[{]|data"\s*:\s*\[\s*\{)')
HEAD_BYTES = 1024
ROWS_PER_BLOCK = 256


@dataclass(frozen=True)
class CorpusSet:
    """A file of rows, and the folders that it names."""

    path: Path
    folders: tuple[CorpusFolder, ...]

    def state(self) -> list[Any]:
        """The states of all files that the rows depend on."""
        files = [file for folder in self.folders for file in (folder.path / METADATA, *folder.files)]
        return [file_state(file) for file in (self.path, *files)]

    def rows(self, cache_dir: Path | None, progress: bool) -> NumberedRows:
        """The rows of `data` with their lines; with folders in the nestling dialect, with texts for ids."""
        corpora = {folder.identifier: Corpus(folder, cache_dir, progress) for folder in self.folders}
        rows = self._data(progress)
        while block := list(itertools.islice(rows, ROWS_PER_BLOCK)):
            yield from _resolved(str(self.path), block, corpora) if corpora else block

    def _data(self, progress: bool) -> NumberedRows:
        for key, line, row in read_json_members(self.path, "data", progress):
            if key == "data":
                yield line, row
            elif key not in MEMBERS:
                raise ValueError(f"{self.path}:{line}: {key}: beside corpus and data; expected these alone")


def find_corpus_set(path: Path) -> CorpusSet | None:
    """The set that a file holds; None if it holds something else.

    Raises ValueError for folders that cannot be read.
    """
    with path.open("rb") as file:
        if not HEAD.match(file.read(HEAD_BYTES)):
            return None
    has_rows = False
    with closing(read_json_members(path, "data")) as members:
        for key, line, value in members:
            if key not in MEMBERS:
                return None
            if key == "corpus" and value:
                paths = _paths(path, value)
                return None if paths is None else CorpusSet(path, _folders(path, line, paths))
            has_rows = has_rows or key == "data"
    return CorpusSet(path, ()) if has_rows else None


def _paths(path: Path, value: Any) -> list[Path] | None:
    """The folders that `corpus` names, relative to that of the file; None if it holds something else."""
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, dict) and isinstance(entry.get("path"), str) for entry in entries):
        return None
    return [path.parent / entry["path"] for entry in entries]


def _folders(path: Path, line: int, paths: Iterable[Path]) -> tuple[CorpusFolder, ...]:
    folders: dict[str, CorpusFolder] = {}
    for each in paths:
        with located(str(path), line):
            if not each.is_dir():
                raise FieldError("corpus", f"there is no folder {each}; paths are relative to that of the file")
        folder = open_folder(each)
        with located(str(path), line):
            if folder.identifier in folders:
                raise FieldError("corpus", f"{each} and {folders[folder.identifier].path} have the same corpus_id")
        folders[folder.identifier] = folder
    return tuple(folders.values())


@dataclass(frozen=True)
class _Documents:
    """The documents of a row: ids, and the teacher scores of each kind or None."""

    corpus: Corpus
    positives: list[str]
    negatives: list[str]
    positive_scores: list[float] | None
    negative_scores: list[float] | None

    @classmethod
    def read(cls, row: Row, corpora: Mapping[str, Corpus]) -> "_Documents":
        positives, positive_scores = _references(row, "pos_doc")
        negatives, negative_scores = _references(row, "neg_doc")
        return cls(_corpus_of(row, corpora), positives, negatives, positive_scores, negative_scores)


def _resolved(location: str, rows: list[tuple[int, Row]], corpora: Mapping[str, Corpus]) -> NumberedRows:
    """Rows with the texts of their documents; texts are looked up for all of them at once, which is far faster."""
    found: list[_Documents] = []
    for line, row in rows:
        with located(location, line):
            found.append(_Documents.read(row, corpora))
    texts: dict[str, dict[str, str]] = {}
    for name, corpus in corpora.items():
        own = [documents for documents in found if documents.corpus is corpus]
        texts[name] = corpus.texts({each for documents in own for each in documents.positives + documents.negatives})
    for (line, row), documents in zip(rows, found, strict=True):
        with located(location, line):
            resolved = _resolve(row, documents, texts[documents.corpus.folder.identifier])
        yield line, resolved


def _resolve(row: Row, documents: _Documents, texts: Mapping[str, str]) -> Row:
    """A row with the texts of its documents, in the nestling dialect; its other fields stay."""
    resolved = {
        "query": fields.text(row, "question"),
        "positives": _texts("pos_doc", documents.positives, documents.corpus, texts),
        "negatives": _texts("neg_doc", documents.negatives, documents.corpus, texts),
        "positive_scores": documents.positive_scores,
        "negative_scores": documents.negative_scores,
    }
    twice = resolved.keys() & row.keys()
    if twice:
        raise FieldError(min(twice), "beside question, pos_doc and neg_doc, of which it is made; rename or remove it")
    folder = documents.corpus.folder
    rest = {key: value for key, value in row.items() if key not in ("question", "pos_doc", "neg_doc")}
    return {"instruction": folder.instruction, **folder.unread, **without_none(rest), **resolved}


def _texts(field: str, ids: list[str], corpus: Corpus, texts: Mapping[str, str]) -> list[str]:
    for i, identifier in enumerate(ids):
        if identifier not in texts:
            raise FieldError(f"{field}[{i}]", corpus.missing(identifier))
    return [texts[identifier] for identifier in ids]


def _corpus_of(row: Row, corpora: Mapping[str, Corpus]) -> Corpus:
    identifier = row.get("corpus_id")
    if identifier is None and len(corpora) == 1:
        return next(iter(corpora.values()))
    corpus = corpora.get(fields.text(row, "corpus_id"))
    if corpus is None:
        known = fields.shown_names(corpora)
        raise FieldError("corpus_id", f"no folder has the corpus_id {identifier!r}; expected one of {known}")
    return corpus


def _references(row: Row, field: str) -> tuple[list[str], list[float] | None]:
    """The ids in a field, and the scores that stand beside them; ids may be alone, or in objects."""
    value = row.get(field)
    items = value if isinstance(value, list) else [] if value is None else [value]
    documents = [item if isinstance(item, dict) else {"id": item} for item in items]
    scores = fields.scores_beside(field, documents)
    ids = [_identifier(f"{field}[{i}]", document) for i, document in enumerate(documents)]
    return ids, None if scores is None else list(scores)


def _identifier(field: str, document: Row) -> str:
    value = document.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise FieldError(field, "expected the id of a document in the corpus")
    checked_text_id(field, value)
    return value
