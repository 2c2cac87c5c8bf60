"""The randomisation test and the bootstrap, against enumeration and scipy."""

from itertools import product

import numpy as np
import pytest

from nestling.retrieval.metrics import Floats
from nestling.retrieval.significance import (
    BLOCK,
    blocks,
    bootstrap_interval,
    gain_p,
    holm,
    randomisation_p,
    sums_of_groups,
)


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


def exact_gain_p(gains: Floats) -> list[float]:
    """Corrected p values over all assignments of signs."""
    norms = np.sqrt((gains**2).sum(axis=0))
    largest = [max(np.array(signs) @ gains / norms) for signs in product((1, -1), repeat=len(gains))]
    return [float(np.mean(np.array(largest) >= t - 1e-12)) for t in gains.sum(axis=0) / norms]


@pytest.mark.parametrize("shift", [0.0, 0.15, 0.4])
def test_p_of_gains_is_that_of_all_assignments(shift: float) -> None:
    gains = np.random.default_rng(6).normal(shift, 0.3, size=(12, 4)).round(2)
    gains[:, 3] = gains[:, 2] / 2  # settings may be nearly the same
    p = gain_p(gains, samples=200_000)
    assert p == pytest.approx(exact_gain_p(gains), abs=0.004)
    assert p[2] == p[3], "t does not depend on the scale"


def test_p_of_a_gain_counts_the_choice_and_the_direction() -> None:
    generator = np.random.default_rng(7)
    one = generator.normal(0.05, 0.2, size=(60, 1))
    others = np.concatenate([one, generator.normal(0, 0.2, size=(60, 9))], axis=1)
    assert gain_p(others)[0] > 2 * gain_p(one)[0]
    assert gain_p(one)[0] == pytest.approx(randomisation_p(one)[0] / 2, abs=0.004), "one-sided"
    assert gain_p(-np.abs(one))[0] == 1.0
    assert gain_p(np.zeros((5, 2))).tolist() == [1.0, 1.0]


def test_without_a_gain_one_choice_in_twenty_is_called_sure() -> None:
    generator, sure = np.random.default_rng(8), 0
    for seed in range(400):
        gains = generator.normal(0, 1, size=(40, 1)) * np.linspace(0, 2, 11) + generator.normal(0, 0.3, size=(40, 11))
        sure += gain_p(gains, samples=500, seed=seed).min() <= 0.05
    assert 8 <= sure <= 34, "400 sets: 20 expected, standard deviation 4.4"


def test_the_queries_of_a_group_are_one_unit() -> None:
    values = np.arange(8.0).reshape(4, 2)
    assert sums_of_groups(values, None) is values
    assert sums_of_groups(values, ["b", "a", "b", "c"]).tolist() == [[2.0, 3.0], [4.0, 6.0], [6.0, 7.0]]


def test_groups_are_drawn_whole() -> None:
    differences = np.random.default_rng(9).normal(0.1, 0.3, size=(6, 1))
    alone = [f"query {i}" for i in range(6)]
    assert bootstrap_interval(differences, alone) == bootstrap_interval(differences)
    often, groups = np.repeat(differences, 50, axis=0), [name for name in alone for _ in range(50)]
    np.testing.assert_allclose(bootstrap_interval(often, groups), bootstrap_interval(differences), atol=1e-12)
    low, high = bootstrap_interval(often)
    assert high[0] - low[0] < 0.3 * np.subtract(*bootstrap_interval(differences)[::-1])[0]


def test_the_mean_over_groups_of_unequal_size_is_that_over_queries() -> None:
    differences, groups = np.array([[1.0], [0.0], [0.0], [0.0]]), ["a", "b", "b", "b"]
    low, high = bootstrap_interval(differences, groups)
    assert (low[0], high[0]) == (0.0, 1.0), "the means of a a, a b and b b are 1, 1/4 and 0"
