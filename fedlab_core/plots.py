"""Figures: every function draws into the Axes it is given and returns it; nothing is saved or shown here."""

from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

# Okabe and Ito's palette, for every common colour vision; neighbours in this order differ in lightness.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#F0E442", "#56B4E9", "#D55E00", "#CC79A7", "#000000")
COLORMAP = "cividis"
STYLE: dict[str, Any] = {
    "figure.figsize": (6, 3.5),
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.prop_cycle": cycler(color=OKABE_ITO),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "image.cmap": COLORMAP,
    "lines.linewidth": 2,
    "svg.hashsalt": "fedlab",
}
MOST_CLIENTS = 200  # more rows than this cannot be told apart in a figure; an even selection is drawn
_HATCHES = ("", "////", "....", "xxxx")


def style() -> None:
    """Make the house style Matplotlib's default, for the rest of the process; repeating it changes nothing."""
    matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]


def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None) -> tuple[Figure, NDArray]:
    """A figure in the house style that pyplot does not know of, so it is freed with its last reference, in any thread.

    Args:
        rows: rows of Axes.
        columns: columns of Axes.
        size: width and height in inches, 6 x 3.5 unless given.

    Returns:
        The figure, with constrained layout, and its Axes (rows, columns).
    """
    style()
    fig = Figure(figsize=size or STYLE["figure.figsize"], layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False)


def holdings_bars(ax: Axes, counts: ArrayLike, classes: tuple[str, ...]) -> Axes:
    """Who holds what, as one stacked horizontal bar per client: length = examples, colour (and hatch) = class.

    Args:
        ax: where to draw.
        counts: (clients, classes), as `partition.label_counts` returns them; of more than 200 clients an even selection
            is drawn, and the axis says so.
        classes: names, one per column.

    Raises:
        ValueError: counts do not fit the classes.
    """
    counts, clients, label = _rows(counts, classes)
    right = counts.cumsum(1)
    gap = 0.08 if len(counts) <= 30 else 0.0
    bottom, top = np.arange(len(counts)) - 0.5 + gap, np.arange(len(counts)) + 0.5 - gap
    many = len(classes) > 32  # too many to name: a gradient over the classes instead
    for c, name in enumerate(classes):
        color = matplotlib.colormaps[COLORMAP](c / (len(classes) - 1)) if many else OKABE_ITO[c % 8]
        hatch = None if many else _HATCHES[c // 8]
        x0, x1 = right[:, c] - counts[:, c], right[:, c]
        corners = np.stack([[x0, bottom], [x1, bottom], [x1, top], [x0, top]]).transpose(2, 0, 1)
        bars = PolyCollection(list(corners[counts[:, c] > 0]), facecolor=color, hatch=hatch, label=name)
        bars.set(edgecolor="white" if hatch or gap else color, linewidth=0.5 if gap else 0)
        ax.add_collection(bars, autolim=False)
    _client_axis(ax, clients, label)
    ax.set_xlabel("training examples")
    ax.set_xlim(0, max(1, right.max()) * 1.02)
    if not many:
        columns = -(-len(classes) // 12)
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, title="class", ncols=columns)
    return ax


def holdings_heatmap(ax: Axes, counts: ArrayLike, classes: tuple[str, ...]) -> Axes:
    """Who holds what, as a table of colours: a row per client, a column per class, colour = examples, on a log scale.

    Cells without an example are grey. Small tables (up to 20 clients and 12 classes) also show the numbers.

    Args:
        ax: where to draw.
        counts: (clients, classes), as `partition.label_counts` returns them; of more than 200 clients an even selection
            is drawn, and the axis says so.
        classes: names, one per column.

    Raises:
        ValueError: counts do not fit the classes.
    """
    counts, clients, label = _rows(counts, classes)
    colormap = matplotlib.colormaps[COLORMAP].with_extremes(bad="0.9")
    norm = LogNorm(1, max(2, counts.max()))
    image = ax.imshow(np.ma.masked_equal(counts, 0), cmap=colormap, norm=norm, aspect="auto", interpolation="nearest")
    if len(counts) <= 20 and len(classes) <= 12:
        for (row, column), value in np.ndenumerate(counts):
            if value:
                color = "black" if norm(value) > 0.55 else "white"
                ax.text(column, row, f"{value:d}", ha="center", va="center", fontsize=7, color=color)
    _client_axis(ax, clients, label)
    step = -(-len(classes) // 30)
    ax.set_xticks(range(0, len(classes), step), classes[::step], rotation=90 if max(map(len, classes)) > 3 else 0)
    ax.set_xlabel("class")
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, label="training examples (grey: none)", format="{x:.0f}")
    return ax


def _rows(counts: ArrayLike, classes: tuple[str, ...]) -> tuple[NDArray, NDArray, str]:
    """The rows to draw, the clients they belong to, and the axis label."""
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[1] != len(classes) or not counts.size:
        raise ValueError(f"counts: shape {counts.shape}, expected (clients, {len(classes)}), one column per class")
    if len(counts) <= MOST_CLIENTS:
        return counts, np.arange(len(counts)), "client"
    clients = np.linspace(0, len(counts) - 1, MOST_CLIENTS).round().astype(int)
    return counts[clients], clients, f"client ({MOST_CLIENTS} of {len(counts):,})"


def _client_axis(ax: Axes, clients: NDArray, label: str) -> None:
    """Clients from the top down, with at most about 20 evenly spaced numbers."""
    step = next(s for s in (1, 2, 5, 10, 20) if len(clients) <= 20 * s)
    ax.set_yticks(range(0, len(clients), step), [f"{c:,}" for c in clients[::step]])
    ax.set_ylim(len(clients) - 0.5, -0.5)
    ax.set_ylabel(label)
