"""Candidate lists from runs and files, broken lists, metrics of candidates, and the top documents of an embedder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
import torch
from ranks import run_ranks
from torch import Tensor

from nestling.models.embedder import Embedder
from nestling.records import RetrievalSet, load_retrieval_set
from nestling.retrieval import (
    Candidates,
    EncodedSet,
    Run,
    bm25_run,
    encode_set,
    evaluate_candidates,
    open_candidates,
    qrels_of,
    ranks_in_candidates,
    read_candidates,
    read_run,
    relevant_ranks,
    search_top,
)
from nestling.retrieval.metrics import mean_metrics, metrics_per_query, ranks_in_run
from nestling.retrieval.nearest import pack, unpack
from sets import random_set, write_beir, write_queries_among_documents
from tiny import tiny_bert

TEXTS = ["alpha", "beta", "alpha beta", "gamma", "delta alpha"]


@pytest.fixture
def small(tmp_path: Path) -> RetrievalSet:
    """Five documents d0 to d4; q0 has two relevant ones, q1 one, q2 none."""
    qrels = {"q0": {"d0": 2, "d4": 1}, "q1": {"d3": 1}, "q2": {"d1": 0}}
    return write_beir(tmp_path / "small", TEXTS, ["alpha", "gamma?", "beta"], qrels)


def position_lists(candidates: Candidates) -> list[list[int]]:
    return [documents.tolist() for documents in candidates.positions]


def test_a_run_is_cut_at_the_depth_and_ties_go_by_the_collection(small: RetrievalSet) -> None:
    run = {"q1": {"d4": 1.0, "d3": 1.0, "d0": 3.0, "d1": 1.0}, "q0": {"d2": -2.0, "gone": 9.0}, "other": {"d0": 1.0}}
    candidates = Candidates.from_run(run, small, depth=3)
    assert position_lists(candidates) == [[2], [0, 1, 3], []]
    assert candidates.scores is not None
    assert [scores.tolist() for scores in candidates.scores] == [[-2.0], [3.0, 1.0, 1.0], []]
    assert [documents.dtype for documents in candidates.positions] == [np.int64] * 3
    assert candidates.first_stage_scores is candidates.scores
    assert (candidates.skipped_lists, candidates.unknown_documents) == (1, 1)
    assert str(candidates) == (
        "4 candidates of 2 queries, 1 to 3 each; 1 queries have none and count 0; skipped 1 lists of another split or "
        "of other queries; left out 1 listed documents that are not in the collection"
    )


def test_runs_that_cannot_be_used_are_refused(small: RetrievalSet) -> None:
    with pytest.raises(ValueError, match=r"none of the 3 queries of small/test; .* like q0, got for instance other"):
        Candidates.from_run({"other": {"d0": 1.0}}, small, depth=3)
    with pytest.raises(ValueError, match=r"no document of small/test for .* like d0, got for instance x7"):
        Candidates.from_run({"q0": {"x7": 1.0}}, small, depth=3)
    with pytest.raises(ValueError, match="depth is 0"):
        Candidates.from_run({"q0": {"d0": 1.0}}, small, depth=0)


def test_queries_that_find_nothing_have_no_candidates(small: RetrievalSet) -> None:
    candidates = Candidates.from_run({"q0": {}}, small, depth=3)
    assert position_lists(candidates) == [[], [], []]
    assert str(candidates) == "0 candidates of 0 queries; 3 queries have none and count 0"
    assert set(evaluate_candidates(candidates.first_stage_scores, candidates, small).values()) == {0.0}


def write_lines(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_lists_are_read_and_others_skipped(small: RetrievalSet, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "lists.jsonl",
        {"query-id": "q1", "corpus-ids": ["d4", "d0", "d3"], "split": "test"},
        {"query-id": "q1", "corpus-ids": ["unknown"], "split": "dev"},
        {"query-id": "other", "corpus-ids": ["d1"]},
        "",
        {"query-id": "q0", "corpus-ids": ["d1"], "split": None},
    )
    candidates = read_candidates(path, small)
    assert position_lists(candidates) == [[1], [4, 0, 3], []]
    assert (candidates.scores, candidates.skipped_lists, candidates.unknown_documents) == (None, 2, 0)
    assert [scores.tolist() for scores in candidates.first_stage_scores] == [[0.0], [0.0, 0.0, 0.0], []]


def test_whole_numbers_are_ids(tmp_path: Path) -> None:
    folder = tmp_path / "numbers"
    write_beir(folder, ["alpha", "beta"], ["gamma"], {"q0": {"d0": 1}})
    write_lines(folder / "corpus.jsonl", {"_id": 7, "text": "alpha"}, {"_id": 8, "text": "beta"})
    write_lines(folder / "queries.jsonl", {"_id": 1, "text": "gamma"})
    write_lines(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore", "1\t7\t1")
    lists = write_lines(folder / "candidates.jsonl", {"query-id": 1, "corpus-ids": [8, 7]})
    assert position_lists(read_candidates(lists, load_retrieval_set(folder, "test"))) == [[1, 0]]


GOOD = {"query-id": "q0", "corpus-ids": ["d0"]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, "{"], ":2: line: broken JSON"),
        ([GOOD, "[]"], ":2: line: expected an object"),
        ([GOOD, {"corpus-ids": ["d0"]}], ":2: query-id: missing"),
        ([GOOD, {"query-id": True, "corpus-ids": ["d0"]}], ":2: query-id: expected a text, got a boolean"),
        ([GOOD, {"query-id": "q1"}], ":2: corpus-ids: missing"),
        ([GOOD, {"query-id": "q1", "corpus-ids": "d0"}], ":2: corpus-ids: expected a list of document ids"),
        ([GOOD, {"query-id": "q1", "corpus-ids": []}], ":2: corpus-ids: the list is empty"),
        ([GOOD, {"query-id": "q1", "corpus-ids": ["d0", 1.5]}], ":2: corpus-ids[1]: expected a text"),
        ([GOOD, {"query-id": "q1", "corpus-ids": ["d0", "d9"]}], ":2: corpus-ids[1]: d9 is not in the corpus of small"),
        ([GOOD, {"query-id": "q1", "corpus-ids": ["d1", "d0", "d1"]}], ":2: corpus-ids[2]: d1 is listed twice"),
        ([GOOD, {**GOOD, "corpus-ids": ["d1"]}], ":2: query-id: q0 has a list already, in line 1"),
        ([GOOD, {"query-id": "q1", "corpus-ids": ["d0"], "split": 3}], ":2: split: expected a text"),
        ([GOOD, {"query-id": "q1", "corpus-ids": ["d0"], "splits": "dev"}], ":2: splits: not a field"),
        ([{**GOOD, "split": "dev"}], ":1: file: none of its 1 lists is of split 'test'"),
        ([], ":1: file: none of its 0 lists"),
    ],
)
def test_broken_lists_are_refused(
    small: RetrievalSet, tmp_path: Path, lines: list[dict[str, Any] | str], message: str
) -> None:
    path = write_lines(tmp_path / "lists.jsonl", *lines)
    with pytest.raises(ValueError, match=r"lists\.jsonl") as caught:
        read_candidates(path, small)
    assert f"{path}{message}" in str(caught.value)


def test_a_setting_opens_bm25_lists_and_runs(small: RetrievalSet, tmp_path: Path) -> None:
    bm25 = open_candidates("bm25", small, depth=2)
    assert position_lists(bm25) == [[0, 2], [3], [1, 2]]  # d2 and d4 tie for "alpha" after d0, and d2 comes first
    lists = write_lines(tmp_path / "lists.jsonl", {"query-id": "q0", "corpus-ids": ["d1", "d0", "d2"]})
    assert position_lists(open_candidates(str(lists), small, depth=2)) == [[1, 0, 2], [], []]
    run = write_lines(tmp_path / "run.trec", "q0 Q0 d1 1 0.5 tag", "q0 Q0 d4 2 1.5 tag", "q0 Q0 d3 3 0.1 tag")
    assert position_lists(open_candidates(str(run), small, depth=2)) == [[4, 1], [], []]
    assert read_run(run)["q0"]["d4"] == 1.5
    with pytest.raises(ValueError, match=r"missing: there is no such file; expected bm25, a \.jsonl file"):
        open_candidates(str(tmp_path / "missing"), small, depth=2)


def as_scores(*values: list[float]) -> list[np.ndarray]:
    return [np.array(each, dtype=np.float64) for each in values]


def test_metrics_by_hand(small: RetrievalSet) -> None:
    candidates = Candidates([np.array([4, 1, 2]), np.array([0, 3]), np.array([], dtype=np.int64)])
    values = evaluate_candidates(as_scores([0.5, 0.9, 0.1], [-1.0, 1.0], []), candidates, small)
    # q0: d4 (gain 1) is second and d0 (gain 2) not listed; q1: d3 is first; q2: nothing is relevant
    second = 1 / np.log2(3)
    assert values == pytest.approx(
        {
            "nDCG@10": (second / (2 + second) + 1 + 0) / 3,
            "MRR@10": (1 / 2 + 1 + 0) / 3,
            "Recall@100": (1 / 2 + 1 + 0) / 3,
            "MAP@100": (1 / 4 + 1 + 0) / 3,
        }
    )


def test_equal_scores_count_as_a_random_order(small: RetrievalSet) -> None:
    positions = [np.array([4, 1, 0]), np.array([3, 1]), np.array([2])]
    candidates = Candidates(positions)
    rng = np.random.default_rng(0)
    shuffled = [
        evaluate_candidates([rng.permutation(len(each)).astype(np.float64) for each in positions], candidates, small)
        for _ in range(4000)
    ]
    for name, value in evaluate_candidates(candidates.first_stage_scores, candidates, small).items():
        sample = np.array([each[name] for each in shuffled])
        assert abs(value - sample.mean()) <= 5 * sample.std() / np.sqrt(len(sample)) + 1e-12


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (as_scores([0.1], [0.1, 0.2], []), "1 scores for the 2 candidates of query q0"),
        (as_scores([0.1, float("nan")], [0.1, 0.2], []), "scores of query q0 hold NaN"),
    ],
)
def test_scores_that_do_not_fit_are_refused(small: RetrievalSet, scores: list[np.ndarray], message: str) -> None:
    candidates = Candidates([np.array([0, 1]), np.array([2, 3]), np.array([], dtype=np.int64)])
    with pytest.raises(ValueError, match=message):
        evaluate_candidates(scores, candidates, small)


def judged_lists(shared_data: Path, split: str) -> tuple[RetrievalSet, Candidates]:
    folder = shared_data / "nl2bash-judged"
    retrieval_set = load_retrieval_set(folder, split)
    return retrieval_set, open_candidates(str(folder / "candidates.jsonl"), retrieval_set, depth=100)


def test_real_lists(shared_data: Path) -> None:
    retrieval_set, candidates = judged_lists(shared_data, "test")
    assert str(candidates).startswith("3,602 candidates of 546 queries, 4 to 10 each; skipped 97 lists")
    relevant = zip(retrieval_set.relevant, candidates.positions, strict=True)
    assert all(set(judged.tolist()) <= set(listed.tolist()) for judged, listed in relevant)
    run = bm25_run(retrieval_set, depth=len(retrieval_set.documents))
    ids = list(retrieval_set.document_ids)
    scores = [
        np.array([run[query].get(ids[document], 0.0) for document in documents])
        for query, documents in zip(retrieval_set.query_ids, candidates.positions, strict=True)
    ]
    values = evaluate_candidates(scores, candidates, retrieval_set)
    # The README has .771, .725 and .710 with another tokeniser; without stemming ours would give .774, .731, .711.
    assert values["nDCG@10"] == pytest.approx(0.7686, abs=1e-4)
    assert values["MRR@10"] == pytest.approx(0.7220, abs=1e-4)
    assert values["MAP@100"] == pytest.approx(0.7037, abs=1e-4)
    assert values["Recall@100"] == 1.0
    before = evaluate_candidates(candidates.first_stage_scores, candidates, retrieval_set)
    assert before["nDCG@10"] == pytest.approx(0.7213, abs=1e-4)


def test_real_lists_agree_with_trec_eval(shared_data: Path) -> None:
    retrieval_set, candidates = judged_lists(shared_data, "dev")
    rng = np.random.default_rng(1)
    scores = [rng.permutation(len(documents)).astype(np.float64) for documents in candidates.positions]
    ids = list(retrieval_set.document_ids)
    run = {
        query: {ids[document]: score for document, score in zip(documents.tolist(), own.tolist(), strict=True)}
        for query, documents, own in zip(retrieval_set.query_ids, candidates.positions, scores, strict=True)
    }
    qrels = {
        query: {each: int(gain) for each, gain in judged.items()} for query, judged in qrels_of(retrieval_set).items()
    }
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map_cut.100"}).evaluate(run)
    ours = metrics_per_query(ranks_in_candidates(scores, candidates, retrieval_set))
    for i, query in enumerate(retrieval_set.query_ids):
        assert ours["nDCG@10"][i] == pytest.approx(theirs[query]["ndcg_cut_10"], abs=1e-9)
        assert ours["MAP@100"][i] == pytest.approx(theirs[query]["map_cut_100"], abs=1e-9)


def test_bm25_candidates_have_the_metrics_of_bm25(shared_data: Path) -> None:
    retrieval_set = load_retrieval_set(shared_data / "cranfield", "test")
    candidates = open_candidates("bm25", retrieval_set, depth=100)
    assert max(map(len, candidates.positions)) == 100
    before = evaluate_candidates(candidates.first_stage_scores, candidates, retrieval_set)
    expected = mean_metrics(ranks_in_run(bm25_run(retrieval_set), qrels_of(retrieval_set)))
    assert before["nDCG@10"] == pytest.approx(expected["nDCG@10"], abs=1e-12)
    assert before["Recall@100"] == pytest.approx(expected["Recall@100"], abs=1e-3)  # a tie at the cut is decided


def test_keys_order_by_score_then_position_and_are_unpacked() -> None:
    scores = torch.tensor([[-1.5, 0.0, -0.0, 3.25, 3.25, -torch.inf, 1e-40, -1e-40]])
    positions = torch.tensor([9, 5, 4, 2**32 - 2, 0, 1, 3, 2])
    keys = pack(scores, positions)[0]
    order = keys.argsort(descending=True).tolist()
    assert order == [4, 3, 6, 2, 1, 7, 0, 5]
    unpacked_scores, unpacked_positions = unpack(keys.numpy())
    assert unpacked_scores.tolist() == scores[0].double().tolist()
    assert unpacked_positions.tolist() == positions.tolist()


def encoded_set(queries: Tensor, documents: Tensor, distinct_index: list[int], block: int) -> EncodedSet:
    """An encoded set; `distinct_index` says which vector each document of the collection has."""
    copies = torch.bincount(torch.tensor(distinct_index), minlength=len(documents))
    return EncodedSet(
        queries=queries,
        documents=documents,
        copies=copies,
        distinct_index=np.array(distinct_index),
        first_document=0,
        block_size=block,
        offsets=torch.zeros(len(queries) + 1, dtype=torch.int64),
        relevant=torch.zeros(0, dtype=torch.int64),
        gains=np.zeros(0),
        own=torch.full((len(queries),), -1),
        device=torch.device("cpu"),
    )


def enumerate_top(queries: Tensor, documents: Tensor, distinct_index: list[int], depth: int) -> list[dict[str, float]]:
    """Float64 reference: all scores, sorted; only ties need to be equal in float64 too."""
    normal = torch.nn.functional.normalize
    scores = (normal(queries.double()) @ normal(documents.double()).T).numpy()[:, distinct_index]
    orders = [np.lexsort((np.arange(len(distinct_index)), -own))[:depth] for own in scores]
    return [{f"d{i}": own[i] for i in order.tolist()} for order, own in zip(orders, scores, strict=True)]


@pytest.mark.parametrize("block", [7, 64, 4096])
@pytest.mark.parametrize("dim", [None, 5])
@pytest.mark.parametrize("depth", [1, 10, 500])
def test_nearest_documents_equal_enumeration(small_of: Any, block: int, dim: int | None, depth: int) -> None:
    generator = torch.Generator().manual_seed(4)
    queries = torch.randn(300, 24, generator=generator)
    documents = torch.randn(60, 24, generator=generator)
    distinct_index = [*range(60), *[3, 3, 50, 0, 59] * 4]  # copies come after the documents, and before them below
    distinct_index = [distinct_index[i] for i in torch.randperm(80, generator=generator).tolist()]
    run = search_top(encoded_set(queries, documents, distinct_index, block), small_of(300, 80), depth, dim=dim)
    expected = enumerate_top(queries[:, :dim], documents[:, :dim], distinct_index, depth)
    assert [list(each) for each in run.values()] == [list(each) for each in expected]
    for ours, theirs in zip(run.values(), expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.fixture
def small_of(tmp_path: Path) -> Any:
    """Makes a set with these numbers of queries and documents; their texts do not matter."""

    def make(queries: int, documents: int) -> RetrievalSet:
        asked, texts = [f"q {i}" for i in range(queries)], [f"d {i}" for i in range(documents)]
        return write_beir(tmp_path / "of", texts, asked, {f"q{i}": {"d0": 1} for i in range(queries)})

    return make


@pytest.mark.parametrize("block", [8, 64])
def test_ties_at_the_cut_go_by_the_collection(small_of: Any, block: int) -> None:
    vector = torch.randn(1, 16)
    encoded = encoded_set(torch.randn(3, 16), vector.repeat(40, 1), list(range(40)), block)
    for query in search_top(encoded, small_of(3, 40), 13).values():
        assert list(query) == [f"d{i}" for i in range(13)]


def top_of(model: Path, folder: Path, depth: int) -> Run:
    retrieval_set = load_retrieval_set(folder, "test")
    encoded = encode_set(Embedder.from_pretrained(model), retrieval_set, query_max_length=16, document_max_length=16)
    return search_top(encoded, retrieval_set, depth)


DEPTHS = {"uneven": 9, "one": 3, "equal": 4, "own": 5}


def run_rank(rank: int, folder: Path) -> None:
    runs = {name: top_of(folder / "bert", folder / name, depth) for name, depth in DEPTHS.items()}
    (folder / f"{rank}.json").write_text(json.dumps(runs))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_retrieve_what_one_does(tmp_path: Path, world: int) -> None:
    random_set(tmp_path / "uneven", documents=41, queries=13)
    random_set(tmp_path / "one", documents=1, queries=2)
    documents = [*["alpha beta", "gamma"] * 4, "delta", "alpha  beta"]
    write_beir(tmp_path / "equal", documents, ["alpha beta", "gamma"], {"q0": {"d9": 1}, "q1": {"d5": 2}})
    write_queries_among_documents(tmp_path / "own")
    bert = tiny_bert(tmp_path / "bert")
    alone = {name: top_of(bert, tmp_path / name, depth) for name, depth in DEPTHS.items()}
    assert [list(each) for each in alone["equal"].values()] == [["d0", "d2", "d4", "d6"], ["d1", "d3", "d5", "d7"]]
    run_ranks(world, run_rank, tmp_path)
    for rank in range(world):
        runs = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in DEPTHS:
            assert {query: list(each) for query, each in runs[name].items()} == {
                query: list(each) for query, each in alone[name].items()
            }
            for query, each in runs[name].items():
                assert each == pytest.approx(alone[name][query], abs=1e-6)


def test_top_documents_as_candidates_measure_as_the_embedder(tmp_path: Path, bert: Path) -> None:
    retrieval_set = random_set(tmp_path / "set", documents=60, queries=20)
    embedder = Embedder.from_pretrained(bert)
    encoded = encode_set(embedder, retrieval_set, query_max_length=16, document_max_length=16)
    candidates = Candidates.from_run(search_top(encoded, retrieval_set, 60, dim=24), retrieval_set, 60)
    assert evaluate_candidates(candidates.first_stage_scores, candidates, retrieval_set) == mean_metrics(
        relevant_ranks(encoded, 24)
    )
