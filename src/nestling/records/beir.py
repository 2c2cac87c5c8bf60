"""BEIR folders (corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv), read as a retrieval set or as training rows.

Document and query ids are looked up by their 63-bit hashes (`text_id`) in sorted arrays; texts stay in memory-mapped
files.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nestling.records.collection import Collection, open_collection
from nestling.records.json_files import read_json
from nestling.records.json_sets import is_set, read_set
from nestling.records.qrels import EMPTY_DOCUMENT, Judgements, read_qrels
from nestling.records.query_groups import read_query_groups
from nestling.records.record import Record
from nestling.records.retrieval_set import RetrievalSet
from nestling.records.sources import file_suffix
from nestling.records.store import file_state
from nestling.records.summary import DropCounter, LoadSummary
from nestling.records.texts import Texts

QUERIES_PER_BLOCK = 512
OWN_DOCUMENT = "document with the id of a query, from the results of that query"


def load_retrieval_set(folder: str | Path, split: str, *, cache_dir: Path | None = None) -> RetrievalSet:
    """Load a BEIR folder, or a JSON file with a whole retrieval set, for evaluation.

    Queries whose judgements are all 0 are kept with no relevant document; they score 0, as in trec_eval.

    Raises:
        ValueError: `file:line: field: reason`; also for a missing split, judgements of unknown ids, and none above 0.
    """
    path = Path(folder)
    if path.is_file() and file_suffix(path) in (".json", ".jsonl"):
        rows = read_json(path)
        line, row = next(rows, (1, {}))
        if is_set(row):
            for more, _ in rows:
                raise ValueError(f"{path}:{more}: line: more behind the retrieval set; expected one set in a file")
            return read_set(path, split, line, row)
    _require_files(path)
    corpus, queries, judgements, drops = _open_split(path, split, cache_dir, progress=False)
    positive = judgements.select(judgements.grade > 0)
    if not len(positive.query):
        raise ValueError(
            f"{_qrels_file(path, split)}:{judgements.line.min()}: score: no judgement is above 0, so there is nothing "
            "to find; expected at least one"
        )
    judged = np.unique(judgements.query)
    begin = np.searchsorted(positive.query, judged)
    end = np.searchsorted(positive.query, judged, side="right")
    spans = [slice(*span) for span in zip(begin, end, strict=True)]
    relevant = [positive.document[span] for span in spans]
    own_documents = _own_documents(corpus, queries, judged, relevant)
    own = np.flatnonzero(own_documents >= 0)
    if len(own):
        drops.add(OWN_DOCUMENT, f"{path / 'queries.jsonl'}: {queries.ids(judged)[own[0]]}", len(own))
    return RetrievalSet(
        name=f"{path.name}/{split}",
        split=split,
        document_ids=corpus.ids(),
        documents=corpus.texts(),
        query_ids=queries.ids(judged),
        queries=queries.texts(judged),
        relevant=relevant,
        gains=[positive.grade[span] for span in spans],
        own_documents=own_documents,
        summary=_summarise(f"{path}[{split}]", len(corpus), judgements, drops),
        groups=read_query_groups(path, queries.ids(judged)),
    )


def _own_documents(
    corpus: Collection, queries: Collection, judged: np.ndarray, relevant: list[np.ndarray]
) -> np.ndarray:
    """[Q] int64: where the corpus has each judged query as a document that is not relevant to it, or -1."""
    keys = np.empty(len(queries), np.int64)
    keys[queries.positions] = queries.keys
    own = corpus.find(keys[judged])
    for i, text in zip(np.flatnonzero(own >= 0), queries.texts(judged[own >= 0]), strict=True):
        if own[i] in relevant[i] or not is_query(corpus.texts(own[i : i + 1])[0], text):
            own[i] = -1
    return own


def is_query(document: str, query: str) -> bool:
    """Whether a document that has the id of a query is the query itself: its text, perhaps behind a title.

    BEIR goes by the id alone, but sets that number queries and documents from 1 have equal ids by chance (Cranfield).
    """
    return " ".join(document.split()).endswith(" ".join(query.split()))


def _summarise(source: str, documents: int, judgements: Judgements, drops: DropCounter) -> LoadSummary:
    positive_counts = np.bincount(judgements.query[judgements.grade > 0])
    negative_counts = np.bincount(judgements.query[judgements.grade <= 0], minlength=1)
    judged = len(np.unique(judgements.query))
    return LoadSummary(
        source=source,
        dialect=f"BEIR, {documents:,} documents",
        rows_read=judged,
        rows_kept=judged,
        positives=int(positive_counts.sum()),
        negatives=int(negative_counts.sum()),
        max_positives=int(positive_counts.max()),
        max_negatives=int(negative_counts.max()),
        drops=drops.drops(),
    )


def is_beir(path: Path) -> bool:
    """Whether a folder holds corpus.jsonl or queries.jsonl, and so is to be read as a BEIR folder."""
    return (path / "corpus.jsonl").is_file() or (path / "queries.jsonl").is_file()


def _require_files(path: Path) -> None:
    if not path.is_dir():
        found = "this file is no retrieval set" if path.is_file() else "there is no such folder"
        raise ValueError(
            f"{path}: folder: {found}; expected one in the BEIR layout, or a JSON file with queries, corpus and "
            "relevant_docs"
        )
    for name in ("corpus.jsonl", "queries.jsonl"):
        if not (path / name).is_file():
            raise ValueError(f"{path / name}: file: missing; a BEIR folder holds corpus.jsonl, queries.jsonl, qrels/")


def splits_of(folder: str | Path) -> list[str]:
    """The splits that a BEIR folder has judgements of, sorted; none for a JSON file, whose set has no splits."""
    return sorted(found.stem for found in Path(folder).glob("qrels/*.tsv"))


def _qrels_file(path: Path, split: str) -> Path:
    file = path / "qrels" / f"{split}.tsv"
    if not file.is_file():
        available = ", ".join(splits_of(path)) or "none"
        raise ValueError(f"{file}: split: there is no {split!r}; available: {available}")
    return file


def _open_split(
    path: Path, split: str, cache_dir: Path | None, progress: bool
) -> tuple[Collection, Collection, Judgements, DropCounter]:
    """Corpus, queries, the judgements of the split (as positions in both, sorted by query), and the drops so far."""
    file = _qrels_file(path, split)
    corpus = open_collection([path / "corpus.jsonl"], "corpus", cache_dir, progress)
    queries = open_collection([path / "queries.jsonl"], "queries", cache_dir, progress)
    drops = DropCounter()
    if len(corpus.empty_lines):
        drops.add(EMPTY_DOCUMENT, f"{path / 'corpus.jsonl'}:{corpus.empty_lines[0]}", len(corpus.empty_lines))
    return corpus, queries, read_qrels(file, queries, corpus, drops), drops


class BeirSource:
    """The judged queries of a split as training rows; a `RecordSource` whose line numbers are those of the qrels file.

    Documents with a grade above 0 are positives, documents with a grade of 0 or less hard negatives; a row may have
    none of either kind.
    """

    dialect = "BEIR"

    def __init__(self, path: Path, split: str, cache_dir: Path | None, progress: bool) -> None:
        _require_files(path)
        self.name, self.location = f"{path}[{split}]", str(_qrels_file(path, split))
        self.ignored: Counter[str] = Counter()
        self._progress = progress
        self._corpus, self._queries, self._judgements, self.drops = _open_split(path, split, cache_dir, progress)

    @staticmethod
    def cache_key(path: Path, split: str) -> list[Any]:
        """The state of the files that a cached conversion depends on. Raises ValueError for a missing file or split."""
        _require_files(path)
        files = (path / "corpus.jsonl", path / "queries.jsonl", _qrels_file(path, split))
        return ["beir", [file_state(file) for file in files]]

    def records(self) -> Iterator[tuple[int, Record]]:
        judged = np.unique(self._judgements.query)
        documents, queries = self._corpus.texts(), self._queries.texts()
        with tqdm(total=len(judged), unit=" rows", desc=self.name, delay=1, disable=not self._progress) as bar:
            for start in range(0, len(judged), QUERIES_PER_BLOCK):
                block = judged[start : start + QUERIES_PER_BLOCK]
                yield from self._block(block, documents, queries)
                bar.update(len(block))

    def _block(self, rows: np.ndarray, all_documents: Texts, queries: Texts) -> Iterator[tuple[int, Record]]:
        judgements = self._judgements
        begin = np.searchsorted(judgements.query, rows[0])
        end = np.searchsorted(judgements.query, rows[-1], side="right")
        documents = all_documents[judgements.document[begin:end]]
        starts = np.append(np.searchsorted(judgements.query, rows), end) - begin
        grades = judgements.grade[begin:end]
        for i, query in enumerate(queries[rows]):
            judged = range(starts[i], starts[i + 1])
            positives = tuple(documents[j] for j in judged if grades[j] > 0)
            negatives = tuple(documents[j] for j in judged if grades[j] <= 0)
            yield int(judgements.line[begin + starts[i]]), Record(query, positives, negatives)
