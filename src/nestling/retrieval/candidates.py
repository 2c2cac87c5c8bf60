"""Candidate lists: the documents of a retrieval set that a reranker scores for each query, and how to measure them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nestling.records.collection import positions
from nestling.records.fields import Row, check_text, optional_text
from nestling.records.json_files import read_jsonl
from nestling.records.record import FieldError, located
from nestling.records.retrieval_set import RetrievalSet
from nestling.records.sources import file_suffix
from nestling.retrieval.first_stage import bm25_run, read_run
from nestling.retrieval.metrics import Floats, Integers, Placements, Run, means, place_run

FIELDS = ("query-id", "corpus-ids", "split")


@dataclass(frozen=True)
class Candidates:
    """The documents that are to be scored for each of the Q queries of a retrieval set.

    Attributes:
        rows: Q arrays of int64, positions in the set's `documents`, in the first stage's order; empty for a query that
            has no candidates.
        scores: Q arrays of float64, the first stage's scores of `rows`; None if the order of the lists means nothing.
        skipped: Lists that are of another split or of queries that are not in the set.
        foreign: Documents of such a query's list that are not in the collection, over all queries.
    """

    rows: list[Integers]
    scores: list[Floats] | None = None
    skipped: int = 0
    foreign: int = 0

    @classmethod
    def from_run(cls, run: Run, retrieval_set: RetrievalSet, depth: int) -> "Candidates":
        """The `depth` best documents of each query of a run; of equal scores the first in the collection is better.

        Documents that are not in the collection do not count towards `depth`.

        Raises:
            ValueError: `depth` is below 1, or the run lists none of the set's queries.
        """
        if depth < 1:
            raise ValueError(f"depth is {depth}, expected at least 1 candidate a query")
        queries = list(retrieval_set.query_ids)
        found = [query for query in queries if query in run]
        if not found:
            raise ValueError(
                f"the run lists none of the {len(queries):,} queries of {retrieval_set.name}; expected the query ids "
                f"of its queries.jsonl, like {queries[0]}, got for instance {next(iter(run), 'nothing')}"
            )
        rows_of = positions(retrieval_set.document_ids, (document for query in found for document in run[query]))
        lists = [best_rows(run.get(query, {}), rows_of, depth) for query in queries]
        return cls(
            rows=[rows for rows, _ in lists],
            scores=[scores for _, scores in lists],
            skipped=len(run) - len(found),
            foreign=sum(document not in rows_of for query in found for document in run[query]),
        )

    @property
    def before(self) -> list[Floats]:
        """Scores to compare a reranker with: the first stage's, or equal ones, which measure a random order."""
        return [np.zeros(len(rows)) for rows in self.rows] if self.scores is None else self.scores

    def __str__(self) -> str:
        sizes = [len(rows) for rows in self.rows if len(rows)]
        text = f"{sum(sizes):,} candidates of {len(sizes):,} queries, {min(sizes):,} to {max(sizes):,} each"
        if len(sizes) < len(self.rows):
            text += f"; {len(self.rows) - len(sizes):,} queries have none and count 0"
        if self.skipped:
            text += f"; skipped {self.skipped:,} lists of another split or of other queries"
        if self.foreign:
            text += f"; left out {self.foreign:,} listed documents that are not in the collection"
        return text


def open_candidates(first_stage: str, retrieval_set: RetrievalSet, depth: int) -> Candidates:
    """The candidates that a setting names: "bm25", a .jsonl file (`read_candidates`, whole lists), or a TREC run.

    Raises:
        ValueError: There is no such file, or it cannot be used.
    """
    if first_stage == "bm25":
        return Candidates.from_run(bm25_run(retrieval_set, depth=depth), retrieval_set, depth)
    path = Path(first_stage)
    if not path.is_file():
        raise ValueError(
            f"{first_stage}: there is no such file; expected bm25, a .jsonl file of candidate lists "
            "(query-id, corpus-ids), or a TREC run file"
        )
    if file_suffix(path) == ".jsonl":
        return read_candidates(path, retrieval_set)
    return Candidates.from_run(read_run(path), retrieval_set, depth)


def read_candidates(path: str | Path, retrieval_set: RetrievalSet) -> Candidates:
    """Read candidate lists: `{"query-id": ..., "corpus-ids": [...], "split": ...}` on each line, the split optional.

    The order of a list means nothing. Lists of other splits and of queries that are not in the set are skipped.

    Raises:
        ValueError: `file:line: field: reason` for what cannot be read, unknown documents, a document twice in a list,
            two lists of a query; also if there is no list for any query of the set.
    """
    path, queries = Path(path), frozenset(retrieval_set.query_ids)
    lists: dict[str, tuple[int, list[str]]] = {}
    skipped = 0
    for line, row in read_jsonl(path):
        with located(str(path), line):
            query, documents, split = parse_list(row)
            if query not in queries or split not in (None, retrieval_set.split):
                skipped += 1
            elif query in lists:
                raise FieldError("query-id", f"{query} has a list already, in line {lists[query][0]}; join them")
            else:
                lists[query] = line, documents
    if not lists:
        raise ValueError(
            f"{path}:1: file: none of its {skipped:,} lists is of split {retrieval_set.split!r} and of one of the "
            f"{len(queries):,} queries of {retrieval_set.name}"
        )
    rows_of = positions(retrieval_set.document_ids, (document for _, each in lists.values() for document in each))
    for line, documents in lists.values():
        with located(str(path), line):
            check_documents(documents, rows_of, retrieval_set.name)
    rows = [[rows_of[document] for document in lists.get(query, (0, []))[1]] for query in retrieval_set.query_ids]
    return Candidates([np.array(each, dtype=np.int64) for each in rows], skipped=skipped)


