"""Significance of the difference between two systems that were measured on the same queries.

Both methods are paired: they use the difference on each query, so queries that are hard for both systems add no
variance. The randomisation test gives the probability of a mean difference at least as large if the two systems were
exchanged at random on each query (Smucker, Allan and Carterette 2007, "A Comparison of Statistical Significance Tests
for Information Retrieval Evaluation"). The bootstrap gives a confidence interval of the mean difference over other
queries of the same kind (Sakai 2006, "Evaluating Evaluation Metrics based on the Bootstrap").

Shape legend: Q queries, M metrics, b samples drawn at once.
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
    generator, extreme = np.random.default_rng(seed), np.ones(differences.shape[1])
    for size in blocks(samples, len(differences)):
        signs = 1.0 - 2.0 * generator.integers(2, size=(size, len(differences)), dtype=np.int8)  # [b, Q]
        extreme += (np.abs(signs @ differences) >= threshold).sum(axis=0)
    p: Floats = extreme / (samples + 1)
    return p


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
    differences: Floats, *, level: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> tuple[Floats, Floats]:
    """Lower and upper end of the percentile bootstrap interval of the mean difference, both [M] float64.

    Args:
        differences: [Q, M] float64, metrics of one system minus those of the other, Q at least 1.
        level: Confidence level, the fraction of resampled means inside the interval.
        samples: How often to draw Q queries with replacement.
        seed: Seed of the random generator.
    """
    assert len(differences) > 0
    assert 0 < level < 1
    count, generator = len(differences), np.random.default_rng(seed)
    means = []
    for size in blocks(samples, count):
        drawn = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)  # [b, Q]
        means.append(weights @ differences / count)
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def blocks(samples: int, count: int) -> Iterator[int]:
    """Split `samples` draws over `count` queries into blocks of at most `BLOCK` random numbers; yields block sizes."""
    size = max(1, BLOCK // count)
    for start in range(0, samples, size):
        yield min(size, samples - start)
