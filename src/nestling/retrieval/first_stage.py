"""First stages that need no model: BM25, and run files in the TREC format; and qrels in the form of such runs."""

import logging
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import bm25s
import numpy as np
import snowballstemmer
from bm25s.stopwords import STOPWORDS_EN
from numpy.typing import NDArray

from nestling.models.encoding import progress_bar
from nestling.records.lines import read_lines
from nestling.records.record import cut
from nestling.records.retrieval_set import RetrievalSet
from nestling.records.words import WORDS
from nestling.retrieval.metrics import Run

logging.getLogger("bm25s").setLevel(logging.WARNING)  # which else tells of each index that it builds

RUN_LINE = "query Q0 document rank score tag"
RUN_COLUMNS = len(RUN_LINE.split())
STOP_WORDS = frozenset(STOPWORDS_EN)  # Lucene's for English


def bm25_run(
    retrieval_set: RetrievalSet, *, depth: int = 100, k1: float = 0.9, b: float = 0.4, progress: bool = False
) -> Run:
    """Search the whole collection with BM25 (bm25s, Lucene's variant).

    The run lists the first `depth` documents of each query and every document that ties with the last of them, so that
    metrics at cut-offs up to `depth` are exact. Documents that share no term with the query are not listed, nor is the
    document with its id. With `progress` a terminal shows bars.
    """
    name = retrieval_set.name
    index = bm25_index(retrieval_set.documents, k1=k1, b=b, progress=f"{name}: BM25 of documents" if progress else None)
    document_ids = np.array(list(retrieval_set.document_ids), dtype=object)
    run: Run = {}
    queries = zip(retrieval_set.query_ids, retrieval_set.queries, retrieval_set.own_documents, strict=True)
    with progress_bar(len(retrieval_set.queries), f"{name}: BM25 of queries" if progress else None, "query") as bar:
        for query_id, query, own in queries:
            scores = bm25_scores(index, query)
            if own >= 0:
                scores[own] = 0
            listed = top_with_ties(scores, depth)
            run[query_id] = dict(zip(document_ids[listed].tolist(), scores[listed].tolist(), strict=True))
            bar.update()
    return run


def bm25_index(documents: Sequence[str], *, k1: float = 0.9, b: float = 0.4, progress: str | None = None) -> bm25s.BM25:
    """Index N documents for BM25 (Lucene's variant). `progress` is the label of a bar; None for no bar."""
    terms = []
    with progress_bar(len(documents), progress) as bar:
        for text in documents:
            terms.append(tokenize(text))
            bar.update()
    index = bm25s.BM25(k1=k1, b=b)
    # bm25s cannot index a collection without any term: index one that no query can have.
    index.index(terms if any(terms) else [[""], *terms[1:]], show_progress=False)
    return index


def bm25_scores(index: bm25s.BM25, query: str) -> NDArray[np.float32]:
    """Scores of all documents for a query, [N] float32; 0 for a document that shares no term with it."""
    scores: NDArray[np.float32] = index.get_scores_from_ids(index.get_tokens_ids(tokenize(query)))
    return scores


def top_with_ties(scores: np.ndarray, depth: int) -> np.ndarray:
    """Ascending indices of the `depth` highest scores and of those that tie with the lowest; only scores above 0."""
    if len(scores) <= depth:
        return np.flatnonzero(scores > 0)
    lowest = np.partition(scores, len(scores) - depth)[len(scores) - depth]
    return np.flatnonzero((scores >= lowest) & (scores > 0))


def tokenize(text: str) -> list[str]:
    """Terms of a text: lower-case words, stemmed (Porter2), without English stop words.

    Korean, and scripts without spaces between words (Chinese, Japanese, Thai, ...), give character bigrams.
    """
    terms: list[str] = []
    for match in WORDS.finditer(text.lower()):
        word = match[0]
        if match[1]:
            terms.extend(word[i : i + 2] for i in range(max(len(word) - 1, 1)))
        elif word not in STOP_WORDS:
            terms.append(stem(word))
    return terms


