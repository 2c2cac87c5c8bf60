"""The search for weights, on a score that is a function of them."""

import pytest

from nestling.merging.search import Search, WeightVector, mean_of, with_change


def towards(target: WeightVector) -> tuple[list[WeightVector], "Search"]:
    """A search whose score rises towards target weights, and the list of the weights that it tries."""
    tried: list[WeightVector] = []

    def measure(weights: WeightVector) -> float:
        tried.append(weights)
        return -sum((one - other) ** 2 for one, other in zip(weights, target, strict=True))

    return tried, Search(len(target), measure, budget=60)


def test_inputs_come_first_then_the_soup_of_the_best_of_them() -> None:
    tried, search = towards((0.5, 0.1, 0.4))
    search.run(step=0.25)
    assert tried[:3] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert tried[3:5] == [(0.5, 0, 0.5), mean_of(3, [0, 1, 2])]  # the best two, and the third beside them
    assert [trial.stage for trial in search.trials[:5]] == ["an input"] * 3 + ["greedy soup"] * 2


def test_weights_come_near_the_best_and_none_is_tried_twice() -> None:
    tried, search = towards((0.55, 0.1, 0.35))
    best = search.run(step=0.25)
    assert len(tried) == len(set(tried)) == len(search.trials) <= 60
    assert best.weights == pytest.approx((0.55, 0.1, 0.35), abs=0.03)
    assert best.score == max(trial.score for trial in search.trials)
    assert sum(best.weights) == pytest.approx(1, abs=3e-4)


def test_a_soup_keeps_only_what_raises_the_score() -> None:
    scores = {(1, 0, 0): 3.0, (0, 1, 0): 2.0, (0, 0, 1): 1.0, (0.5, 0.5, 0): 2.5, (0.5, 0, 0.5): 4.0}
    search = Search(3, lambda weights: scores.get(weights, 0.0), budget=5)
    best = search.run(step=0.25)
    assert [trial.weights for trial in search.trials[3:]] == [(0.5, 0.5, 0), (0.5, 0, 0.5)]
    assert best.weights == (0.5, 0, 0.5)


def test_the_budget_holds() -> None:
    tried, search = towards((0.2, 0.3, 0.5))
    search.budget = 7
    search.run(step=0.25)
    assert len(tried) == 7


def test_a_weight_does_not_go_below_0() -> None:
    assert with_change((0.9, 0.1), 1, -0.25) == (1, 0)
    assert with_change((0.5, 0.5), 0, 0.5) == (0.6667, 0.3333)
