"""Candidate lists: the documents that a reranker scores for each query, read from files and runs, and their metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nestling.records.collection import positions
from nestling.records.fields import Row, check_text, optional_text
from nestling.records.json_files import read_jsonl
from nestling.records.record import FieldError, cut, located
from nestling.records.retrieval_set import RetrievalSet
from nestling.records.sources import file_suffix
from nestling.retrieval.first_stage import bm25_run, drop_own_documents, read_run
from nestling.retrieval.metrics import Floats, Integers, RelevantRanks, Run, mean_metrics, ranks_in_run

FIELDS = ("query-id", "corpus-ids", "split")


@dataclass(frozen=True)
class Candidates:
    """The documents that are to be scored for each of the Q queries of a retrieval set.

    Attributes:
        positions: Q arrays of int64: the candidates of each query as positions in the set's `documents`, in the first
            stage's order; an empty array for a query without candidates.
        scores: Q arrays of float64, the first stage's scores, aligned with `positions`; None if the order of the lists
            means nothing.
        skipped_lists: How many lists were left out because they are of another split or of a query not in the set.
        unknown_documents: How many listed documents of the set's queries were left out because they are not in the
            collection.
        own_documents: How many listed documents were left out because they have the id of their query, as in BEIR.
    """

    positions: list[Integers]
    scores: list[Floats] | None = None
    skipped_lists: int = 0
    unknown_documents: int = 0
    own_documents: int = 0

    @classmethod
    def from_run(cls, run: Run, retrieval_set: RetrievalSet, depth: int) -> "Candidates":
        """Take the `depth` best documents of each query of a run; ties go to the first in the collection.

        Documents that are not in the collection, or have the id of the query, do not count towards `depth`.

        Raises:
            ValueError: `depth` is below 1, or the run lists none of the set's queries, or none of its documents.
        """
        if depth < 1:
            raise ValueError(f"depth is {depth}, expected at least 1 candidate a query")
        queries = list(retrieval_set.query_ids)
        listed_queries = [query for query in queries if query in run]
        if not listed_queries:
            listed = cut(next(iter(run), "nothing"), 40)
            raise ValueError(
                f"the run lists none of the {len(queries):,} queries of {retrieval_set.name}; expected the query ids "
                f"of its queries.jsonl, like {cut(queries[0], 40)}, got for instance {listed}"
            )
        run, own_documents = drop_own_documents(run, retrieval_set)
        document_ids = (document for query in listed_queries for document in run[query])
        position_of = positions(retrieval_set.document_ids, document_ids)
        unknown = [each for query in listed_queries for each in run[query] if each not in position_of]
        if unknown and not position_of:
            raise ValueError(
                f"the run lists no document of {retrieval_set.name} for any of its queries; expected the document ids "
                f"of its corpus.jsonl, like {cut(retrieval_set.document_ids[0], 40)}, got for instance "
                f"{cut(unknown[0], 40)}"
            )
        lists = [best_documents(run.get(query, {}), position_of, depth) for query in queries]
        return cls(
            positions=[documents for documents, _ in lists],
            scores=[scores for _, scores in lists],
            skipped_lists=len(run) - len(listed_queries),
            unknown_documents=len(unknown),
            own_documents=own_documents,
        )

    @property
    def first_stage_scores(self) -> list[Floats]:
        """Q arrays of float64: `scores`, or all zeros where there are none, whose metrics are those of a random order.

        Metrics average over ties, so equal scores give the baseline that a reranker is compared with.
        """
        return [np.zeros(len(documents)) for documents in self.positions] if self.scores is None else self.scores

    def __str__(self) -> str:
        sizes = [len(documents) for documents in self.positions if len(documents)]
        text = f"{sum(sizes):,} candidates of {len(sizes):,} queries"
        if sizes:
            text += f", {min(sizes):,} to {max(sizes):,} each"
        if len(sizes) < len(self.positions):
            text += f"; {len(self.positions) - len(sizes):,} queries have none and count 0"
        if self.skipped_lists:
            text += f"; skipped {self.skipped_lists:,} lists of another split or of other queries"
        if self.unknown_documents:
            text += f"; left out {self.unknown_documents:,} listed documents that are not in the collection"
        if self.own_documents:
            text += f"; left out {self.own_documents:,} listed documents that have the id of their query"
        return text


def open_candidates(first_stage: str, retrieval_set: RetrievalSet, depth: int, *, progress: bool = False) -> Candidates:
    """Open the candidates that the setting `first_stage` names: "bm25", a .jsonl file, or a TREC run file.

    `depth` cuts BM25 and runs; the lists of a .jsonl file are kept whole (`read_candidates`). With `progress` a
    terminal shows bars of BM25.

    Raises:
        ValueError: There is no such file, or its content is refused.
    """
    if first_stage == "bm25":
        return Candidates.from_run(bm25_run(retrieval_set, depth=depth, progress=progress), retrieval_set, depth)
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

    The order within a list is not a ranking, so the candidates have no scores. Lists of other splits and of queries
    that are not in the set are skipped and counted, and so are documents that have the id of their query.

    Raises:
        ValueError: `file:line: field: reason` for a line that cannot be parsed, a document that is not in the
            collection or listed twice, or a second list of a query; also if no list is of a query of the set.
    """
    path, queries = Path(path), frozenset(retrieval_set.query_ids)
    lists: dict[str, tuple[int, list[str]]] = {}
    skipped = 0
    for line, fields in read_jsonl(path):
        with located(str(path), line):
            query, documents, split = parse_list(fields)
            if query not in queries or split not in (None, retrieval_set.split):
                skipped += 1
            elif query in lists:
                raise FieldError(
                    "query-id", f"{cut(query, 40)} has a list already, in line {lists[query][0]}; join them"
                )
            else:
                lists[query] = line, documents
    if not lists:
        raise ValueError(
            f"{path}:1: file: none of its {skipped:,} lists is of split {retrieval_set.split!r} and of one of the "
            f"{len(queries):,} queries of {retrieval_set.name}"
        )
    position_of = positions(retrieval_set.document_ids, (document for _, ids in lists.values() for document in ids))
    for line, documents in lists.values():
        with located(str(path), line):
            check_documents(documents, position_of, retrieval_set.name)
    listed = [
        np.array([position_of[document] for document in lists.get(query, (0, []))[1]], dtype=np.int64)
        for query in retrieval_set.query_ids
    ]
    kept = [each[each != own] for each, own in zip(listed, retrieval_set.own_documents, strict=True)]
    own_documents = sum(map(len, listed)) - sum(map(len, kept))
    return Candidates(kept, skipped_lists=skipped, own_documents=own_documents)


