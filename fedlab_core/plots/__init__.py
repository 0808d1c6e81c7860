"""Figures: every function draws into the Axes it is given and returns it; only `save` writes, nothing is shown here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from fedlab_core import files
from fedlab_core.about import versions
from fedlab_core.check import Amount, Natural, checked
from fedlab_core.hints import Within
from fedlab_core.history import Record
from fedlab_core.plots.figures import Picture, blank

# Okabe and Ito's palette, for every common colour vision; neighbours in this order differ in lightness.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#F0E442", "#56B4E9", "#D55E00", "#CC79A7", "#000000")
HATCHES = ("", "////", "....", "xxxx")
"""Over the palette's colours, where there are more classes than colours: the first for classes 0 to 7, and so on."""
COLORMAP = "cividis"
Places = Annotated[int, Within(1, 100)]
"""Rows or columns of Axes."""
STYLE: dict[str, Any] = {
    "figure.figsize": (6, 3.5),
    "text.hinting": "none",  # on dense screens it is not seen, and it takes time
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
# A line is known by its colour, its dashes and its marker, so that any one of them is enough. No yellow: too pale.
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", (0, (5, 1.5)), (0, (4, 1.2, 1, 1.2)), (0, (1.5, 1.2)))
_MARKERS = "os^Dv*PX"
PLACES = {
    "FedAvg": 0, "FedSGD": 1, "FedProx": 2, "SCAFFOLD": 3,
    "FedAvg+BN": 0, "FedTAN": 1, "centralised BN": 2, "GroupNorm": 3, "LayerNorm": 4, "no normalisation": 5, "FixBN": 6,
    "FedAvg+BN, total variance": 7, "FedTAN, frozen later": 8, "SiloBN": 10, "FedBN": 11, "HBN": 12,
    "weight standardised": 13, "FBN": 16, "HBN, faster statistics": 19,
    "no exchange: FedAvg+BN": 0, "all exchanges: FedTAN": 1, "without exchange 1 (means)": 3,
    "without exchange 2 (variances)": 4, "without exchange 3 (gradients)": 5,
    "random": 0, "letters": 1, "fractal pairs": 2, "fractal labels": 3, "fractal twins": 4, "noise": 5,
    "decentralised": 6, "own start": 15, "pairs, decentralised": 9, "ImageNet": 10, "Caltech-101": 11,
    "different random": 2, "shared start": 0, "independent start": 1,
    "CLIP, text head": 0, "ViT, linear head": 1, "CLIP, text head, trained": 2, "CLIP, random head": 3,
    "CLIP, learnt prompt": 4, "ViT, prototype head": 5,
}  # fmt: skip
"""By name, the place whose colour, dashes and marker a line has in every picture: methods, batch norm's variants,
starts. Fine-tuning has its own, `plots.finetuning.styles`."""
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


@checked
def figure(rows: Places = 1, columns: Places = 1, size: tuple[float, float] | None = None) -> tuple[Picture, NDArray]:
    """A figure in the house style that pyplot does not know of, so it is freed with its last reference, in any thread.

    Args:
        rows: rows of Axes.
        columns: columns of Axes.
        size: width and height in inches, 6 x 3.5 unless given.

    Returns:
        The figure, with constrained layout, and its Axes (rows, columns).
    """
    style()
    return blank("subplots", size or STYLE["figure.figsize"], (rows, columns), {"squeeze": False})


@checked
def mosaic(layout: str, size: tuple[float, float], **ratios: Sequence[float]) -> tuple[Picture, list[Axes]]:
    """A figure as `figure` makes it, with Axes that span rows or columns.

    Args:
        layout: a letter for each place, as `Figure.subplot_mosaic` takes it: "ab;ac" has one on the left, two on the
            right.
        size: width and height in inches.
        ratios: `width_ratios` or `height_ratios`.

    Returns:
        The figure, and its Axes in the order of their letters.
    """
    style()
    fig, places = blank("subplot_mosaic", size, (layout,), ratios)
    return fig, [ax for _, ax in sorted(places.items())]


@checked
def look(index: Natural, size: Amount = 5.0) -> dict[str, Any]:
    """Colour, dashes and marker of the line at a place, as `Axes.plot` takes them; `places` gives a name its place.

    Args:
        index: the place.
        size: of the markers, in points.
    """
    dashes = {"linestyle": _DASHES[index % 4], "marker": _MARKERS[index % 8], "markersize": size}
    return {"color": LINE_COLORS[index % 7], **dashes}


@checked
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
        return look(self.index)


@checked
def places(names: Iterable[str]) -> dict[str, int]:
    """The places of names, each to be the `index` of its `Line`: that of `PLACES`, else the first free one from the
    name's own number on.

    "from letters" and "letters, FedAdam" have the place of "letters". Where two names have the same, the second takes
    one of that colour with another marker.
    """
    names, found = list(names), dict[str, int]()
    wholes = {name: name.removeprefix("from ") for name in names}
    known = {name: PLACES.get(whole, PLACES.get(whole.partition(",")[0])) for name, whole in wholes.items()}
    for name, place in known.items():
        if place is not None and place in found.values():  # the next one of this colour, with a marker of its own
            taken, markers = set(found.values()), {other % 8 for other in found.values()}
            place = next(p for p in count(place, 7) if p not in taken and (p % 8 not in markers or len(markers) == 8))
        found |= {} if place is None else {name: place}
    for number, name in enumerate(names):
        if known[name] is None:
            found[name] = next(place for place in count(number) if place not in found.values())
    return {name: found[name] for name in names}


@checked
def lines_across(ax: Axes) -> Axes:
    """Pale lines across at the ticks of the vertical axis, behind all that is drawn."""
    ax.grid(axis="y", color="0.92")
    ax.set_axisbelow(True)
    return ax


@checked
def measured(record: Record, key: str) -> float:
    """A number of a record by a key of `AXES` or of its metrics; nan where it was not measured."""
    if key == "round":
        return float(record.round)
    if key == "megabytes":
        return record.total.bytes / 1e6
    if key == "steps":
        return float(record.total.steps)
    return record.metrics.get(key, float("nan"))


@checked
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
    highest = []
    for line in lines:
        part = [(r, measured(r, y)) for r in line.history[line.start :]]
        part = [(r, value) for r, value in part if np.isfinite(value)]
        if not part:
            continue
        xs, ys = [measured(r, x) for r, _ in part], [value for _, value in part]
        ax.plot(xs, ys, label=line.name, markevery=max(1, len(xs) // 8), **line.style)
        highest.append((ys[0], max(ys)))
        if line.start and part[0][0].round == line.start:
            ax.plot(xs[0], ys[0], marker="D", markersize=9, markerfacecolor="none", color=line.style["color"])
        ring = {"color": line.style["color"], "markersize": 9, "markerfacecolor": "white", "markeredgewidth": 2}
        for (record, value), place in zip(part, xs, strict=True):
            if record.round == at and line.index is not None:
                ax.plot(place, value, marker="o", zorder=5, clip_on=False, **ring)
    if spread is not None:
        client_band(ax, spread, y)
    ax.set_xlabel(AXES.get(x, x))
    ax.set_ylabel(AXES.get(y, y))
    if y.endswith("accuracy"):
        ax.set_ylim(0, 1.02)
    elif y.endswith("drift"):  # a length
        ax.set_ylim(0, auto=True)
    elif y.endswith("loss") and highest:  # a run that diverges must not flatten the others
        ax.set_ylim(0, 1.05 * min(max(h for _, h in highest), 3 * max(first for first, _ in highest)))
    lines_across(ax)
    return ax


@checked
def client_band(ax: Axes, line: Line, y: str) -> Axes:
    """A band from the worst to the best client of each round: their own models after their local training."""
    rows = [(r.round, [c[y] for c in r.clients if np.isfinite(c.get(y, np.nan))]) for r in line.history[line.start :]]
    spans = [(round, min(values), max(values)) for round, values in rows if values]
    if spans:
        style = {"color": line.style["color"], "alpha": 0.18, "linewidth": 0}
        ax.fill_between(*zip(*spans, strict=True), label=f"{_whose(line.history)}, worst to best", **style)
    return ax


def _whose(history: Sequence[Record]) -> str:
    """Whose models, and on how many test examples where these are not all."""
    examples = history[-1].metrics.get("clients_test_examples")
    return "clients' own models" if examples is None else f"clients on {examples:,.0f} test examples"


@checked
def logarithmic(ax: Axes, which: Literal["x", "y"] = "x", at: Sequence[float] = (1.0, 3.0)) -> Axes:
    """A logarithmic axis with few, plain numbers.

    Args:
        which: of the two axes.
        at: the numbers within a decade.
    """
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(subs=at))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())
    return ax


@checked
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
