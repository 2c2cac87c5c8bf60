"""Metrics against all orders of tied documents, against trec_eval, and against numbers worked out by hand."""

import math
from itertools import permutations

import numpy as np
import pytest
import pytrec_eval

from nestling.retrieval.metrics import (
    METRICS,
    average_precision,
    mean_metrics,
    metrics_per_query,
    mrr,
    ndcg,
    ranks_in_run,
    recall,
)

Run = dict[str, dict[str, float]]


def metrics_of_order(order: list[str], gains: dict[str, float], k: int) -> dict[str, float]:
    """Textbook definitions on one ranked list."""
    relevant = {document: gain for document, gain in gains.items() if gain > 0}
    hits = [document in relevant for document in order[:k]]
    dcg = sum(relevant.get(document, 0) / math.log2(i + 2) for i, document in enumerate(order[:k]))
    ideal = sum(gain / math.log2(i + 2) for i, gain in enumerate(sorted(relevant.values(), reverse=True)[:k]))
    return {
        "ndcg": dcg / ideal,
        "mrr": 1 / (hits.index(True) + 1) if any(hits) else 0.0,
        "recall": sum(hits) / len(relevant),
        "map": sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit) / len(relevant),
    }


def mean_over_orders(scores: dict[str, float], gains: dict[str, float], k: int) -> dict[str, float]:
    """Mean over all orders of documents, each then sorted stably: every order of ties is equally frequent."""
    values = [
        metrics_of_order(sorted(order, key=lambda document: -scores[document]), gains, k)
        for order in permutations(scores)
    ]
    return {name: math.fsum(each[name] for each in values) / len(values) for name in values[0]}


def values_at(scores: dict[str, float], gains: dict[str, float], k: int) -> dict[str, float]:
    ranks = ranks_in_run({"q": scores}, {"q": gains})
    values = {
        "ndcg": ndcg(ranks, k),
        "mrr": mrr(ranks, k),
        "recall": recall(ranks, k),
        "map": average_precision(ranks, k),
    }
    return {name: value.item() for name, value in values.items()}


def random_case(rng: np.random.Generator) -> tuple[dict[str, float], dict[str, float]]:
    scores = {f"d{i}": float(rng.integers(0, 4)) for i in range(int(rng.integers(2, 7)))}
    gains = {f"d{i}": float(rng.integers(0, 4)) for i in range(8)}  # some relevant documents are not ranked
    gains["d0"] = 1.0
    return scores, gains


@pytest.mark.parametrize("seed", range(40))
def test_ties_are_averaged_over_every_order(seed: int) -> None:
    scores, gains = random_case(np.random.default_rng(seed))
    for k in (1, 2, 3, 5, 100):
        assert values_at(scores, gains, k) == pytest.approx(mean_over_orders(scores, gains, k), abs=1e-12)


def test_a_constant_scorer_gets_the_score_of_a_random_order() -> None:
    documents = {f"d{i}": 0.5 for i in range(1000)}
    values = values_at(documents, {"d0": 1.0}, 10)
    assert values["recall"] == pytest.approx(0.01)
    assert values["mrr"] == pytest.approx(sum(1 / rank for rank in range(1, 11)) / 1000)
    assert values["ndcg"] == pytest.approx(sum(1 / math.log2(rank + 1) for rank in range(1, 11)) / 1000)


def random_run(rng: np.random.Generator, queries: int, documents: int) -> tuple[Run, dict[str, dict[str, int]]]:
    """A run without ties over part of the documents, graded judgements with zeros."""
    run: Run = {}
    qrels: dict[str, dict[str, int]] = {}
    for i in range(queries):
        listed = rng.permutation(documents)[: rng.integers(1, documents)]
        run[f"q{i}"] = {f"d{j}": float(score) for j, score in zip(listed, rng.permutation(len(listed)), strict=True)}
        judged = rng.permutation(documents)[: rng.integers(1, 40)]
        qrels[f"q{i}"] = {f"d{j}": int(rng.integers(0, 4)) for j in judged}
    return run, qrels


def test_runs_without_ties_agree_with_trec_eval() -> None:
    run, qrels = random_run(np.random.default_rng(0), queries=200, documents=300)
    names = {"nDCG@10": "ndcg_cut_10", "Recall@100": "recall_100", "MAP@100": "map_cut_100"}
    expected = pytrec_eval.RelevanceEvaluator(
        qrels, {"ndcg_cut.10", "recall.100", "map_cut.100", "recip_rank"}
    ).evaluate(run)
    ours = metrics_per_query(ranks_in_run(run, qrels))
    for name, theirs in names.items():
        assert ours[name] == pytest.approx([expected[query][theirs] for query in qrels], abs=1e-9)
    reciprocal = [expected[query]["recip_rank"] for query in qrels]
    assert ours["MRR@10"] == pytest.approx([value if value > 0.0999 else 0.0 for value in reciprocal], abs=1e-9)
    assert any(0 < value < 0.0999 for value in reciprocal)  # the cut at 10 was tested


def test_queries_that_find_nothing_count_zero() -> None:
    qrels = {
        "found": {"a": 1.0},
        "not listed": {"b": 2.0},
        "not in the run": {"c": 1.0},
        "nothing relevant": {"a": 0.0},
    }
    ranks = ranks_in_run(
        {"found": {"a": 1.0, "b": 0.0}, "not listed": {"a": 1.0}, "nothing relevant": {"a": 1.0}}, qrels
    )
    assert len(ranks) == 4
    for name, values in metrics_per_query(ranks).items():
        assert values.tolist() == [1.0, 0.0, 0.0, 0.0], name
    assert mean_metrics(ranks) == dict.fromkeys(METRICS, 0.25)


def test_graded_gain_is_linear() -> None:
    scores = {"a": 3.0, "b": 2.0, "c": 1.0}
    values = values_at(scores, {"a": 1.0, "b": 3.0}, 10)
    discounts = [1 / math.log2(2), 1 / math.log2(3)]
    assert values["ndcg"] == pytest.approx(
        (1 * discounts[0] + 3 * discounts[1]) / (3 * discounts[0] + 1 * discounts[1])
    )


def test_several_relevant_documents_in_one_tie_group_by_hand() -> None:
    # Above: one irrelevant document. The group: two relevant of three, at ranks 2 to 4.
    values = values_at({"x": 2.0, "a": 1.0, "b": 1.0, "y": 1.0}, {"a": 1.0, "b": 1.0}, 10)
    assert values["mrr"] == pytest.approx(2 / 3 * 1 / 2 + 1 / 3 * 1 / 3)
    # The group in the orders R R N, R N R, N R R: average precision (1/2 + 2/3) / 2, (1/2 + 2/4) / 2, (1/3 + 2/4) / 2.
    assert values["map"] == pytest.approx(((1 / 2 + 2 / 3) + (1 / 2 + 1 / 2) + (1 / 3 + 1 / 2)) / 6)
