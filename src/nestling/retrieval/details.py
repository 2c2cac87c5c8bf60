"""What a search gave each query: its metrics, where its relevant documents stand, and what comes first.

Shape legend: Q queries, R relevant documents of all queries, N documents of the collection, s sampled documents of a
query.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nestling.records.collection import positions
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.candidates import Candidates
from nestling.retrieval.metrics import Floats, Placements, Run, per_query
from nestling.retrieval.nearest import search_top
from nestling.retrieval.search import EmbeddingPrecision, EncodedSet, score_pairs

FIRST = 10
SAMPLED = 20
# Characters of a text that are kept.
LONGEST = 600


@dataclass(frozen=True)
class Ranking:
    """How documents stand for each query of a retrieval set.

    Attributes:
        placements: Of the relevant documents.
        scores: [R] float64, theirs; NaN for what is not ranked.
        first: The first documents of each query and their scores, best first.
        others: Q arrays of float64, scores of some documents that are not relevant, always the same ones for an
            embedder; of a list only what it names can be among them.
    """

    placements: Placements
    scores: Floats
    first: Run
    others: Sequence[Floats]


def embedder_ranking(
    encoded: EncodedSet,
    retrieval_set: RetrievalSet,
    placements: Placements,
    scores: Floats,
    dim: int,
    embedding_precision: EmbeddingPrecision,
) -> Ranking:
    """Of an embedder in one process; `placements` and `scores` are those of `place_scored`."""
    first = search_top(encoded, retrieval_set, FIRST, dim=dim, embedding_precision=embedding_precision)
    queries = np.repeat(np.arange(len(placements)), SAMPLED)
    rows = np.random.default_rng(0).integers(len(encoded.which), size=len(queries))
    sampled = score_pairs(encoded, queries, encoded.which[rows], dim, embedding_precision).reshape(-1, SAMPLED)
    others = [
        own[~np.isin(encoded.which[chosen], encoded.which[relevant])]
        for own, chosen, relevant in zip(sampled, rows.reshape(-1, SAMPLED), retrieval_set.relevant, strict=True)
    ]
    return Ranking(placements, scores, first, others)


def run_ranking(run: Run, retrieval_set: RetrievalSet, placements: Placements) -> Ranking:
    """Of lists of documents; `placements` are those of `place_run`."""
    generator = np.random.default_rng(0)
    scores: list[float] = []
    first: Run = {}
    others = []
    for query, rows in zip(retrieval_set.query_ids, retrieval_set.relevant, strict=True):
        listed = run.get(query, {})
        relevant = [retrieval_set.document_ids[row] for row in rows.tolist()]
        scores += [listed.get(document, math.nan) for document in relevant]
        first[query] = dict(sorted(listed.items(), key=lambda item: -item[1])[:FIRST])
        rest = [listed[document] for document in listed.keys() - set(relevant)]
        others.append(generator.permutation(np.sort(rest))[:SAMPLED])
    return Ranking(placements, np.array(scores, dtype=np.float64), first, others)


def candidates_ranking(
    values: Sequence[Floats], candidates: Candidates, retrieval_set: RetrievalSet, placements: Placements
) -> Ranking:
    """Of candidates with scores; `placements` are those of `place_candidates`."""
    ids = retrieval_set.document_ids
    run = {
        query: {ids[row]: score for row, score in zip(rows.tolist(), own.tolist(), strict=True)}
        for query, rows, own in zip(retrieval_set.query_ids, candidates.rows, values, strict=True)
    }
    return run_ranking(run, retrieval_set, placements)


def detail_lines(ranking: Ranking, retrieval_set: RetrievalSet) -> Iterator[dict[str, Any]]:
    """For each query what a line of details says of it; only the texts that are named are read."""
    placements, ids = ranking.placements, retrieval_set.document_ids
    metrics = per_query(placements)
    rows_of = positions(ids, (document for listed in ranking.first.values() for document in listed))
    gains_of = relevances(retrieval_set)
    ranks = middle_ranks(placements)
    for i, query in enumerate(retrieval_set.query_ids):
        own = range(placements.offsets[i], placements.offsets[i + 1])
        yield {
            "query_id": query,
            "query": shorten(retrieval_set.queries[i]),
            "metrics": {name: float(values[i]) for name, values in metrics.items()},
            "judged": [
                {
                    "id": ids[row],
                    "text": shorten(retrieval_set.documents[row]),
                    "relevance": float(placements.gains[at]),
                    "score": known(ranking.scores[at]),
                    "rank": known(ranks[at]),
                }
                for row, at in zip(retrieval_set.relevant[i].tolist(), own, strict=True)
            ],
            "first": [
                {
                    "id": document,
                    "text": shorten(retrieval_set.documents[rows_of[document]]) if document in rows_of else None,
                    "score": score,
                    "relevance": gains_of[i].get(rows_of.get(document, -1), 0.0),
                }
                for document, score in ranking.first[query].items()
            ],
            "others": [round(score, 6) for score in ranking.others[i].tolist()],
        }


def relevances(retrieval_set: RetrievalSet) -> list[dict[int, float]]:
    """For each query the relevance of its relevant documents by position."""
    return [
        dict(zip(rows.tolist(), map(float, gains), strict=True))
        for rows, gains in zip(retrieval_set.relevant, retrieval_set.gains, strict=True)
    ]


def middle_ranks(placements: Placements) -> Floats:
    """[R] float64: the mean rank, from 1, over all orders of equal scores; NaN for what is not ranked."""
    return np.where(placements.equal > 0, placements.above + (placements.equal + 1) / 2, np.nan)


def known(value: float) -> float | None:
    """A number, or None for NaN, which JSON lacks."""
    return None if math.isnan(value) else float(value)


def shorten(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"
