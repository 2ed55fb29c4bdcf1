"""Facts about the drawing of curves and numbers: ticks, gaps, stacked areas."""

import pytest

from evoid_jax.report import charts
from evoid_jax.report import text as fmt
from evoid_jax.report.charts import Series


def test_ticks_are_round_and_inside():
    assert charts.ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert charts.ticks(0.31, 0.58) == pytest.approx([0.35, 0.4, 0.45, 0.5, 0.55])
    assert charts.ticks(0, 23, 6) == pytest.approx([0, 5, 10, 15, 20])


def test_running_mean_skips_what_is_missing():
    assert charts.running_mean([1, 2, None, 4, 6], 3) == [1.5, 1.5, None, 5.0, 5.0]
    assert charts.running_mean([1, None], 1) == [1, None]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "\N{EN DASH}"),
        (0, "0"),
        (0.5, "0.5"),
        (0.12345, "0.123"),
        (12.345, "12.3"),
        (-0.25, "-0.25"),
        (0.9999, "1"),
        (1500.0, "1500"),
        (1234567, "1.23e6"),
        (0.000123, "1.23e-4"),
        (0.0004, "4e-4"),
    ],
)
def test_number_is_readable(value, expected):
    assert fmt.number(value) == expected


def test_missing_value_breaks_the_curve():
    svg = charts.lines("x", [0, 1, 2, 3], [Series("a", "red", [0.0, None, 1.0, 1.0])])
    path = svg.split(' d="')[1].split('"')[0]
    assert path.count("M") == 2 and path.count("L") == 1


def test_areas_stack_to_the_top():
    svg = charts.areas(
        "x", [0, 1], [Series("a", "red", [0.25, 0.5]), Series("b", "blue", [0.75, 0.5])], high=1
    )
    first, second = (part.split('"')[0].split() for part in svg.split('points="')[1:])
    assert second[:2] == [f"{charts.LEFT},{charts.TOP}", f"{560 - charts.RIGHT},{charts.TOP}"]
    assert second[2:] == first[:2][::-1]  # the second area stands on the first
