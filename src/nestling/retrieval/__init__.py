"""Retrieval: encode a collection, search it exactly, and measure; first stages and candidate lists for rerankers."""

from nestling.retrieval.candidates import (
    Candidates,
    evaluate_candidates,
    fuse,
    open_candidates,
    place_candidates,
    read_candidates,
)
from nestling.retrieval.details import Ranking, candidates_ranking, detail_lines, embedder_ranking, run_ranking
from nestling.retrieval.evaluation import encode_set, evaluate_embedder
from nestling.retrieval.first_stage import bm25_run, check_run, judgements, read_run
from nestling.retrieval.metrics import Run
from nestling.retrieval.nearest import search_top
from nestling.retrieval.reranking import rerank
from nestling.retrieval.search import EmbeddingPrecision, EncodedSet, place, place_scored

__all__ = [
    "Candidates",
    "EmbeddingPrecision",
    "EncodedSet",
    "Ranking",
    "Run",
    "bm25_run",
    "candidates_ranking",
    "check_run",
    "detail_lines",
    "embedder_ranking",
    "encode_set",
    "evaluate_candidates",
    "evaluate_embedder",
    "fuse",
    "judgements",
    "open_candidates",
    "place",
    "place_candidates",
    "place_scored",
    "read_candidates",
    "read_run",
    "rerank",
    "run_ranking",
    "search_top",
]
