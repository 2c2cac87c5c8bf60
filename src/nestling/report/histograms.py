"""Histograms of scores: bars from which histogram.html writes SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestling.retrieval.metrics import Floats

BINS = 48


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram, in percent of the chart's width and height.

    Args:
        left: Left edge.
        width: Width.
        height: Height; 100 is the highest bar of all histograms in the chart.
        text: Tooltip: the range of scores, and the fraction of scores in it.
    """

    left: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Histogram:
    """A histogram of scores.

    Args:
        name: What the scores are of, for the legend.
        count: How many scores are finite; others are left out.
        mean: Mean of the finite scores; NaN if there are none.
        bars: `BINS` bars, over the same range as all histograms of the chart.
    """

    name: str
    count: int
    mean: float
    bars: Sequence[Bar]


def histograms(series: Mapping[str, NDArray[np.floating]]) -> list[Histogram]:
    """Histograms over a common range, of scores by name; scores that are not finite are left out."""
    finite = {name: values[np.isfinite(values)].astype(np.float64) for name, values in series.items()}
    edges = bin_edges(np.concatenate(list(finite.values())))
    fractions = {name: np.histogram(values, edges)[0] / max(len(values), 1) for name, values in finite.items()}
    highest = max(float(fraction.max()) for fraction in fractions.values()) or 1.0
    return [
        Histogram(
            name,
            len(values),
            float(values.mean()) if len(values) else float("nan"),
            bars(fractions[name], edges, highest),
        )
        for name, values in finite.items()
    ]


def bin_edges(values: Floats) -> Floats:
    """Edges of the bins, [BINS + 1] float64.

    Scores that differ by rounding errors only, as those of a collapsed model do, come into the middle of a range of 1.
    """
    if not len(values) or np.ptp(values) <= 1e-9 * np.abs(values).max():
        values = values[:1] if len(values) else np.zeros(1)
    edges: Floats = np.histogram_bin_edges(values, BINS)
    return edges


def bars(fractions: Floats, edges: Floats, highest: float) -> list[Bar]:
    """Bars of the fractions of scores in each bin; a fraction of `highest` is as high as the chart."""
    width = 100 / len(fractions)
    return [
        Bar(i * width, width, 100 * fraction / highest, f"{low:.3f} to {high:.3f}: {fraction:.1%}")
        for i, (fraction, low, high) in enumerate(
            zip(fractions.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        )
    ]
