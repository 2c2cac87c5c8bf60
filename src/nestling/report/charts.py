"""Line charts: coordinates and texts from which the page template writes SVG, in units of its view box."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Size of a chart and its margins.
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 36
# Points of a line at most; of longer lines neighbouring points are averaged.
MAX_POINTS = 300
# Line styles in the page's style sheet.
COLOURS, DASHES = 6, 4
# What an axis of nDCG@10 spans at least: a change of .005 is then hardly seen, as it should be.
LEAST_SPAN = 0.2
# A line with at most so many points shows each of them as a marker.
MAX_MARKERS = 12

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A tick of an axis: its coordinate, x or y, and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Args:
        name: Its label in the legend.
        colour: Index of its colour, below `COLOURS`.
        dash: Index of its dash pattern, below `DASHES`; not everyone can tell lines apart by colour.
        path: Points of the SVG polyline, "x,y x,y ...".
        marks: Markers as (x, y, tooltip); empty if there are more than `MAX_MARKERS` points.
    """

    name: str
    colour: int
    dash: int
    path: str
    marks: Sequence[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Args:
        title: Its title.
        x_label: Label of the horizontal axis.
        lines: The lines, in the order of the legend.
        x_ticks: Ticks of the horizontal axis.
        y_ticks: Ticks of the vertical axis.
    """

    title: str
    x_label: str
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]

    width, height, left, right, top, bottom = WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM


@dataclass(frozen=True)
class Scale:
    """Maps values from [low, high] to coordinates from `begin` to `end`.

    Args:
        low: The smallest value.
        high: The largest value.
        begin: Coordinate of `low`.
        end: Coordinate of `high`.
        log: Whether the scale is logarithmic.
    """

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = map(math.log2, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        fraction = 0.5 if high == low else (value - low) / (high - low)
        return round(self.begin + fraction * (self.end - self.begin), 2)


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    x_label: str,
    log_x: bool = False,
    levels: Mapping[str, float] | None = None,
    styles: Mapping[str, tuple[int, int]] | None = None,
    least_span: float = 0.0,
) -> Chart | None:
    """A chart of lines through (x, y) points; None if no line has a point.

    Args:
        title: Its title.
        lines: Points by name of the line; lines without points are left out.
        x_label: Label of the horizontal axis.
        log_x: Whether the x axis is logarithmic; its ticks are then at the x values themselves.
        levels: y values by name, drawn as horizontal lines over the whole width.
        styles: (colour, dash) by name; by default lines get the styles in turn.
        least_span: What the y axis spans at least, between 0 and 1 where it is above 0.
    """
    drawn = {name: downsample(points) for name, points in lines.items() if points}
    if not drawn:
        return None
    levels = levels or {}
    xs = sorted({x for points in drawn.values() for x, _ in points})
    ys = [*(y for points in drawn.values() for _, y in points), *levels.values()]
    x_values = xs if log_x else nice_ticks(xs[0], xs[-1], inside=True)
    y_values = nice_ticks(*widened(min(ys), max(ys), least_span))
    x_scale = Scale(xs[0], xs[-1], LEFT + 6, WIDTH - RIGHT, log_x)
    y_scale = Scale(y_values[0], y_values[-1], HEIGHT - BOTTOM, TOP)
    style = {name: (i % COLOURS, i % DASHES) for i, name in enumerate([*drawn, *levels])} | dict(styles or {})
    return Chart(
        title,
        x_label,
        [horizontal_line(name, y_scale(level), *style[name]) for name, level in levels.items()]
        + [line_through(name, points, *style[name], x_scale, y_scale) for name, points in drawn.items()],
        drop_overlapping([Tick(x_scale(x), format_number(x)) for x in x_values]),
        [Tick(y_scale(y), format_number(y)) for y in y_values],
    )


def widened(low: float, high: float, span: float) -> tuple[float, float]:
    """An interval widened on both sides to a span, but not beyond 0 and 1."""
    missing = (span - (high - low)) / 2
    if missing <= 0:
        return low, high
    low = min(max(low - missing, 0.0), 1.0 - span)
    return low, low + span


def horizontal_line(name: str, y: float, colour: int, dash: int) -> Line:
    return Line(name, colour, dash, f"{LEFT},{y} {WIDTH - RIGHT},{y}", [])


def line_through(name: str, points: Points, colour: int, dash: int, x_scale: Scale, y_scale: Scale) -> Line:
    coordinates = [(x_scale(x), y_scale(y)) for x, y in points]
    path = " ".join(f"{x},{y}" for x, y in coordinates)
    if len(points) > MAX_MARKERS:
        return Line(name, colour, dash, path, [])
    tooltips = [f"{name}: {format_number(y)} at {format_number(x)}" for x, y in points]
    marks = [(*each, tooltip) for each, tooltip in zip(coordinates, tooltips, strict=True)]
    return Line(name, colour, dash, path, marks)


def downsample(points: Points) -> Points:
    """Average neighbouring points, so that at most `MAX_POINTS` remain."""
    if len(points) <= MAX_POINTS:
        return points
    parts = np.array_split(np.array(points, dtype=np.float64), MAX_POINTS)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts]


def nice_ticks(low: float, high: float, *, inside: bool = False) -> list[float]:
    """Round tick values that span [low, high]; with `inside` only those that lie in it, or else `low`."""
    from matplotlib.ticker import MaxNLocator

    if low == high:
        low, high = (low, high) if inside else (low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10)
    values = [float(value) for value in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    return [value for value in values if low <= value <= high] or [low] if inside else values


def drop_overlapping(ticks: Sequence[Tick]) -> list[Tick]:
    """Drop ticks of a horizontal axis whose labels would touch; the rightmost is kept."""
    kept: list[Tick] = []
    for tick in reversed(ticks):
        if not kept or kept[-1].at - tick.at >= 8 + 3.5 * (len(tick.text) + len(kept[-1].text)):
            kept.append(tick)
    return kept[::-1]


def format_number(value: float) -> str:
    """A number in few characters: 12k, 0.35, 2e-5."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            divisor = 1e3 if name == "k" else unit
            return f"{value / divisor:.3g}{name}"
    if 0 < abs(value) < 1e-3:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.4g}"
