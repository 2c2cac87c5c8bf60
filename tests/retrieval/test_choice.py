"""Two rankings as one, and what a dev set chooses of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nestling.records import RetrievalSet
from nestling.retrieval import Candidates, reciprocal_rank_fusion, weighted_fusion
from nestling.retrieval.choice import Choice, choose, fusion_of
from nestling.retrieval.metrics import Floats
from sets import write_beir

TEXTS = ["alpha", "beta", "gamma"]
QUERIES = 12
# Of each query the relevant document is d0, which the first stage finds first for every third query.
FIRST = [[0.3, 0.2, 0.1], [0.2, 0.3, 0.1], [0.2, 0.25, 0.1]] * (QUERIES // 3)
HELPS = [[1.0, -1.0, 0.0]] * QUERIES
EMBEDDERS = {"base": 0.5, "trained": 0.6}


def as_scores(values: Sequence[Sequence[float]]) -> list[Floats]:
    return [np.array(each, dtype=np.float64) for each in values]


@pytest.fixture
def data(tmp_path: Path) -> RetrievalSet:
    qrels = {f"q{i}": {"d0": 1} for i in range(QUERIES)}
    return write_beir(tmp_path / "small", TEXTS, [f"query {i}" for i in range(QUERIES)], qrels)


def chosen(data: RetrievalSet, scores: Sequence[Sequence[float]], groups: Sequence[str] | None = None) -> Choice:
    candidates = Candidates([np.arange(3)] * QUERIES, as_scores(FIRST))
    return choose(
        EMBEDDERS,
        data=replace(data, groups=groups),
        depth=3,
        reranker="reranker",
        scores=as_scores(scores),
        candidates=candidates,
    )


def test_weighted_fusion_by_hand() -> None:
    first, second = as_scores([[3.0, 1.0], [5.0, 5.0], []]), as_scores([[10.0, 30.0], [0.0, 2.0], []])
    fused = weighted_fusion(first, second, 0.25)
    assert [each.tolist() for each in fused] == [[0.5, -0.5], [-0.25, 0.25], []]


def test_a_weight_of_0_or_1_is_the_order_of_one_alone() -> None:
    generator = np.random.default_rng(0)
    first, second = ([generator.normal(size=9) for _ in range(20)] for _ in range(2))
    for weight, alone in ((0.0, first), (1.0, second)):
        fused = weighted_fusion(first, second, weight)
        assert [each.argsort().tolist() for each in fused] == [each.argsort().tolist() for each in alone]


def test_a_reranker_that_helps_gets_the_smallest_of_the_best_weights(data: RetrievalSet) -> None:
    choice = chosen(data, HELPS)
    assert choice.embedder == "trained" and choice.trained("embedder")
    assert choice.reranker == "reranker" and choice.trained("reranker")
    assert choice.weights is not None and choice.p_values is not None
    first, second = 1.0, 1 / np.log2(3)
    assert choice.weights[0] == pytest.approx((first + 2 * second) / 3)
    assert max(choice.weights) == 1.0
    assert choice.rerank_weight == choice.weights.index(1.0) / 10 > 0
    assert choice.p_values[0] == 1.0
    assert choice.p_values[10] == pytest.approx(2**-8, abs=2e-3), "all eight queries that change are better"
    assert "chosen reranker: reranker with weight" in list(choice.lines())[1]


def test_checkpoints_that_dev_chose_among_count_as_trials(data: RetrievalSet) -> None:
    candidates = Candidates([np.arange(3)] * QUERIES, as_scores(FIRST))

    def of_checkpoints(checkpoints: int) -> Choice:
        given = {"reranker": "reranker", "scores": as_scores(HELPS), "candidates": candidates}
        return choose(EMBEDDERS, data=data, depth=3, **given, checkpoints=checkpoints)

    one, many = of_checkpoints(1), of_checkpoints(40)
    assert one.p_values is not None and many.p_values is not None
    assert many.p_values == pytest.approx([min(1.0, 40 * p) for p in one.p_values])
    assert (one.reranker, many.reranker) == ("reranker", None)
    assert "its gain is not sure" in list(many.lines())[1]
    assert list(many.lines())[1].endswith(", of 40 checkpoints measured on it)")


def test_a_reranker_that_harms_or_changes_nothing_is_not_used(data: RetrievalSet) -> None:
    for scores in ([[-1.0, 1.0, 0.0]] * QUERIES, [[0.0, 0.0, 0.0]] * QUERIES):
        choice = chosen(data, scores)
        assert (choice.reranker, choice.rerank_weight) == (None, 0.0)
        assert not choice.trained("reranker")
        assert "chosen reranker: none, for it does not help at any weight" in list(choice.lines())[1]


def test_a_gain_that_few_queries_carry_is_not_sure(data: RetrievalSet) -> None:
    choice = chosen(data, [*HELPS[:3], *[[1.0, 1.0, 1.0]] * (QUERIES - 3)])
    assert choice.weights is not None and max(choice.weights) > choice.weights[0]
    assert (choice.reranker, choice.rerank_weight) == (None, 0.0)
    line = list(choice.lines())[1]
    assert "chosen reranker: none, for its gain is not sure at any weight" in line
    assert f"{max(choice.weights):.4f} with weight 0." in line and "p = 0." in line


def test_a_gain_that_few_groups_carry_is_not_sure(data: RetrievalSet) -> None:
    alone = chosen(data, HELPS, [f"own {i:02}" for i in range(QUERIES)])
    assert (alone.reranker, alone.groups) == ("reranker", QUERIES)
    assert alone.p_values == chosen(data, HELPS).p_values
    grouped = chosen(data, HELPS, [f"manual {i % 4}" for i in range(QUERIES)])
    assert (grouped.reranker, grouped.groups) == (None, 4)
    assert grouped.weights == alone.weights
    line = list(grouped.lines())[1]
    assert "12 dev queries in 4 groups" in line and "none, for no gain is sure on so few groups of queries, 4 (" in line


def test_a_trained_embedder_that_is_no_better_is_not_chosen(data: RetrievalSet) -> None:
    for value in (0.5, 0.4):
        choice = choose({"base": 0.5, "trained": value}, data=data, depth=3)
        assert choice.embedder == "base" and not choice.trained("embedder")
        assert len(list(choice.lines())) == 1, "there was no reranker to choose"


def test_the_file_of_a_choice_says_how_to_fuse(data: RetrievalSet, tmp_path: Path) -> None:
    path, choice = tmp_path / "choice.json", chosen(data, HELPS)
    path.write_text(choice.to_json())
    assert Choice.read(path) == choice
    first, second = as_scores(FIRST), as_scores(HELPS)
    for weight in (str(path), choice.rerank_weight):
        fused = fusion_of(weight)(first, second)
        assert [each.argmax() for each in fused] == [0] * QUERIES
    assert [each.tolist() for each in fusion_of(None)(first, second)] == [
        each.tolist() for each in reciprocal_rank_fusion(first, second)
    ]
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"choice\.json"):
        Choice.read(path)
    with pytest.raises(ValueError, match=r"no such file; expected what scripts/choose\.py --output wrote"):
        fusion_of(str(tmp_path / "none"))
