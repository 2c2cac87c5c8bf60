"""Histograms: their common range, heights of bars, and scores that are not finite."""

import numpy as np

from nestling.report.histograms import histograms


def test_histograms_share_their_range_and_leave_out_nan() -> None:
    one, other = histograms({"a": np.array([0, 0, 1, np.nan], np.float32), "b": np.array([0.5], np.float32)})
    assert (one.count, other.count, round(one.mean, 6)) == (3, 1, 0.333333)
    assert [bar.height for bar in other.bars if bar.height] == [100.0]
    heights = [bar.height for bar in one.bars]
    np.testing.assert_allclose([heights[0], heights[-1], sum(heights)], [200 / 3, 100 / 3, 100])
    (nothing,) = histograms({"a": np.array([np.nan], np.float32)})
    assert (nothing.count, sum(bar.height for bar in nothing.bars)) == (0, 0)


def test_scores_that_differ_by_rounding_only_are_in_the_middle() -> None:
    one, other = histograms({"a": np.array([1.0, 1.0 - 2e-16]), "b": np.array([1.0, np.inf, -np.inf])})
    assert (one.count, other.count, other.mean) == (2, 1, 1.0)
    assert [number for number, bar in enumerate(one.bars) if bar.height] == [23, 24], "side by side in the middle"
