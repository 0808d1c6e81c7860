"""The measurement of how rounds grow: every curve has its points, its slope is that of its upper half, and is drawn."""

import math

import pytest

from benchmarks import growth


def test_every_curve_is_measured_and_drawn() -> None:
    places = {"sampled": (1, 2, 4), "clients": (20, 40, 80), "parameters": (1000, 3000, 10000), "rounds": (2, 3, 4)}
    found = growth.measure(places, 2)
    assert {study: [*curves] for study, curves in found.items()} == {
        "sampled": ["auto", "loop"],
        "clients": ["start", "a round"],
        "parameters": ["auto", "loop"],
        "rounds": ["in memory", "in a folder too"],
    }
    for study, curves in found.items():
        for curve in curves.values():
            assert curve["x"] == pytest.approx(places[study], rel=0.1) and math.isfinite(curve["slope"])
            spans = zip(curve["seconds_min"], curve["seconds"], curve["seconds_max"], strict=True)
            assert all(0 < least <= median <= most for least, median, most in spans)
    axes = growth.picture(found).axes
    assert [ax.get_xlabel() for ax in axes] == [label for *_, label in growth.STUDIES.values()]
    assert {(ax.get_xscale(), ax.get_yscale()) for ax in axes} == {("log", "log")}
    for ax, curves in zip(axes, found.values(), strict=True):
        drawn = {line.get_label().partition(":")[0]: (*line.get_xdata(), *line.get_ydata()) for line in ax.get_lines()}
        assert drawn == {name: (*curve["x"], *curve["seconds"]) for name, curve in curves.items()}


def test_a_slope_is_that_of_the_upper_half() -> None:
    counts = (1, 10, 100, 1000, 10000)
    assert growth.slope(counts, [5, 5, *(0.1 * count for count in counts[2:])]) == pytest.approx(1)
    assert growth.slope(counts, [7.0] * 5) == pytest.approx(0)
