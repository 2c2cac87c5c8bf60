"""Encode a retrieval set, search it exactly and measure; first stages, and candidate lists for rerankers."""

from nestling.retrieval.candidates import (
    Candidates,
    evaluate_candidates,
    open_candidates,
    ranks_in_candidates,
    read_candidates,
)
from nestling.retrieval.details import RetrievalDetails, candidate_details, detail_lines, embedder_details, run_details
from nestling.retrieval.evaluation import encode_set, evaluate_embedder
from nestling.retrieval.first_stage import bm25_run, check_run, drop_own_documents, qrels_of, read_run
from nestling.retrieval.fusion import reciprocal_rank_fusion, weighted_fusion
from nestling.retrieval.metrics import Run
from nestling.retrieval.nearest import search_top
from nestling.retrieval.reranking import rerank
from nestling.retrieval.search import EmbeddingPrecision, EncodedSet, relevant_ranks, relevant_ranks_and_scores

__all__ = [
    "Candidates",
    "EmbeddingPrecision",
    "EncodedSet",
    "RetrievalDetails",
    "Run",
    "bm25_run",
    "candidate_details",
    "check_run",
    "detail_lines",
    "drop_own_documents",
    "embedder_details",
    "encode_set",
    "evaluate_candidates",
    "evaluate_embedder",
    "open_candidates",
    "qrels_of",
    "ranks_in_candidates",
    "read_candidates",
    "read_run",
    "reciprocal_rank_fusion",
    "relevant_ranks",
    "relevant_ranks_and_scores",
    "rerank",
    "run_details",
    "search_top",
    "weighted_fusion",
]
