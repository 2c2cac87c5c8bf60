"""First stages to compare with: BM25, and run files in the TREC format."""

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import bm25s
import numpy as np
import snowballstemmer
from bm25s.stopwords import STOPWORDS_EN
from numpy.typing import NDArray

from nestling.records.lines import read_lines
from nestling.records.retrieval_set import RetrievalSet
from nestling.records.words import WORDS
from nestling.retrieval.metrics import Run

STOP_WORDS = frozenset(STOPWORDS_EN)  # Lucene's for English


def bm25_run(retrieval_set: RetrievalSet, *, depth: int = 100, k1: float = 0.9, b: float = 0.4) -> Run:
    """BM25 (bm25s, Lucene's variant) over the whole collection.

    A query lists its first `depth` documents and every document that ties with the last of them, so that metrics at up
    to `depth` are exact; documents that share no token with the query are not listed.
    """
    index = bm25_index(retrieval_set.documents, k1=k1, b=b)
    document_ids = np.array(list(retrieval_set.document_ids), dtype=object)
    run: Run = {}
    for query_id, query in zip(retrieval_set.query_ids, retrieval_set.queries, strict=True):
        scores = bm25_scores(index, query)
        listed = first_with_ties(scores, depth)
        run[query_id] = dict(zip(document_ids[listed].tolist(), scores[listed].tolist(), strict=True))
    return run


def bm25_index(documents: Sequence[str], *, k1: float = 0.9, b: float = 0.4) -> bm25s.BM25:
    """BM25 (Lucene's variant) over N documents."""
    terms = [tokenize(text) for text in documents]
    index = bm25s.BM25(k1=k1, b=b)
    # bm25s cannot index a collection without any term; one that no query has stands for it.
    index.index(terms if any(terms) else [[""], *terms[1:]], show_progress=False)
    return index


def bm25_scores(index: bm25s.BM25, query: str) -> NDArray[np.float32]:
    """[N] float32, of every document for a query; 0 where it shares no term with it."""
    scores: NDArray[np.float32] = index.get_scores_from_ids(index.get_tokens_ids(tokenize(query)))
    return scores


def first_with_ties(scores: np.ndarray, depth: int) -> np.ndarray:
    """Indices of the positive scores among the `depth` highest, and of all that equal the lowest of these."""
    if len(scores) <= depth:
        return np.flatnonzero(scores > 0)
    lowest = np.partition(scores, len(scores) - depth)[len(scores) - depth]
    return np.flatnonzero((scores >= lowest) & (scores > 0))


def tokenize(text: str) -> list[str]:
    """Terms of a text: lower-case words, stemmed (Porter2), without English stop words.

    Scripts that set no spaces between words (Chinese, Japanese, Thai, ...) and Korean give pairs of characters.
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
    """The stem of an English word."""
    return str(_stemmer().stemWord(word))


def read_run(path: str | Path) -> Run:
    """Read a TREC run: `query Q0 document rank score tag` on each line; only the scores order the documents.

    Raises:
        ValueError: A line that is not in this form, a document listed twice for a query, or nothing in the file; with
            file and line.
    """
    path = Path(path)
    run: Run = {}
    for number, line in read_lines(path):
        columns = line.split()
        if not columns:
            continue
        if len(columns) != 6:
            raise ValueError(f"{path}:{number}: {len(columns)} columns, expected 6: query Q0 document rank score tag")
        query, _, document, _, score, _ = columns
        listed = run.setdefault(query, {})
        if document in listed:
            raise ValueError(f"{path}:{number}: document: {document} is listed twice for query {query}")
        listed[document] = read_score(score, f"{path}:{number}")
    if not run:
        raise ValueError(f"{path}: the file is empty, expected lines of: query Q0 document rank score tag")
    return run


def check_run(run: Run, retrieval_set: RetrievalSet) -> list[str]:
    """What a run lacks of a retrieval set or lists beyond it, for people to read.

    Raises:
        ValueError: It lists none of the set's queries.
    """
    queries = retrieval_set.query_ids
    found = [query for query in queries if query in run]
    if not found:
        raise ValueError(f"--first_stage: the run lists none of the {len(queries):,} queries of {retrieval_set.name}")
    known = set(retrieval_set.document_ids)
    foreign = {document for query in found for document in run[query] if document not in known}
    remarks = {
        "queries are not in the run and count 0": len(queries) - len(found),
        "documents of the run are not in the collection and count as not relevant": len(foreign),
    }
    return [f"{count:,} {remark}" for remark, count in remarks.items() if count]


def read_score(text: str, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{where}: score: {text!r} is not a finite number")
    return score


def judgements(retrieval_set: RetrievalSet) -> dict[str, dict[str, float]]:
    """Relevance judgements of a retrieval set by ids: {query: {document: gain}}, as `place_run` takes them."""
    ids = retrieval_set.document_ids
    return {
        query: {ids[row]: float(gain) for row, gain in zip(rows.tolist(), gains.tolist(), strict=True)}
        for query, rows, gains in zip(retrieval_set.query_ids, retrieval_set.relevant, retrieval_set.gains, strict=True)
    }
