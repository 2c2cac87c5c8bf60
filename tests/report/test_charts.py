"""Line charts: coordinates of points, ticks, and lines with many points."""

import math

import pytest

from nestling.report.charts import (
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    WIDTH,
    Tick,
    downsample,
    drop_overlapping,
    format_number,
    line_chart,
    nice_ticks,
)


def test_coordinates_of_points_are_those_of_their_values() -> None:
    chart = line_chart("t", {"a": [(64, 0.2), (128, 0.4), (256, 0.6)]}, x_label="d", log_x=True)
    assert chart is not None
    (line,) = chart.lines
    (first, y0), (middle, y1), (last, y2) = (tuple(map(float, pair.split(","))) for pair in line.path.split())
    assert last == WIDTH - RIGHT
    assert middle == pytest.approx((first + last) / 2, abs=0.01), "equal factors are equally far apart"
    assert HEIGHT > y0 > y1 > y2 > 0
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.01)
    assert [tick.text for tick in chart.x_ticks] == ["64", "128", "256"]
    assert [tick.text for tick in chart.y_ticks] == ["0.2", "0.3", "0.4", "0.5", "0.6"]
    assert line.marks[1][2] == "a: 0.4 at 128"


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((0.481, 0.486), ("0.35", "0.6")),
        ((0.99, 0.995), ("0.8", "1")),
        ((0.01, 0.02), ("0", "0.2")),
        ((0.2, 0.9), ("0.2", "1")),
    ],
)
def test_an_axis_does_not_blow_up_a_small_change(values: tuple[float, float], ticks: tuple[str, str]) -> None:
    chart = line_chart("t", {"a": [(1, values[0]), (2, values[1])]}, x_label="d", least_span=0.2)
    assert chart is not None
    assert (chart.y_ticks[0].text, chart.y_ticks[-1].text) == ticks


def test_a_level_is_a_horizontal_line() -> None:
    chart = line_chart("t", {"a": [(1, 0.0), (2, 1.0)]}, x_label="d", levels={"level": 0.5})
    assert chart is not None
    begin, end = chart.lines[0].path.split()
    assert begin.split(",")[1] == end.split(",")[1]
    assert (float(begin.split(",")[0]), float(end.split(",")[0])) == (LEFT, WIDTH - RIGHT)


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart("t", {"a": []}, x_label="d") is None
    assert line_chart("t", {"a": []}, x_label="d", levels={"level": 0.5}) is None


def test_a_single_point_and_equal_values_are_drawn() -> None:
    for points in ([(5, 0.5)], [(1, 0.0), (2, 0.0)]):
        chart = line_chart("t", {"a": points}, x_label="d")
        assert chart is not None
        assert all(math.isfinite(tick.at) for tick in (*chart.x_ticks, *chart.y_ticks))
        assert "nan" not in chart.lines[0].path


def test_long_lines_are_averaged() -> None:
    points = [(float(step), float(step % 2)) for step in range(10 * MAX_POINTS)]
    averaged = downsample(points)
    assert len(averaged) == MAX_POINTS
    assert averaged[0] == (4.5, 0.5)
    assert downsample(points[:MAX_POINTS]) == points[:MAX_POINTS]


def test_ticks_are_round_and_do_not_touch() -> None:
    ticks = nice_ticks(0.13, 0.68)
    assert ticks[0] <= 0.13 and ticks[-1] >= 0.68
    assert nice_ticks(1, 39, inside=True) == [10.0, 20.0, 30.0]
    ticks = drop_overlapping([Tick(50, "256"), Tick(55, "384"), Tick(300, "1024")])
    assert [tick.text for tick in ticks] == ["384", "1024"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.35, "0.35"), (1536, "1536"), (12_500, "12.5k"), (3e6, "3M"), (2e-5, "2e-5"), (0.00015, "1.5e-4")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text
