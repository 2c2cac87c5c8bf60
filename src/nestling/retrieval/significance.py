"""Significance of the difference between two systems that were measured on the same queries.

Both methods are paired: they use the difference on each query, so queries that are hard for both systems add no
variance. The randomisation test gives the probability of a mean difference at least as large if the two systems were
exchanged at random on each query (Smucker, Allan and Carterette 2007, "A Comparison of Statistical Significance Tests
for Information Retrieval Evaluation"). The bootstrap gives a confidence interval of the mean difference over other
queries of the same kind (Sakai 2006, "Evaluating Evaluation Metrics based on the Bootstrap").

Where queries come in groups that are alike, such as those of one manual, the groups are exchanged: a difference that
few of them carry is no proof for another group, however many queries they have.

Shape legend: Q queries, G groups, M metrics, W settings, b samples drawn at once.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from nestling.retrieval.metrics import Floats

SAMPLES = 10_000
# Random numbers that are drawn at once, which bounds memory.
BLOCK = 1 << 22


def randomisation_p(differences: Floats, *, samples: int = SAMPLES, seed: int = 0) -> Floats:
    """Two-sided p value of the paired randomisation test, by flipping signs of queries at random: [M] float64.

    The observed signs count as one of the samples (Phipson and Smyth 2010), so p is never 0 and the test is exact at
    any number of samples.

    Args:
        differences: [Q, M] float64, metrics of one system minus those of the other, Q at least 1.
        samples: How many assignments of signs to draw.
        seed: Seed of the random generator.
    """
    assert len(differences) > 0
    observed = np.abs(differences.sum(axis=0))
    # Sums of the same values in another order may differ in their last bits.
    threshold = observed - 1e-12 * np.abs(differences).sum(axis=0)
    extreme = np.ones(differences.shape[1])
    for signs in random_signs(samples, len(differences), seed):
        extreme += (np.abs(signs @ differences) >= threshold).sum(axis=0)
    p: Floats = extreme / (samples + 1)
    return p


def gain_p(gains: Floats, *, samples: int = SAMPLES, seed: int = 0) -> Floats:
    """One-sided p values of the gains of W settings, corrected for the choice among them: [W] float64.

    The single-step max-T procedure (Westfall and Young 1993, "Resampling-Based Multiple Testing") with the
    randomisation test: the probability that the largest t of all settings is at least that of this one if the signs of
    the units were drawn at random, those of all settings together. t is the sum of the gains divided by the root of the
    sum of their squares. Settings that change nothing have p = 1.

    Args:
        gains: [Q, W] float64, of each unit (a query, or a group of queries) the metric with each setting less that of
            the baseline; Q at least 1.
        samples: How many assignments of signs to draw.
        seed: Seed of the random generator.
    """
    assert len(gains) > 0
    norms = np.sqrt((gains**2).sum(axis=0))
    scaled = np.divide(gains, norms, out=np.zeros_like(gains), where=norms > 0)
    observed = scaled.sum(axis=0)
    threshold = np.where(norms > 0, observed - 1e-12 * np.abs(scaled).sum(axis=0), -np.inf)
    extreme = np.ones(gains.shape[1])
    for signs in random_signs(samples, len(gains), seed):
        largest = np.sort((signs @ scaled).max(axis=1))
        extreme += len(largest) - np.searchsorted(largest, threshold)
    p: Floats = extreme / (samples + 1)
    return p


def sums_of_groups(values: Floats, groups: Sequence[str] | None) -> Floats:
    """The sums of [Q, M] values over the queries of each group, [G, M]; the values themselves without groups."""
    if groups is None:
        return values
    _, group_of = np.unique(np.array(groups), return_inverse=True)
    sums = np.zeros((int(group_of.max()) + 1, values.shape[1]))
    np.add.at(sums, group_of, values)
    return sums


def holm(p_values: Sequence[float]) -> list[float]:
    """p values of several tests, corrected for their number (Holm 1979), in the order given.

    Where those at most 0.05 are called differences, the probability of one or more wrong ones is at most 0.05.
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, test in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[test]))
        corrected[test] = highest
    return corrected


def bootstrap_interval(
    differences: Floats,
    groups: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    samples: int = SAMPLES,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Lower and upper end of the percentile bootstrap interval of the mean difference, both [M] float64.

    Args:
        differences: [Q, M] float64, metrics of one system minus those of the other, Q at least 1.
        groups: Of each query its group; groups are then drawn whole, as many as there are. None draws queries.
        level: Confidence level, the fraction of resampled means inside the interval.
        samples: How often to draw Q queries, or G groups, with replacement.
        seed: Seed of the random generator.
    """
    assert len(differences) > 0
    assert 0 < level < 1
    sums, sizes = sums_of_groups(differences, groups), sums_of_groups(np.ones((len(differences), 1)), groups)
    count, generator = len(sums), np.random.default_rng(seed)
    means = []
    for size in blocks(samples, count):
        drawn = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)  # [b, G]
        means.append(weights @ sums / (weights @ sizes))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def random_signs(samples: int, count: int, seed: int) -> Iterator[Floats]:
    """Blocks [b, count] of signs, 1.0 or -1.0, drawn at random: `samples` rows in all."""
    generator = np.random.default_rng(seed)
    for size in blocks(samples, count):
        yield generator.choice(np.array([-1.0, 1.0]), size=(size, count))


def blocks(samples: int, count: int) -> Iterator[int]:
    """Split `samples` draws over `count` queries into blocks of at most `BLOCK` random numbers; yields block sizes."""
    size = max(1, BLOCK // count)
    for start in range(0, samples, size):
        yield min(size, samples - start)
