"""Lines of a details file, against the metrics and scores that they come from."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nestling.models.embedder import Embedder
from nestling.records import RetrievalSet
from nestling.retrieval import (
    Candidates,
    EmbeddingPrecision,
    EncodedSet,
    RetrievalDetails,
    bm25_run,
    candidate_details,
    detail_lines,
    embedder_details,
    encode_set,
    qrels_of,
    ranks_in_candidates,
    relevant_ranks,
    relevant_ranks_and_scores,
    run_details,
)
from nestling.retrieval.details import MAX_CHARACTERS
from nestling.retrieval.metrics import METRICS, mean_metrics, ranks_in_run
from sets import random_set, write_beir


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RetrievalSet:
    """Documents of few words, so that some are equal and tie."""
    return random_set(tmp_path_factory.mktemp("data") / "some", documents=60, queries=20)


@pytest.fixture(scope="module")
def encoded(data: RetrievalSet, bert: Path) -> EncodedSet:
    return encode_set(Embedder.from_pretrained(bert), data, query_max_length=32, document_max_length=32)


def lines_of(
    encoded: EncodedSet, data: RetrievalSet, dim: int, embedding_precision: EmbeddingPrecision
) -> list[dict[str, Any]]:
    ranks, scores = relevant_ranks_and_scores(encoded, dim, embedding_precision)
    return list(detail_lines(embedder_details(encoded, data, ranks, scores, dim, embedding_precision), data))


@pytest.mark.parametrize("dim", [48, 16])
@pytest.mark.parametrize("embedding_precision", ["float32", "int8", "binary"])
def test_means_of_an_embedders_lines_are_its_metrics(
    encoded: EncodedSet, data: RetrievalSet, dim: int, embedding_precision: EmbeddingPrecision
) -> None:
    lines = lines_of(encoded, data, dim, embedding_precision)
    assert [line["query_id"] for line in lines] == list(data.query_ids)
    for name, mean in mean_metrics(relevant_ranks(encoded, dim, embedding_precision)).items():
        assert np.mean([line["metrics"][name] for line in lines]) == mean


@pytest.mark.parametrize("embedding_precision", ["float32", "int8", "binary"])
def test_first_judged_and_other_documents_of_an_embedder(
    encoded: EncodedSet, data: RetrievalSet, embedding_precision: EmbeddingPrecision
) -> None:
    """Ranks, scores and relevance of `judged` agree with those of `first`."""
    texts = dict(zip(data.document_ids, data.documents, strict=True))
    for line, relevant in zip(lines_of(encoded, data, 48, embedding_precision), qrels_of(data).values(), strict=True):
        scores = [each["score"] for each in line["first"]]
        assert len(scores) == 10
        assert scores == sorted(scores, reverse=True)
        assert all(each["text"] == texts[each["id"]] for each in line["first"] + line["judged"])
        assert [each["relevance"] for each in line["first"]] == [relevant.get(each["id"], 0) for each in line["first"]]
        by_id = {each["id"]: each["score"] for each in line["first"]}
        for each in line["judged"]:
            assert each["relevance"] == relevant[each["id"]]
            assert each["score"] == pytest.approx(by_id.get(each["id"], each["score"]))
            tied = [rank for rank, score in enumerate(scores, start=1) if score == pytest.approx(each["score"])]
            if tied and each["rank"] <= tied[-1] < 10:
                assert each["rank"] == np.mean(tied)
        assert 10 <= len(line["others"]) <= 20
        assert max(line["others"]) <= scores[0] + 1e-5


def test_scores_of_an_embedder_are_cosines(encoded: EncodedSet, data: RetrievalSet) -> None:
    lines = lines_of(encoded, data, 48, "float32")
    cosines = torch.nn.functional.normalize(encoded.queries, dim=-1) @ encoded.documents[encoded.distinct_index].T
    for i, (line, relevant) in enumerate(zip(lines, data.relevant, strict=True)):
        scores = [each["score"] for each in line["judged"]]
        assert scores == pytest.approx(cosines[i, relevant].tolist(), abs=1e-5)
        for score in line["others"]:
            assert (cosines[i] - score).abs().min() < 1e-5


def check_lists(
    details: RetrievalDetails, run: dict[str, dict[str, float]], data: RetrievalSet
) -> list[dict[str, Any]]:
    lines = list(detail_lines(details, data))
    for line, relevant in zip(lines, qrels_of(data).values(), strict=True):
        listed = run.get(line["query_id"], {})
        assert [each["score"] for each in line["first"]] == sorted(listed.values(), reverse=True)[:10]
        assert {each["id"]: each["score"] for each in line["judged"]} == {name: listed.get(name) for name in relevant}
        assert all((each["rank"] is None) == (each["id"] not in listed) for each in line["judged"])
        assert len(line["others"]) == min(20, len(listed.keys() - relevant.keys()))
    for name, mean in mean_metrics(details.ranks).items():
        assert np.mean([line["metrics"][name] for line in lines]) == mean
    return lines


def test_lists_and_candidates(data: RetrievalSet) -> None:
    run = bm25_run(data)
    run.pop(next(iter(run)))
    run[data.query_ids[1]]["from elsewhere"] = 1e3
    lines = check_lists(run_details(run, data, ranks_in_run(run, qrels_of(data))), run, data)
    assert lines[0]["first"] == lines[0]["others"] == []
    assert lines[1]["first"][0] == {"id": "from elsewhere", "text": None, "score": 1e3, "relevance": 0.0}

    candidates = Candidates.from_run(run, data, 12)
    values = [np.arange(len(documents), dtype=np.float64) for documents in candidates.positions]  # reversed order
    reranked = {
        query: {data.document_ids[i]: score for i, score in zip(documents.tolist(), own.tolist(), strict=True)}
        for query, documents, own in zip(data.query_ids, candidates.positions, values, strict=True)
    }
    ranks = ranks_in_candidates(values, candidates, data)
    check_lists(candidate_details(values, candidates, data, ranks), reranked, data)


def test_lines_name_the_groups_of_queries(data: RetrievalSet) -> None:
    run: dict[str, dict[str, float]] = {query: {} for query in data.query_ids}
    ranks = ranks_in_run(run, qrels_of(data))
    groups = [f"manual {i % 3}" for i in range(len(data.query_ids))]
    lines = list(detail_lines(run_details(run, data, ranks), replace(data, groups=groups)))
    assert [line["group"] for line in lines] == groups
    assert all("group" not in line for line in detail_lines(run_details(run, data, ranks), data))


def test_long_texts_are_cut_and_lines_are_json(tmp_path: Path) -> None:
    data = write_beir(tmp_path / "long", ["x " * MAX_CHARACTERS, "y"], ["y", "z"], {"q0": {"d0": 1}, "q1": {"d1": 2}})
    run = {"q0": {"d0": 1.0}}
    first, last = detail_lines(run_details(run, data, ranks_in_run(run, qrels_of(data))), data)
    assert len(first["first"][0]["text"]) == len(first["judged"][0]["text"]) == MAX_CHARACTERS + 2
    assert last["judged"] == [{"id": "d1", "text": "y", "relevance": 2.0, "score": None, "rank": None}]
    assert list(first["metrics"]) == list(METRICS)
    assert "NaN" not in json.dumps([first, last])
    assert not math.isnan(first["metrics"]["nDCG@10"])
