"""Pictures: what is drawn is what was given, into the Axes that were given."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

from fedlab_core.plots import figure, figures
from fedlab_core.plots.clients import MOST_CLIENTS, holdings_bars, holdings_heatmap

DIGITS = tuple("0123456789")


def counts_of(clients: int, classes: int = 10) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 50, (clients, classes))


def drawn(ax: Axes) -> bytes:
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format="png")
    return buffer.getvalue()


def lengths(ax: Axes, clients: int, classes: int) -> np.ndarray:
    """Widths of the drawn bars, (clients, classes), read back from the picture."""
    found = np.zeros((clients, classes))
    for c, bars in enumerate(ax.collections):
        for path in bars.get_paths():
            (x0, y0), (x1, y1) = path.get_extents().get_points()
            found[round((y0 + y1) / 2), c] = x1 - x0
    return found


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (10, 10), (100, 10), (40, 26), (12, 100)])
def test_bars_are_as_long_as_the_counts(clients: int, classes: int) -> None:
    counts, names = counts_of(clients, classes), tuple(f"c{i}" for i in range(classes))
    ax = figure()[1][0, 0]
    assert holdings_bars(ax, counts, names) is ax
    assert np.allclose(lengths(ax, clients, classes), counts)
    assert ax.get_xlim()[1] >= counts.sum(1).max()
    legend = ax.get_legend()
    assert (legend is None) == (classes > 32)
    if legend is not None:
        assert [text.get_text() for text in legend.get_texts()] == list(names)
        looks = {(bars.get_facecolor().tobytes(), bars.get_hatch()) for bars in ax.collections}
        assert len(looks) == classes
    assert drawn(ax).startswith(b"\x89PNG")


def test_heatmap_shows_the_counts() -> None:
    counts = counts_of(10)
    counts[3, 4] = 0
    ax = figure()[1][0, 0]
    assert holdings_heatmap(ax, counts, DIGITS) is ax
    shown = ax.images[0].get_array()
    assert np.array_equal(shown.filled(0), counts) and shown.mask[3, 4]
    assert sorted(int(text.get_text()) for text in ax.texts) == sorted(counts[counts > 0].tolist())
    assert drawn(ax).startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", [holdings_bars, holdings_heatmap])
def test_clients_run_from_top_to_bottom_with_few_numbers(draw) -> None:
    for clients, expected in ((10, list(range(10))), (100, list(range(0, 100, 5)))):
        ax = draw(figure()[1][0, 0], counts_of(clients), DIGITS)
        assert [int(label.get_text()) for label in ax.get_yticklabels()] == expected
        top, bottom = ax.get_ylim()[::-1]
        assert top < bottom


@pytest.mark.parametrize("draw", [holdings_bars, holdings_heatmap])
def test_a_million_clients_are_sampled_and_the_axis_says_so(draw) -> None:
    ax = draw(figure()[1][0, 0], counts_of(1_000_000, 3), ("a", "b", "c"))
    assert ax.get_ylabel() == f"client ({MOST_CLIENTS} of 1,000,000)"
    assert ax.get_yticklabels()[0].get_text() == "0"
    assert drawn(ax).startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", [holdings_bars, holdings_heatmap])
def test_counts_that_do_not_fit(draw) -> None:
    wanted = {(3, 2): r"\(3 clients, 3 classes\)", (3,): r"\(clients, classes\)", (0, 3): r"\(1 clients, 3 classes\)"}
    for shape, accepted in wanted.items():
        with pytest.raises(ValueError, match=f"counts.* accepted: .*{accepted}$"):
            draw(figure()[1][0, 0], np.zeros(shape), ("a", "b", "c"))


def test_clients_without_examples_are_drawn_empty() -> None:
    counts = np.zeros((4, 3), dtype=int)
    for draw in (holdings_bars, holdings_heatmap):
        assert drawn(draw(figure()[1][0, 0], counts, ("a", "b", "c"))).startswith(b"\x89PNG")


def test_figures_are_white_small_and_unknown_to_pyplot() -> None:
    before = pyplot.get_fignums()
    fig, axes = figure(2, 3)
    assert axes.shape == (2, 3) and fig.dpi == 100 and tuple(fig.get_size_inches()) == (6, 3.5)
    assert fig.get_facecolor() == (1, 1, 1, 1)
    assert pyplot.get_fignums() == before


def test_blank_figures_are_alike_but_not_the_same_and_follow_the_settings():
    first, second = (figure(1, 2, (5.0, 2.0)) for _ in range(2))
    first[1][0, 0].plot([0, 1], [0, 1])
    assert not second[1][0, 0].lines and first[0] is not second[0]
    assert [ax.get_position().bounds for ax in second[0].axes] == [ax.get_position().bounds for ax in first[0].axes]
    with matplotlib.rc_context({"grid.linestyle": ":", "xtick.major.size": 11}):
        ((ticked, _),) = figure(1, 2, (5.0, 2.0))[1]
    assert ticked.xaxis.majorTicks[0].get_tick_padding() > first[1][0, 1].xaxis.majorTicks[0].get_tick_padding()
    kept = len(figures._KEPT)
    assert len(figure(4, 4)[0].axes) == 16 and len(figures._KEPT) == kept
    for width in range(1, figures.MOST_KEPT + 4):
        figure(1, 1, (float(width), 1.0))
    assert len(figures._KEPT) == figures.MOST_KEPT
