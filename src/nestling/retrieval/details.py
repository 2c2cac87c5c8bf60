"""What was retrieved for each query: metrics, relevant documents with their ranks, and the first documents.

Shape legend: Q queries, R relevant documents of all queries, N documents of the collection.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nestling.records.collection import positions
from nestling.records.retrieval_set import RetrievalSet
from nestling.retrieval.candidates import Candidates
from nestling.retrieval.metrics import Floats, RelevantRanks, Run, metrics_per_query
from nestling.retrieval.nearest import search_top
from nestling.retrieval.search import EmbeddingPrecision, EncodedSet, score_pairs

# Documents of a query that are listed, the best first.
TOP = 10
# Documents of a query that are drawn at random, for the distribution of scores of documents that are not relevant.
SAMPLED = 20
# Characters of a text that are kept.
MAX_CHARACTERS = 600


@dataclass(frozen=True)
class RetrievalDetails:
    """What was retrieved for each query of a retrieval set.

    Attributes:
        ranks: Ranks of the relevant documents.
        relevant_scores: [R] float64, scores of the relevant documents; NaN for those that were not retrieved.
        top: The first documents of each query and their scores, best first.
        other_scores: Q arrays of float64, scores of a random sample of documents that are not relevant: of the whole
            collection for an embedder, of the listed documents for runs and candidates.
    """

    ranks: RelevantRanks
    relevant_scores: Floats
    top: Run
    other_scores: Sequence[Floats]


def embedder_details(
    encoded: EncodedSet,
    retrieval_set: RetrievalSet,
    ranks: RelevantRanks,
    relevant_scores: Floats,
    dim: int,
    embedding_precision: EmbeddingPrecision,
) -> RetrievalDetails:
    """The details of an embedder, encoded by one process.

    `ranks` and `relevant_scores` are what `relevant_ranks_and_scores` returns. The sample of documents depends on the
    sizes of the set only, so that embedders are compared on the same ones.
    """
    top = search_top(encoded, retrieval_set, TOP, dim=dim, embedding_precision=embedding_precision)
    queries = np.repeat(np.arange(len(ranks)), SAMPLED)
    documents = np.random.default_rng(0).integers(len(encoded.distinct_index), size=len(queries))
    distinct = encoded.distinct_index[documents].reshape(-1, SAMPLED)
    scores = score_pairs(encoded, queries, distinct.ravel(), dim, embedding_precision).reshape(-1, SAMPLED)
    own_documents = retrieval_set.own_documents[:, None]
    not_others = [
        np.append(relevant, own[own >= 0]) for relevant, own in zip(retrieval_set.relevant, own_documents, strict=True)
    ]
    other_scores = [
        own[~np.isin(sampled, encoded.distinct_index[left_out])]
        for own, sampled, left_out in zip(scores, distinct, not_others, strict=True)
    ]
    return RetrievalDetails(ranks, relevant_scores, top, other_scores)


def run_details(run: Run, retrieval_set: RetrievalSet, ranks: RelevantRanks) -> RetrievalDetails:
    """The details of a run; `ranks` are what `ranks_in_run` returns."""
    generator = np.random.default_rng(0)
    relevant_scores: list[float] = []
    top: Run = {}
    other_scores = []
    for query, documents in zip(retrieval_set.query_ids, retrieval_set.relevant, strict=True):
        listed = run.get(query, {})
        relevant = [retrieval_set.document_ids[document] for document in documents.tolist()]
        relevant_scores += [listed.get(document, math.nan) for document in relevant]
        top[query] = dict(sorted(listed.items(), key=lambda item: -item[1])[:TOP])
        others = [listed[document] for document in listed.keys() - set(relevant)]
        other_scores.append(generator.permutation(np.sort(others))[:SAMPLED])
    return RetrievalDetails(ranks, np.array(relevant_scores, dtype=np.float64), top, other_scores)


def candidate_details(
    scores: Sequence[Floats], candidates: Candidates, retrieval_set: RetrievalSet, ranks: RelevantRanks
) -> RetrievalDetails:
    """The details of scored candidates; arguments as in `ranks_in_candidates`, `ranks` are what it returns."""
    ids = retrieval_set.document_ids
    run = {
        query: {ids[document]: score for document, score in zip(documents.tolist(), own.tolist(), strict=True)}
        for query, documents, own in zip(retrieval_set.query_ids, candidates.positions, scores, strict=True)
    }
    return run_details(run, retrieval_set, ranks)


def detail_lines(details: RetrievalDetails, retrieval_set: RetrievalSet) -> Iterator[dict[str, Any]]:
    """One line of a details file for each query (docs/reports.md); only texts that are part of a line are read."""
    ranks, ids = details.ranks, retrieval_set.document_ids
    metrics = metrics_per_query(ranks)
    position_of = positions(ids, (document for documents in details.top.values() for document in documents))
    gains_of = gains_by_position(retrieval_set)
    mean_ranks = expected_ranks(ranks)
    groups = retrieval_set.groups
    for i, query in enumerate(retrieval_set.query_ids):
        entries = range(ranks.offsets[i], ranks.offsets[i + 1])
        yield {
            "query_id": query,
            **({"group": groups[i]} if groups is not None else {}),
            "query": truncate_text(retrieval_set.queries[i]),
            "metrics": {name: float(values[i]) for name, values in metrics.items()},
            "judged": [
                {
                    "id": ids[document],
                    "text": truncate_text(retrieval_set.documents[document]),
                    "relevance": float(ranks.gains[entry]),
                    "score": none_if_nan(details.relevant_scores[entry]),
                    "rank": none_if_nan(mean_ranks[entry]),
                }
                for document, entry in zip(retrieval_set.relevant[i].tolist(), entries, strict=True)
            ],
            "first": [
                {
                    "id": name,
                    "text": truncate_text(retrieval_set.documents[position_of[name]]) if name in position_of else None,
                    "score": score,
                    "relevance": gains_of[i].get(position_of.get(name, -1), 0.0),
                }
                for name, score in details.top[query].items()
            ],
            "others": [round(score, 6) for score in details.other_scores[i].tolist()],
        }


def gains_by_position(retrieval_set: RetrievalSet) -> list[dict[int, float]]:
    """For each query its relevant documents, as {position in the collection: gain}."""
    return [
        dict(zip(documents.tolist(), map(float, gains), strict=True))
        for documents, gains in zip(retrieval_set.relevant, retrieval_set.gains, strict=True)
    ]


def expected_ranks(ranks: RelevantRanks) -> Floats:
    """Rank of each relevant document, from 1, averaged over all orders of ties; NaN if not retrieved: [R] float64."""
    return np.where(ranks.equal > 0, ranks.above + (ranks.equal + 1) / 2, np.nan)


def none_if_nan(value: float) -> float | None:
    """None for NaN, which JSON cannot hold."""
    return None if math.isnan(value) else float(value)


def truncate_text(text: str) -> str:
    """The first `MAX_CHARACTERS` characters, with an ellipsis if there are more."""
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"