@cache
def _stemmer() -> snowballstemmer.stemmer:
    return snowballstemmer.stemmer("english")


@lru_cache(maxsize=1 << 18)
def stem(word: str) -> str:
    """Porter2 stem of an English word; cached, since stemming in Python is slow."""
    return str(_stemmer().stemWord(word))


def read_run(path: str | Path) -> Run:
    """Read a TREC run: `query Q0 document rank score tag` on each line. The rank is ignored; scores order documents.

    As in trec_eval, whatever follows the score is ignored, so a tag may have blanks and further columns may follow it.

    Raises:
        ValueError: `file:line: reason` for a line of another form, a rank or score that is not a finite number, or a
            document listed twice for a query; also for an empty file.
    """
    path = Path(path)
    run: Run = {}
    for number, line in read_lines(path):
        columns = _columns(line)
        if not columns:
            continue
        if len(columns) < RUN_COLUMNS:
            raise ValueError(f"{path}:{number}: {len(columns)} columns, expected {RUN_COLUMNS} or more: {RUN_LINE}")
        query, _, document, rank, score = columns[: RUN_COLUMNS - 1]
        read_number(rank, f"{path}:{number}: rank")  # an id with a blank in it would shift the columns
        listed = run.setdefault(query, {})
        if document in listed:
            where = f"{path}:{number}: document"
            raise ValueError(f"{where}: {cut(document, 40)} is listed twice for query {cut(query, 40)}")
        listed[document] = read_number(score, f"{path}:{number}: score")
    if not run:
        raise ValueError(f"{path}: the file is empty, expected lines of: {RUN_LINE}")
    return run


def _columns(line: str) -> list[str]:
    """The columns of a run's line; with tabs between all of them, they may have blanks in them."""
    columns = [column.strip() for column in line.split("\t")]
    return columns if len(columns) >= RUN_COLUMNS else line.split()


def drop_own_documents(run: Run, retrieval_set: RetrievalSet) -> tuple[Run, int]:
    """A run without the documents that have the id of their query (`own_documents`), and how many it listed."""
    own = zip(retrieval_set.query_ids, retrieval_set.own_documents, strict=True)
    listing = [query for query, position in own if position >= 0 and query in run.get(query, {})]
    others = {query: {each: score for each, score in run[query].items() if each != query} for query in listing}
    return {**run, **others}, len(listing)


def check_run(run: Run, retrieval_set: RetrievalSet) -> list[str]:
    """Remarks for the user: queries of the set that the run lacks, and listed documents that the set lacks.

    Raises:
        ValueError: The run lists none of the set's queries.
    """
    queries = retrieval_set.query_ids
    listed = [query for query in queries if query in run]
    if not listed:
        raise ValueError(f"--first_stage: the run lists none of the {len(queries):,} queries of {retrieval_set.name}")
    known = set(retrieval_set.document_ids)
    unknown = {document for query in listed for document in run[query] if document not in known}
    remarks = {
        "queries are not in the run and count 0": len(queries) - len(listed),
        "documents of the run are not in the collection and count as not relevant": len(unknown),
    }
    return [f"{count:,} {remark}" for remark, count in remarks.items() if count]


def read_number(text: str, where: str) -> float:
    """Parse a finite number; `where` is the file, line and field for the error."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {text[:40]!r} is not a finite number; expected lines of: {RUN_LINE}")
    return number


def qrels_of(retrieval_set: RetrievalSet) -> dict[str, dict[str, float]]:
    """Relevance judgements above 0, {query id: {document id: grade}}, as `ranks_in_run` takes them."""
    ids = retrieval_set.document_ids
    judged = zip(retrieval_set.query_ids, retrieval_set.relevant, retrieval_set.gains, strict=True)
    return {
        query: {ids[document]: float(gain) for document, gain in zip(documents.tolist(), gains.tolist(), strict=True)}
        for query, documents, gains in judged
    }
