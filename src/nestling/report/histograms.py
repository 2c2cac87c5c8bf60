"""Histograms as a template draws them."""

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
        left: Where it begins.
        width: How wide it is.
        height: Share of its series, in terms of the highest bar.
        text: What it stands for.
    """

    left: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Series:
    """A histogram of some scores.

    Args:
        name: What they are.
        count: How many are known.
        mean: Their mean.
        bars: The histogram, over the same range as that of the others in a chart.
    """

    name: str
    count: int
    mean: float
    bars: Sequence[Bar]


def histograms(series: Mapping[str, NDArray[np.floating]]) -> list[Series]:
    """Histograms of some scores over their common range; what is not finite is left out."""
    known = {name: values[np.isfinite(values)].astype(np.float64) for name, values in series.items()}
    edges = bin_edges(np.concatenate(list(known.values())))
    fractions = {name: np.histogram(values, edges)[0] / max(len(values), 1) for name, values in known.items()}
    highest = max(float(fraction.max()) for fraction in fractions.values()) or 1.0
    return [
        Series(
            name,
            len(values),
            float(values.mean()) if len(values) else float("nan"),
            bars(fractions[name], edges, highest),
        )
        for name, values in known.items()
    ]


def bin_edges(values: Floats) -> Floats:
    """Ends of the bins; scores that differ by rounding alone, as a collapsed model's do, are in the middle."""
    if not len(values) or np.ptp(values) <= 1e-9 * np.abs(values).max():
        values = values[:1] if len(values) else np.zeros(1)
    edges: Floats = np.histogram_bin_edges(values, BINS)
    return edges


def bars(fractions: Floats, edges: Floats, highest: float) -> list[Bar]:
    width = 100 / len(fractions)
    return [
        Bar(i * width, width, 100 * fraction / highest, f"{low:.3f} to {high:.3f}: {fraction:.1%}")
        for i, (fraction, low, high) in enumerate(
            zip(fractions.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        )
    ]
