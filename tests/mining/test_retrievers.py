"""Retrievers: an embedder, BM25, run files, the records' own negatives."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks

from mining.small import opened, random_rows, write_corpus, write_rows
from nestling.mining.retrievers import Bm25Retriever, DenseRetriever, RecordNegatives, RunFileRetriever, query_ids
from nestling.models.embedder import Embedder
from nestling.records import load_retrieval_set
from nestling.retrieval import bm25_run
from sets import WORDS, random_set, write_beir
from tiny import tiny_bert

CPU = torch.device("cpu")
ROWS = [
    {"query": "list files", "positives": ["ls"], "negatives": ["rm", "cat", "ls"], "instruction": "find it"},
    {"query": "show text", "positives": ["cat"], "negatives": ["tac"]},
    {"query": "list files", "positives": ["dir"], "negatives": ["mv", "rm"], "instruction": "find it"},
]


def encode(embedder: Embedder, *opened_: object) -> DenseRetriever:
    query_set, pool = opened_
    return DenseRetriever.encode("tiny", embedder, query_set, pool, query_max_length=24, document_max_length=16)  # type: ignore[arg-type]


def test_an_embedder_retrieves_by_cosine(tmp_path: Path, qwen3: Path) -> None:
    """Queries of different instructions and documents beyond the corpus included."""
    corpus = write_corpus(tmp_path / "corpus.jsonl", [row["positives"][0] for row in random_rows(60, seed=1)])
    table, query_set, pool = opened(write_rows(tmp_path / "rows.jsonl", random_rows(40)), corpus)
    assert pool.size < len(pool)
    embedder = Embedder.from_pretrained(qwen3)
    dense = encode(embedder, query_set, pool)
    queries = torch.cat(
        [
            embedder.encode([text], kind="query", max_length=24, instruction=task)
            for text, task in zip(query_set.texts, query_set.instructions, strict=True)
        ]
    )
    documents = embedder.encode(list(pool.texts), kind="document", max_length=16)
    # What the cache keeps; rounding is the only difference, and moves a cosine by less than 1e-4.
    expected = (queries.half().double() @ documents.half().double().T).numpy()
    retrieved = dense.search(10)
    best = np.sort(expected[:, : pool.size], axis=1)[:, ::-1][:, :10]
    np.testing.assert_allclose(retrieved.scores, best, atol=2e-4, rtol=0)
    np.testing.assert_allclose(np.take_along_axis(expected, retrieved.documents, axis=1), best, atol=2e-4, rtol=0)
    rng = np.random.default_rng(0)
    some, others = rng.integers(0, len(query_set), 50), rng.integers(0, len(pool), 50)
    np.testing.assert_allclose(dense.score(some, others), expected[some, others], atol=2e-4, rtol=0)
    both = (documents @ documents.T).numpy()
    np.testing.assert_allclose(dense.similarities(others, others[::-1]), both[others, others[::-1]], atol=5e-4, rtol=0)
    assert dense.notes[0].startswith(f"queries: 0 in the cache; {len(query_set)} texts")
    assert encode(embedder, query_set, pool).notes[1] == f"documents: {len(pool)} in the cache"
    assert len(table) > len(query_set)


def beir_rows(folder: Path) -> Path:
    """Pairs of the queries of a BEIR folder with their first relevant document."""
    data = load_retrieval_set(folder, "test")
    rows = [
        {"query": query, "positives": [data.documents[int(rows[0])]]}
        for query, rows in zip(data.queries, data.relevant, strict=True)
    ]
    return write_rows(folder / "rows.jsonl", rows)


def test_bm25_equals_that_of_evaluation(tmp_path: Path) -> None:
    texts = [f"{' '.join(row['positives'])} {i}" for i, row in enumerate(random_rows(80))]
    data = write_beir(tmp_path / "set", texts, WORDS, {f"q{i}": {f"d{i}": 1} for i in range(len(WORDS))})
    _, query_set, pool = opened(beir_rows(tmp_path / "set"), tmp_path / "set")
    expected = bm25_run(data, depth=len(texts))
    bm25 = Bm25Retriever(query_set, pool, CPU)
    retrieved = bm25.search(6)
    for query, (identifier,) in enumerate(query_ids(tmp_path / "set", query_set)):
        best = sorted(expected[identifier].items(), key=lambda item: (-item[1], int(item[0][1:])))[:6]
        assert [f"d{position}" for position in retrieved.documents[query].tolist() if position >= 0] == [
            document for document, _ in best
        ]
        assert [score for score in retrieved.scores[query].tolist() if score == score] == [score for _, score in best]
    pairs = [(3, 5), (0, 6), (3, 7), (11, 0)]
    scores = bm25.score(np.array([query for query, _ in pairs]), np.array([document for _, document in pairs]))
    assert scores.tolist() == [expected[f"q{query}"].get(f"d{document}", 0.0) for query, document in pairs]


def test_bm25_shows_on_a_terminal_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_set(tmp_path / "set", 20, 6)
    _, query_set, pool = opened(beir_rows(tmp_path / "set"), tmp_path / "set")
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", shown)
    Bm25Retriever(query_set, pool, CPU).search(3)
    assert shown.getvalue() == ""
    Bm25Retriever(query_set, pool, CPU, progress=True).search(3)
    assert "bm25: documents" in shown.getvalue()
    assert "bm25: queries" in shown.getvalue()
    bm25_run(data, progress=True)
    assert "set/test: BM25 of documents" in shown.getvalue()
    assert "set/test: BM25 of queries" in shown.getvalue()


def test_bm25_of_words_that_no_document_has(tmp_path: Path) -> None:
    rows = [{"query": "alpha", "positives": ["beta"]}, {"query": "gamma", "positives": ["the"]}]
    _, query_set, pool = opened(write_rows(tmp_path / "rows.jsonl", rows))
    retrieved = Bm25Retriever(query_set, pool, CPU).search(3)
    assert retrieved.documents.tolist() == [[-1, -1, -1], [-1, -1, -1]]
    assert np.isnan(retrieved.scores).all()


def test_a_run_file(tmp_path: Path) -> None:
    data = random_set(tmp_path / "set", documents=30, queries=4)
    _, query_set, pool = opened(beir_rows(tmp_path / "set"), tmp_path / "set")
    ids = query_ids(tmp_path / "set", query_set)
    run = {"q0": {"d3": 1.0, "d5": 2.5, "d9": 1.0, "gone": 9.0}, "q2": {"d1": -1.0}, "other": {"d1": 1.0}}
    lists = RunFileRetriever("run", run, ids, pool)
    assert lists.missing == 2
    retrieved = lists.search(2)
    position_of = pool.positions_of_ids([f"d{i}" for i in range(30)])
    assert retrieved.documents.tolist() == [
        [position_of["d5"], position_of["d3"]],
        [-1, -1],
        [position_of["d1"], -1],
        [-1, -1],
    ]
    scores = lists.score(np.array([0, 0, 1]), np.array([position_of[id_] for id_ in ("d9", "d1", "d9")]))
    np.testing.assert_array_equal(scores, np.array([1.0, np.nan, np.nan], np.float32))
    with pytest.raises(ValueError, match=r"run: the run lists no document of .* for any of the 4 queries"):
        RunFileRetriever("run", {"other": {"d1": 1.0}}, ids, pool)
    assert len(data.queries) == 4


def test_negatives_of_the_records(tmp_path: Path) -> None:
    table, query_set, pool = opened(write_rows(tmp_path / "rows.jsonl", ROWS))
    texts = list(pool.texts)
    retrieved = RecordNegatives(query_set, pool, table).search(3)
    named = [[texts[i] if i >= 0 else "" for i in positions] for positions in retrieved.documents.tolist()]
    assert named == [["rm", "cat", "mv"], ["tac", "", ""]]
    assert np.isnan(retrieved.scores).all()


def retrieve(rank: int, folder: Path) -> None:
    _, query_set, pool = opened(folder / "rows.jsonl")
    retrieved = [
        encode(Embedder.from_pretrained(folder / "bert"), query_set, pool).search(7),
        Bm25Retriever(query_set, pool, CPU).search(7),
    ]
    pairs = np.arange(20), np.arange(20)[::-1].copy()
    scores = Bm25Retriever(query_set, pool, CPU).score(*pairs).tolist()
    lists = [[each.documents.tolist(), np.nan_to_num(each.scores).tolist()] for each in retrieved]
    (folder / f"{rank}.json").write_text(json.dumps([lists, scores]))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_equal_a_single_process(tmp_path: Path, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "rows.jsonl", random_rows(40))
    tiny_bert(tmp_path / "bert")
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "alone"))
    retrieve(world, tmp_path)
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "ranks"))
    run_ranks(world, retrieve, tmp_path)
    alone = json.loads((tmp_path / f"{world}.json").read_text())
    assert all(json.loads((tmp_path / f"{rank}.json").read_text()) == alone for rank in range(world))
