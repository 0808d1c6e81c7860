"""Figures with a row per client: who holds what, and where the clients of one round stand."""

from typing import Annotated

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.ticker import FixedFormatter, FixedLocator
from numpy.typing import ArrayLike, NDArray

from fedlab_core.check import checked, sized
from fedlab_core.hints import Shaped
from fedlab_core.history import Record
from fedlab_core.plots import AXES, COLORMAP, HATCHES, OKABE_ITO, Line

MOST_CLIENTS = 200  # more rows than this cannot be told apart in a figure; an even selection is drawn


@checked
def holdings_bars(
    ax: Axes,
    counts: Annotated[ArrayLike, Shaped("clients", "classes")],
    classes: tuple[str, ...],
    legend: bool = True,
) -> Axes:
    """Who holds what, as one stacked horizontal bar per client: length = examples, colour (and hatch) = class.

    Args:
        ax: where to draw.
        counts: (clients, classes), as `partition.label_counts` returns them; of more than 200 clients an even selection
            is drawn, and the axis says so.
        classes: names, one per column.
        legend: which colour is which class, beside the axes where there are not too many.

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
        hatch = None if many else HATCHES[c // 8]
        x0, x1 = right[:, c] - counts[:, c], right[:, c]
        corners = np.stack([[x0, bottom], [x1, bottom], [x1, top], [x0, top]]).transpose(2, 0, 1)
        bars = PolyCollection(list(corners[counts[:, c] > 0]), facecolor=color, hatch=hatch, label=name)
        bars.set(edgecolor="white" if hatch or gap else color, linewidth=0.5 if gap else 0)
        ax.add_collection(bars, autolim=False)
    _client_axis(ax, clients, label)
    ax.set_xlabel("training examples")
    ax.set_xlim(0, max(1, right.max()) * 1.02)
    if legend and not many:
        columns = -(-len(classes) // 12)
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, title="class", ncols=columns)
    return ax


@checked
def holdings_heatmap(
    ax: Axes, counts: Annotated[ArrayLike, Shaped("clients", "classes")], classes: tuple[str, ...]
) -> Axes:
    """Who holds what, as a table of colours: a row per client, a column per class, colour = examples, on a log scale.

    Cells without an example are grey. Small tables (up to 20 clients and 12 classes) also show the numbers.

    Args:
        counts, classes: see `holdings_bars`, also for what is raised.
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
    bar = ax.figure.colorbar(image, ax=ax, label="training examples (grey: none)", format="{x:.0f}")
    if counts.max() < 10:  # no power of ten but 1
        bar.ax.yaxis.set_minor_formatter("{x:.0f}")
    return ax


def _rows(counts: ArrayLike, classes: tuple[str, ...]) -> tuple[NDArray, NDArray, str]:
    """The rows to draw, the clients they belong to, and the axis label."""
    counts = np.asarray(counts)
    sized("counts", counts, clients=max(1, len(counts)), classes=max(1, len(classes)))
    if len(counts) <= MOST_CLIENTS:
        return counts, np.arange(len(counts)), "client"
    clients = np.linspace(0, len(counts) - 1, MOST_CLIENTS).round().astype(int)
    return counts[clients], clients, f"client ({MOST_CLIENTS} of {len(counts):,})"


def _client_axis(ax: Axes, clients: NDArray, label: str) -> None:
    """Clients from the top down, with at most about 20 evenly spaced numbers."""
    step = next(s for s in (1, 2, 5, 10, 20) if len(clients) <= 20 * s)
    ax.yaxis.set_major_locator(FixedLocator(range(0, len(clients), step)))
    ax.yaxis.set_major_formatter(FixedFormatter([f"{c:,}" for c in clients[::step]]))
    ax.set_ylim(len(clients) - 0.5, -0.5)
    ax.set_ylabel(label)


@checked
def client_dots(ax: Axes, record: Record, key: str, line: Line, reference: float | None = None) -> Axes:
    """One round's sampled clients, a row each: a dot at their value, and the global model's as a vertical line."""
    rows = [row for row in record.clients if key in row]
    positions, values = np.arange(len(rows)), [row[key] for row in rows]
    known = reference is not None and np.isfinite(reference)
    if known:
        ax.axvline(reference, color="0.35", linestyle=(0, (4, 2)), linewidth=1.5, label="global model")
    ax.hlines(positions, reference if known else 0, values, color="0.85", linewidth=1.5, zorder=1)
    ax.plot(values, positions, **line.style | {"linestyle": "", "markersize": 6})
    ax.set_xlabel(AXES.get(key, key))
    if rows:
        _client_axis(ax, np.array([int(row["client"]) for row in rows]), "sampled client")
    return ax
