"""Figures: every function draws into the Axes it is given and returns it; only `save` writes, nothing is shown here."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from fedlab_core import files
from fedlab_core.about import versions
from fedlab_core.history import Record

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
# A line is known by its colour, its dashes and its marker, so that any one of them is enough. No yellow: too pale.
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", (0, (5, 1.5)), (0, (4, 1.2, 1, 1.2)), (0, (1.5, 1.2)))
_MARKERS = "os^Dv*PX"
AXES = {
    "round": "round",
    "megabytes": "megabytes sent, both ways",
    "steps": "local gradient steps, all clients",
    "test_accuracy": "test accuracy",
    "test_loss": "test loss (nats)",
    "train_loss": "local training loss (nats)",
    "drift": r"drift: mean $\Vert w_k - w_t \Vert$",
    "relative_drift": r"relative drift: mean $\Vert w_k - w_t \Vert \,/\, \Vert w_t \Vert$",
    "cosine": "cosine between clients' updates",
    "diversity": "gradient diversity",
}


def style() -> None:
    """Make the house style Matplotlib's default, for the rest of the process; repeating it changes nothing."""
    matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]


class Picture(Figure):
    """A figure that a notebook shows as PNG although pyplot does not know of it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        """The figure with twice its pixels, sharp on a dense screen, and the width to show it at."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=2 * self.dpi, metadata={"Software": None})
        return buffer.getvalue(), {"width": round(self.get_figwidth() * self.dpi)}


def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None) -> tuple[Picture, NDArray]:
    """A figure in the house style that pyplot does not know of, so it is freed with its last reference, in any thread.

    Args:
        rows: rows of Axes.
        columns: columns of Axes.
        size: width and height in inches, 6 x 3.5 unless given.

    Returns:
        The figure, with constrained layout, and its Axes (rows, columns).
    """
    style()
    fig = Picture(figsize=size or STYLE["figure.figsize"], layout="constrained")
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


@dataclass(frozen=True)
class Line:
    """One run in a figure of curves.

    Attributes:
        name: for the legend.
        history: its records, whose index is the round.
        start: the first round to draw; a fork begins at its fork point, which gets an open marker.
        index: chooses colour, dashes and marker; None draws a reference: thin, grey, dotted.
    """

    name: str
    history: Sequence[Record]
    start: int = 0
    index: int | None = 0

    @property
    def style(self) -> dict[str, Any]:
        """Colour, dashes and marker as `Axes.plot` takes them."""
        if self.index is None:
            return {"color": "0.35", "linestyle": (0, (1, 1.5)), "marker": "", "linewidth": 1.5}
        i = self.index
        return {"color": LINE_COLORS[i % 7], "linestyle": _DASHES[i % 4], "marker": _MARKERS[i % 8], "markersize": 5}


def measured(record: Record, key: str) -> float:
    """A number of a record by a key of `AXES` or of its metrics; nan where it was not measured."""
    if key == "round":
        return float(record.round)
    if key == "megabytes":
        return record.total.bytes / 1e6
    if key == "steps":
        return float(record.total.steps)
    return record.metrics.get(key, float("nan"))


def curves(
    ax: Axes, lines: Iterable[Line], y: str, x: str = "round", *, at: int | None = None, spread: Line | None = None
) -> Axes:
    """A measure of several runs over rounds, bytes or steps; forks leave their parent's line at the fork point.

    Args:
        ax: where to draw.
        lines: the runs.
        y, x: keys of `AXES` or of `Record.metrics`.
        at: a round to mark, on every line that has it.
        spread: a run whose clients' own models (rows of its records) are shown as a band from worst to best.
    """
    if at is not None and x == "round":
        ax.axvline(at, color="0.75", linewidth=1, zorder=0)
    if spread is not None:
        client_band(ax, spread, y)
    highest = []
    for line in lines:
        part = [r for r in line.history[line.start :] if np.isfinite(measured(r, y))]
        if not part:
            continue
        xs, ys = [measured(r, x) for r in part], [measured(r, y) for r in part]
        ax.plot(xs, ys, label=line.name, markevery=max(1, len(xs) // 8), **line.style)
        highest.append((ys[0], max(ys)))
        if line.start and part[0].round == line.start:
            ax.plot(xs[0], ys[0], marker="D", markersize=9, markerfacecolor="none", color=line.style["color"])
        ring = {"color": line.style["color"], "markersize": 9, "markerfacecolor": "white", "markeredgewidth": 2}
        for r in (r for r in part if r.round == at and line.index is not None):
            ax.plot(measured(r, x), measured(r, y), marker="o", zorder=5, clip_on=False, **ring)
    ax.set_xlabel(AXES.get(x, x))
    ax.set_ylabel(AXES.get(y, y))
    if y.endswith("accuracy"):
        ax.set_ylim(0, 1.02)
    elif y.endswith("loss") and highest:  # a run that diverges must not flatten the others
        ax.set_ylim(0, 1.05 * min(max(h for _, h in highest), 3 * max(first for first, _ in highest)))
    ax.grid(axis="y", color="0.92")
    ax.set_axisbelow(True)
    return ax


def client_band(ax: Axes, line: Line, y: str) -> Axes:
    """From the worst to the best client per round: the sampled clients' own models after their local training."""
    rows = [(r.round, [c[y] for c in r.clients if np.isfinite(c.get(y, np.nan))]) for r in line.history[line.start :]]
    spans = [(round, min(values), max(values)) for round, values in rows if values]
    if spans:
        style = {"color": line.style["color"], "alpha": 0.18, "linewidth": 0}
        ax.fill_between(*zip(*spans, strict=True), label="clients' own models, worst to best", **style)
    return ax


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


def save(fig: Figure, path: str | Path, data: dict[str, Any]) -> Path:
    """Writes `path` (.png) and beside it a .json with what it shows: settings, seeds, data behind the lines, versions.

    Args:
        fig: the figure.
        path: where to; an existing pair is replaced.
        data: plain data.

    Returns:
        The path of the PNG.
    """
    path = Path(path).with_suffix(".png")
    content = files.seal({**data, "versions": versions()}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.published(path) as part:
        fig.savefig(part, format="png", metadata={"Software": None})
    files.write(path.with_suffix(".json"), content)
    return path