def place_candidates(scores: Sequence[Floats], candidates: Candidates, retrieval_set: RetrievalSet) -> Placements:
    """Where the relevant documents stand among the candidates of their query; the rest of them is not ranked.

    Args:
        scores: Q arrays, aligned with `candidates.rows`; higher is better, equal ones count as in a random order.

    Raises:
        ValueError: The scores do not align with the candidates, or one of them is not a number.
    """
    run, qrels = {}, {}
    per_query = zip(retrieval_set.query_ids, candidates.rows, scores, strict=True)
    for i, (query, rows, own) in enumerate(per_query):
        if len(own) != len(rows):
            raise ValueError(f"{len(own)} scores for the {len(rows)} candidates of query {query}")
        if np.isnan(own).any():
            raise ValueError(f"the scores of query {query} hold NaN; the model's weights may have diverged")
        run[query] = by_position(rows, own)
        qrels[query] = by_position(retrieval_set.relevant[i], retrieval_set.gains[i])
    return place_run(run, qrels)


def evaluate_candidates(
    scores_per_query: Sequence[Floats], candidates: Candidates, retrieval_set: RetrievalSet
) -> dict[str, float]:
    """Mean nDCG@10, MRR@10, Recall@100 and MAP@100 of reordered candidates; arguments as in `place_candidates`.

    Relevant documents outside the lists count in the ideal, so the lists bound what a reranker can reach.
    """
    return means(place_candidates(scores_per_query, candidates, retrieval_set))


def fuse(first: Sequence[Floats], second: Sequence[Floats], *, constant: float = 60.0) -> list[Floats]:
    """Reciprocal rank fusion (Cormack et al. 2009): 1 / (constant + rank) of both orders; ties take their mean rank.

    Args:
        first: Q arrays of scores.
        second: Q arrays aligned with them.
        constant: Evens out the first ranks.
    """
    return [
        1 / (constant + mean_ranks(one)) + 1 / (constant + mean_ranks(other))
        for one, other in zip(first, second, strict=True)
    ]


def mean_ranks(scores: Floats) -> Floats:
    """Rank of each score from 1, the highest; equal ones share the mean of their ranks."""
    ascending = np.sort(scores)
    above = len(scores) - np.searchsorted(ascending, scores, side="right")
    equal = len(scores) - above - np.searchsorted(ascending, scores, side="left")
    ranks: Floats = above + (equal + 1) / 2
    return ranks


def best_rows(listed: dict[str, float], rows_of: dict[str, int], depth: int) -> tuple[Integers, Floats]:
    """Rows and scores of the `depth` best listed documents that have a row."""
    known = [(rows_of[document], score) for document, score in listed.items() if document in rows_of]
    rows = np.array([row for row, _ in known], dtype=np.int64)
    scores = np.array([score for _, score in known], dtype=np.float64)
    order = np.lexsort((rows, -scores))[:depth]
    return rows[order], scores[order]


def by_position(rows: Integers, values: Floats) -> dict[str, float]:
    """Values by position in the collection, as `place_run` takes them; texts, for ids are what it expects."""
    return dict(zip(map(str, rows.tolist()), values.tolist(), strict=True))


def parse_list(row: Row) -> tuple[str, list[str], str | None]:
    """Query id, document ids and split of one line."""
    unknown = next((key for key in row if key not in FIELDS), None)
    if unknown is not None:
        raise FieldError(unknown, f"not a field of candidate lists; expected {', '.join(FIELDS)}")
    documents = row.get("corpus-ids")
    if not isinstance(documents, list):
        raise FieldError("corpus-ids", "missing" if documents is None else "expected a list of document ids")
    if not documents:
        raise FieldError("corpus-ids", "the list is empty; expected at least one document, or no line")
    ids = [check_id(f"corpus-ids[{i}]", document) for i, document in enumerate(documents)]
    return check_id("query-id", row.get("query-id")), ids, optional_text(row, "split")


def check_id(field: str, value: Any) -> str:
    """An id as corpus.jsonl and queries.jsonl may hold it: a text or a whole number."""
    if value is None:
        raise FieldError(field, "missing")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else check_text(field, value)


def check_documents(documents: list[str], rows_of: dict[str, int], name: str) -> None:
    """Raise FieldError for a document that is not in the collection, or that is listed twice."""
    seen: set[str] = set()
    for i, document in enumerate(documents):
        if document not in rows_of:
            raise FieldError(f"corpus-ids[{i}]", f"{document} is not in the corpus of {name}, or has no text there")
        if document in seen:
            raise FieldError(f"corpus-ids[{i}]", f"{document} is listed twice")
        seen.add(document)
