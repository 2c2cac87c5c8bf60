"""The randomisation test and the bootstrap, against enumeration and scipy."""

from itertools import product

import numpy as np
import pytest

from nestling.retrieval.metrics import Floats
from nestling.retrieval.significance import BLOCK, blocks, bootstrap_interval, holm, randomisation_p


def exact_p(differences: Floats) -> float:
    """p over all assignments of signs."""
    sums = [abs(np.dot(signs, differences)) for signs in product((1, -1), repeat=len(differences))]
    return float(np.mean(np.array(sums) >= abs(differences.sum()) - 1e-12))


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.4])
def test_p_is_that_of_all_assignments(shift: float) -> None:
    differences = np.random.default_rng(1).normal(shift, 0.3, size=(12, 3)).round(2)
    p = randomisation_p(differences, samples=200_000)
    assert p == pytest.approx([exact_p(column) for column in differences.T], abs=0.004)


def test_p_and_interval_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    differences = np.random.default_rng(2).normal(0.03, 0.25, size=300)
    test = stats.permutation_test(
        (differences,),
        lambda values: abs(np.mean(values)),
        permutation_type="samples",
        alternative="greater",
        n_resamples=20_000,
        rng=np.random.default_rng(3),
    )
    assert randomisation_p(differences[:, None], samples=20_000)[0] == pytest.approx(test.pvalue, abs=0.01)
    interval = stats.bootstrap(
        (differences,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(3)
    ).confidence_interval
    low, high = bootstrap_interval(differences[:, None], samples=20_000)
    assert (low[0], high[0]) == pytest.approx((interval.low, interval.high), abs=0.002)


def test_no_difference_is_none_and_a_constant_one_is_certain() -> None:
    assert randomisation_p(np.zeros((50, 1)))[0] == 1.0
    assert randomisation_p(np.full((50, 1), 0.1))[0] == pytest.approx(1 / 10_001)
    low, high = bootstrap_interval(np.full((50, 1), 0.1))
    assert (low[0], high[0]) == pytest.approx((0.1, 0.1))


def test_metrics_are_tested_on_their_own_and_the_same_seed_gives_the_same() -> None:
    differences = np.random.default_rng(4).normal(0.1, 0.5, size=(40, 2))
    both = randomisation_p(differences, seed=5)
    assert both.tolist() == randomisation_p(differences, seed=5).tolist()
    assert both[0] == randomisation_p(differences[:, :1], seed=5)[0]
    one, two = bootstrap_interval(differences, seed=5), bootstrap_interval(differences, seed=6)
    assert np.all(one[0] < differences.mean(axis=0)) and np.all(differences.mean(axis=0) < one[1])
    assert one[0].tolist() != two[0].tolist()


def test_many_queries_are_drawn_in_blocks() -> None:
    assert list(blocks(10, BLOCK)) == [1] * 10
    assert sum(blocks(10_000, 3_000)) == 10_000
    assert len(list(blocks(10_000, 3_000))) > 1


def test_holm_corrects_for_the_number_of_tests() -> None:
    # 4 x .01; 3 x .02 = .06, and not 2 x .025 = .05, which would be below that of a smaller p; at most 1.
    assert holm([0.025, 0.9, 0.01, 0.02]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
