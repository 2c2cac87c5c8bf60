"""Retrieval: encode a collection, search it exactly, and measure; BM25 and run files for comparison."""

from nestling.retrieval.evaluation import encode_set, evaluate_embedder
from nestling.retrieval.first_stage import Run, bm25_run, judgements, read_run
from nestling.retrieval.search import EncodedSet, Precision, place

__all__ = [
    "EncodedSet",
    "Precision",
    "Run",
    "bm25_run",
    "encode_set",
    "evaluate_embedder",
    "judgements",
    "place",
    "read_run",
]