def ranks_in_candidates(scores: Sequence[Floats], candidates: Candidates, retrieval_set: RetrievalSet) -> RelevantRanks:
    """Rank the relevant documents of each query among its candidates; those that are not candidates are not ranked.

    Args:
        scores: Q arrays of float64, aligned with `candidates.positions`; higher is better, and metrics average over
            the orders of equal scores.
        candidates: The documents that were scored.
        retrieval_set: Says which documents are relevant.

    Raises:
        ValueError: The scores do not align with the candidates, or one of them is NaN.
    """
    run, qrels = {}, {}
    scored = zip(retrieval_set.query_ids, candidates.positions, scores, strict=True)
    for i, (query, documents, own) in enumerate(scored):
        if len(own) != len(documents):
            raise ValueError(f"{len(own)} scores for the {len(documents)} candidates of query {query}")
        if np.isnan(own).any():
            raise ValueError(f"the scores of query {query} hold NaN; the model's weights may have diverged")
        run[query] = by_position(documents, own)
        qrels[query] = by_position(retrieval_set.relevant[i], retrieval_set.gains[i])
    return ranks_in_run(run, qrels)


def evaluate_candidates(
    scores_per_query: Sequence[Floats], candidates: Candidates, retrieval_set: RetrievalSet
) -> dict[str, float]:
    """Mean nDCG@10, MRR@10, Recall@100 and MAP@100 of reordered candidates; arguments as in `ranks_in_candidates`.

    Relevant documents that are not candidates still count in the denominators (the ideal ranking, and the number of
    relevant documents), so the first stage's recall is an upper bound of what a reranker can reach.
    """
    return mean_metrics(ranks_in_candidates(scores_per_query, candidates, retrieval_set))


def best_documents(listed: dict[str, float], position_of: dict[str, int], depth: int) -> tuple[Integers, Floats]:
    """Positions and scores of the `depth` best listed documents, best first; those without a position are left out."""
    known = [(position_of[document], score) for document, score in listed.items() if document in position_of]
    documents = np.array([position for position, _ in known], dtype=np.int64)
    scores = np.array([score for _, score in known], dtype=np.float64)
    order = np.lexsort((documents, -scores))[:depth]
    return documents[order], scores[order]


def by_position(documents: Integers, values: Floats) -> dict[str, float]:
    """{position in the collection: value}; positions as strings, which stand in for document ids in `ranks_in_run`."""
    return dict(zip(map(str, documents.tolist()), values.tolist(), strict=True))


def parse_list(fields: Row) -> tuple[str, list[str], str | None]:
    """Query id, document ids and split (None if not given) of one line of a candidate file."""
    unknown = next((key for key in fields if key not in FIELDS), None)
    if unknown is not None:
        raise FieldError(unknown, f"not a field of candidate lists; expected {', '.join(FIELDS)}")
    documents = fields.get("corpus-ids")
    if not isinstance(documents, list):
        raise FieldError("corpus-ids", "missing" if documents is None else "expected a list of document ids")
    if not documents:
        raise FieldError("corpus-ids", "the list is empty; expected at least one document, or no line")
    ids = [check_id(f"corpus-ids[{i}]", document) for i, document in enumerate(documents)]
    return check_id("query-id", fields.get("query-id")), ids, optional_text(fields, "split")


def check_id(field: str, value: Any) -> str:
    """An id as corpus.jsonl and queries.jsonl may hold it, a string or an integer; always returned as a string."""
    if value is None:
        raise FieldError(field, "missing")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else check_text(field, value)


def check_documents(documents: list[str], position_of: dict[str, int], name: str) -> None:
    """Raise FieldError for a document that is not in the collection, or that is listed twice."""
    seen: set[str] = set()
    for i, document in enumerate(documents):
        if document not in position_of:
            raise FieldError(
                f"corpus-ids[{i}]", f"{cut(document, 40)} is not in the corpus of {name}, or has no text there"
            )
        if document in seen:
            raise FieldError(f"corpus-ids[{i}]", f"{cut(document, 40)} is listed twice")
        seen.add(document)
