"""Histograms: ranges, shares, what is not known."""

import numpy as np

from nestling.report.histograms import histograms


def test_histograms_share_their_range_and_leave_out_what_is_not_known() -> None:
    one, other = histograms({"a": np.array([0, 0, 1, np.nan], np.float32), "b": np.array([0.5], np.float32)})
    assert (one.count, other.count, round(one.mean, 6)) == (3, 1, 0.333333)
    assert [bar.height for bar in other.bars if bar.height] == [100.0]
    heights = [bar.height for bar in one.bars]
    np.testing.assert_allclose([heights[0], heights[-1], sum(heights)], [200 / 3, 100 / 3, 100])
    (nothing,) = histograms({"a": np.array([np.nan], np.float32)})
    assert (nothing.count, sum(bar.height for bar in nothing.bars)) == (0, 0)
