"""Sets whose queries are documents too, as in ArguAna: the document with the id of a query is no result of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from nestling.models.embedder import Embedder
from nestling.records import RetrievalSet, load_retrieval_set
from nestling.retrieval import (
    Candidates,
    bm25_run,
    drop_own_documents,
    embedder_details,
    encode_set,
    evaluate_candidates,
    qrels_of,
    read_candidates,
    relevant_ranks,
    relevant_ranks_and_scores,
    search_top,
)
from nestling.retrieval.metrics import Run, mean_metrics, ranks_in_run
from sets import WORDS, write_queries_among_documents

LENGTHS = {"query_max_length": 16, "document_max_length": 16}


@pytest.fixture
def data(tmp_path: Path) -> RetrievalSet:
    return write_queries_among_documents(tmp_path / "arguments")


def without_equal_ids(run: Run, judged: dict[str, dict[str, float]]) -> Run:
    """As BEIR evaluates a run, but that a relevant document stays."""
    return {
        query: {each: score for each, score in listed.items() if each != query or each in judged[query]}
        for query, listed in run.items()
    }


def score_matrix(embedder: Embedder, data: RetrievalSet) -> Run:
    """Scores of all documents for each query, in float64; documents with equal texts have equal scores."""
    queries = embedder.encode(list(data.queries), kind="query", max_length=16).double()
    documents = embedder.encode(list(data.documents), kind="document", max_length=16).double()
    first = {text: i for i, text in reversed(list(enumerate(data.documents)))}
    scores = (queries @ documents.T)[:, [first[text] for text in data.documents]]
    return {
        query: dict(zip(data.document_ids, own, strict=True))
        for query, own in zip(data.query_ids, scores.tolist(), strict=True)
    }


def test_reading_finds_and_counts_them(data: RetrievalSet) -> None:
    # t5 is a judged document of its own query, and q has no document.
    assert dict(zip(data.query_ids, data.own_documents.tolist(), strict=True)) == {
        **{f"t{i}": 2 * i for i in range(5)},
        "t5": -1,
        "q": -1,
    }
    (drop,) = data.summary.drops
    assert (drop.count, drop.reason) == (5, "document with the id of a query, from the results of that query")
    assert drop.example.endswith("queries.jsonl: t0")


def test_an_embedder(data: RetrievalSet, bert: Path) -> None:
    embedder = Embedder.from_pretrained(bert)
    encoded = encode_set(embedder, data, **LENGTHS)
    judged = qrels_of(data)
    everything = score_matrix(embedder, data)
    expected = ranks_in_run(without_equal_ids(everything, judged), judged)
    ranks = relevant_ranks(encoded, embedder.dim)
    assert (ranks.above.tolist(), ranks.equal.tolist()) == (expected.above.tolist(), expected.equal.tolist())
    before = ranks_in_run(everything, judged)
    assert (before.above > ranks.above).any()
    assert (before.equal > ranks.equal).any(), "t3 is relevant to t2, whose own document has the text of t3's"
    for depth in (1, 4, 50):
        found = search_top(encoded, data, depth)
        for query, listed in without_equal_ids(everything, judged).items():
            order = sorted(listed, key=lambda each: (-listed[each], list(data.document_ids).index(each)))
            assert list(found[query]) == order[:depth]


def test_details_leave_them_out(data: RetrievalSet, bert: Path) -> None:
    embedder = Embedder.from_pretrained(bert)
    encoded = encode_set(embedder, data, **LENGTHS)
    details = embedder_details(
        encoded, data, *relevant_ranks_and_scores(encoded, embedder.dim), embedder.dim, "float32"
    )
    assert all(query not in details.top[query] for query in ("t0", "t1", "t2", "t3", "t4"))
    sampled = np.random.default_rng(0).integers(len(data.documents), size=(len(data.queries), 20))
    for i, own in enumerate(data.own_documents.tolist()):
        left_out = {data.documents[each] for each in (own, *data.relevant[i].tolist()) if each >= 0}
        assert len(details.other_scores[i]) == sum(data.documents[each] not in left_out for each in sampled[i].tolist())


def test_bm25_and_run_files(data: RetrievalSet) -> None:
    found = bm25_run(data, depth=50)
    assert all(query not in listed for query, listed in found.items() if query != "t5")
    assert "t5" in found["t5"], "it is judged relevant"
    run = {query: {each: float(score) for score, each in enumerate(data.document_ids)} for query in data.query_ids}
    kept, count = drop_own_documents(run, data)
    assert (kept, count) == (without_equal_ids(run, qrels_of(data)), 5)
    assert drop_own_documents(kept, data) == (kept, 0)


def test_candidates(data: RetrievalSet, tmp_path: Path) -> None:
    run = {query: {each: float(score) for score, each in enumerate(data.document_ids)} for query in data.query_ids}
    candidates = Candidates.from_run(run, data, 12)
    assert [len(each) for each in candidates.positions] == [11] * 5 + [12] * 2
    assert candidates.own_documents == 5
    assert "left out 5 listed documents that have the id of their query" in str(candidates)
    assert len(Candidates.from_run(run, data, 3).positions[0]) == 3
    expected = mean_metrics(ranks_in_run(without_equal_ids(run, qrels_of(data)), qrels_of(data)))
    assert evaluate_candidates(candidates.first_stage_scores, candidates, data) == expected

    lists = [{"query-id": query, "corpus-ids": list(data.document_ids)} for query in data.query_ids]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lists))
    read = read_candidates(tmp_path / "lists.jsonl", data)
    assert [sorted(each) for each in read.positions] == [sorted(each) for each in candidates.positions]
    assert read.own_documents == 5


def test_sets_with_other_ids_are_as_before(tmp_path: Path) -> None:
    folder = tmp_path / "arguments"
    data = write_queries_among_documents(folder)
    asked = [{"_id": f"other {name}", "text": text} for name, text in zip(data.query_ids, data.queries, strict=True)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
    qrels = (folder / "qrels" / "test.tsv").read_text().splitlines()
    (folder / "qrels" / "test.tsv").write_text("\n".join([qrels[0], *(f"other {each}" for each in qrels[1:])]) + "\n")
    other = load_retrieval_set(folder, "test")
    assert (other.own_documents == -1).all()
    assert not other.summary.drops
    assert len(WORDS) == len(other.documents)
