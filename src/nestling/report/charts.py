"""Charts of lines as a template draws them in SVG, in the units of its view box."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 36
# Points of a line; more are drawn as means of neighbours.
POINTS = 300
# Of the page's style sheet.
COLOURS, DASHES = 6, 4
MARKED = 12

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A place on an axis and what it says there."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Args:
        name: In the legend.
        colour: Number of its colour.
        dash: Number of its dash pattern, since colours alone do not tell lines apart for everyone.
        path: The points of a polyline.
        marks: Its points with what they stand for, if they are few.
    """

    name: str
    colour: int
    dash: int
    path: str
    marks: Sequence[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """Lines over two axes.

    Args:
        title: What it shows.
        x_label: Below the horizontal axis.
        lines: What is drawn.
        x_ticks: Of the horizontal axis.
        y_ticks: Of the vertical axis.
    """

    title: str
    x_label: str
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]

    width, height, left, right, top, bottom = WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM


@dataclass(frozen=True)
class Scale:
    """From values to places."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = map(math.log2, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        share = 0.5 if high == low else (value - low) / (high - low)
        return round(self.begin + share * (self.end - self.begin), 2)


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    x_label: str,
    log_x: bool = False,
    levels: Mapping[str, float] | None = None,
    styles: Mapping[str, tuple[int, int]] | None = None,
) -> Chart | None:
    """A chart of lines of (x, y); None if no line has a point.

    Args:
        title: What it shows.
        lines: By their names; those without a point are left out.
        x_label: What x is.
        log_x: Whether x grows by factors; ticks are then at the values themselves.
        levels: Values that do not depend on x, drawn over the whole width.
        styles: Colour and dash of lines; by default one after the other.
    """
    drawn = {name: thin(points) for name, points in lines.items() if points}
    if not drawn:
        return None
    levels = levels or {}
    xs = sorted({x for points in drawn.values() for x, _ in points})
    ys = [*(y for points in drawn.values() for _, y in points), *levels.values()]
    x_values = xs if log_x else nice_ticks(xs[0], xs[-1], inside=True)
    y_values = nice_ticks(min(ys), max(ys))
    x_scale = Scale(xs[0], xs[-1], LEFT + 6, WIDTH - RIGHT, log_x)
    y_scale = Scale(y_values[0], y_values[-1], HEIGHT - BOTTOM, TOP)
    chosen = {name: (i % COLOURS, i % DASHES) for i, name in enumerate([*drawn, *levels])} | dict(styles or {})
    return Chart(
        title,
        x_label,
        [draw_level(name, y_scale(level), *chosen[name]) for name, level in levels.items()]
        + [draw_line(name, points, *chosen[name], x_scale, y_scale) for name, points in drawn.items()],
        spaced([Tick(x_scale(x), short(x)) for x in x_values]),
        [Tick(y_scale(y), short(y)) for y in y_values],
    )


def draw_level(name: str, y: float, colour: int, dash: int) -> Line:
    return Line(name, colour, dash, f"{LEFT},{y} {WIDTH - RIGHT},{y}", [])


def draw_line(name: str, points: Points, colour: int, dash: int, x_scale: Scale, y_scale: Scale) -> Line:
    placed = [(x_scale(x), y_scale(y)) for x, y in points]
    marks = [(*place, f"{name}: {short(y)} at {short(x)}") for place, (x, y) in zip(placed, points, strict=True)]
    path = " ".join(f"{x},{y}" for x, y in placed)
    return Line(name, colour, dash, path, marks if len(marks) <= MARKED else [])


def thin(points: Points) -> Points:
    """At most so many points as can be seen, each the mean of its neighbours."""
    if len(points) <= POINTS:
        return points
    parts = np.array_split(np.array(points, dtype=np.float64), POINTS)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts]


def nice_ticks(low: float, high: float, *, inside: bool = False) -> list[float]:
    """Round values from below `low` to above `high`, or those between them."""
    from matplotlib.ticker import MaxNLocator

    if low == high:
        low, high = (low, high) if inside else (low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10)
    values = [float(value) for value in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    return [value for value in values if low <= value <= high] or [low] if inside else values


def spaced(ticks: Sequence[Tick]) -> list[Tick]:
    """Without those whose texts would touch, from the right."""
    kept: list[Tick] = []
    for tick in reversed(ticks):
        if not kept or kept[-1].at - tick.at >= 8 + 3.5 * (len(tick.text) + len(kept[-1].text)):
            kept.append(tick)
    return kept[::-1]


def short(value: float) -> str:
    """A number in few characters: 12k, 0.35, 2e-5."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            divisor = 1e3 if name == "k" else unit
            return f"{value / divisor:.3g}{name}"
    if 0 < abs(value) < 1e-3:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.4g}"
