"""Whether a difference between two systems on the same queries is more than chance.

Both methods look at the differences of single queries, so what makes a query hard for both does not count. The
randomisation test says how often a difference as large comes about if the systems are exchanged at random on each query
(Smucker, Allan and Carterette 2007, "A Comparison of Statistical Significance Tests for Information Retrieval
Evaluation"); the bootstrap says between which values the mean lies if other such queries were asked (Sakai 2006,
"Evaluating Evaluation Metrics based on the Bootstrap").

Shape legend: Q queries, M metrics, b samples drawn at once.
"""

from collections.abc import Iterator

import numpy as np

from nestling.retrieval.metrics import Floats

SAMPLES = 10_000
# Numbers that are drawn at once.
BLOCK = 1 << 22


def randomisation_p(differences: Floats, *, samples: int = SAMPLES, seed: int = 0) -> Floats:
    """Two-sided p of the mean difference being 0, by flipping the signs of queries at random: [M] float64.

    The observed signs count as one of the samples (Phipson and Smyth 2010), so p is never 0 and the test is exact at
    any number of samples.

    Args:
        differences: [Q, M], of paired values, Q at least 1.
        samples: How many sets of signs to draw.
        seed: Of the drawing.
    """
    assert len(differences) > 0
    observed = np.abs(differences.sum(axis=0))
    # Sums of the same values in another order may differ in their last bits.
    reached = observed - 1e-12 * np.abs(differences).sum(axis=0)
    generator, extreme = np.random.default_rng(seed), np.ones(differences.shape[1])
    for size in blocks(samples, len(differences)):
        signs = 1.0 - 2.0 * generator.integers(2, size=(size, len(differences)), dtype=np.int8)  # [b, Q]
        extreme += (np.abs(signs @ differences) >= reached).sum(axis=0)
    p: Floats = extreme / (samples + 1)
    return p


def bootstrap_interval(
    differences: Floats, *, level: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> tuple[Floats, Floats]:
    """Lower and upper end of the percentile interval of the mean difference, both [M] float64.

    Args:
        differences: [Q, M], of paired values, Q at least 1.
        level: Share of resampled means inside.
        samples: How often to draw Q queries with replacement.
        seed: Of the drawing.
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
    """Sizes of the parts in which samples of `count` queries are drawn."""
    size = max(1, BLOCK // count)
    for start in range(0, samples, size):
        yield min(size, samples - start)
