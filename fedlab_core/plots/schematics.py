"""Schematics in one style: server and clients with their data, and what each algorithm adds to a round.

Blue and orange are two clients, black is the server and whatever it averages, grey is what does not move.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from numpy.typing import ArrayLike

from fedlab_core.check import checked, choice
from fedlab_core.hints import Shaped
from fedlab_core.plots import HATCHES, LINE_COLORS, OKABE_ITO

CLIENTS = (LINE_COLORS[0], LINE_COLORS[1])
SERVER, STILL = "black", "0.62"
ACTIVE, BATCH_NORM = OKABE_ITO[1], OKABE_ITO[6]  # of a network, apart from the clients' colours
UPLOAD = "#7A3E9D"  # violet: beside bars whose classes have all other colours
STEPS = ("download", "local steps", "upload", "average")
"""The parts of a round, in order."""


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, color: str = SERVER) -> None:
    style = {"boxstyle": "round,pad=0.02,rounding_size=0.12", "linewidth": 1.6}
    ax.add_patch(FancyBboxPatch((x, y), width, height, edgecolor=color, facecolor="white", **style))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9, color=color)


def _arrow(ax: Axes, start: Iterable[float], end: Iterable[float], color: str = SERVER, **look: Any) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0} | look
    ax.add_patch(FancyArrowPatch(tuple(start), tuple(end), color=color, **style))


def _canvas(ax: Axes, width: float, height: float) -> None:
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")


@checked
def round_of(
    ax: Axes,
    counts: Annotated[ArrayLike, Shaped("clients", "classes")],
    sampled: Sequence[int],
    step: str | None = None,
) -> Axes:
    """A round: the server above, every client below with its data as a bar of classes, arrows for what travels.

    Args:
        ax: where to draw.
        counts: (clients, classes) examples, as `partition.label_counts` returns them; at most 20 clients fit.
        sampled: clients that take part.
        step: one of `STEPS` to highlight; None draws them all.

    Raises:
        ValueError: an unknown step.
    """
    choice("step", step, (*STEPS, None))
    counts = np.asarray(counts, dtype=float)
    n, most = len(counts), max(1.0, counts.sum(1).max())
    wide, chosen = max(8.0, 0.75 * n), set(sampled)
    fan = 2.1 / wide  # the arrows' ends at the server take its whole width
    _canvas(ax, wide, 4.6)
    _box(ax, wide / 2 - 1.2, 3.75, 2.4, 0.7, "server: average" if step == "average" else "server: model $w_t$")
    for k in range(n):
        x, bottom = (k + 0.5) * wide / n, 0.5
        part = k in chosen
        for c, size in enumerate(counts[k] / most * 1.35):
            face = {"facecolor": OKABE_ITO[c % 8], "hatch": HATCHES[c // 8 % 4], "edgecolor": "white", "linewidth": 0}
            ax.add_patch(Rectangle((x - 0.22, bottom), 0.44, size, alpha=1 if part else 0.3, **face))
            bottom += size
        busy = part and step == "local steps"
        edge = {"linewidth": 2.4 if busy else 0.8, "edgecolor": SERVER if part else STILL}
        ax.add_patch(Rectangle((x - 0.26, 0.46), 0.52, bottom - 0.42, fill=False, **edge))
        ax.text(x, 0.36, str(k), ha="center", va="top", fontsize=8, color=SERVER if part else STILL)
        if part and step in (None, "download"):
            _arrow(ax, (wide / 2 - 0.1 + (x - wide / 2) * fan, 3.7), (x - 0.1, bottom + 0.12), STILL)
        if part and step in (None, "upload", "average"):
            _arrow(ax, (x + 0.1, bottom + 0.12), (wide / 2 + 0.1 + (x - wide / 2) * fan, 3.7), UPLOAD)
    ax.text(
        0.05,
        4.45,
        "grey: download of $w_t$\nviolet: upload of $w_t^k$\nbars: data, by class",
        fontsize=7.5,
        va="top",
    )
    return ax


def _travels(ax: Axes, down: str, up: str, inner: str) -> None:
    """The left half: a server, two clients, and what is sent."""
    _box(ax, 1.45, 3.6, 1.9, 0.8, "server")
    for x, color, k in ((0.1, CLIENTS[0], 1), (2.9, CLIENTS[1], 2)):
        _box(ax, x, 0.35, 1.8, 1.0, f"client {k}\n{inner.replace('K', str(k))}", color)
        middle, lean = x + 0.9, 0.35 if k == 1 else -0.35
        _arrow(ax, (middle + 1.1 * lean, 3.55), (middle - 0.25, 1.42), STILL)
        _arrow(ax, (middle + 0.25, 1.42), (middle + 0.5 + 1.1 * lean, 3.55), color)
    ax.text(0.35, 2.75, down, ha="center", fontsize=9, color="0.4")
    ax.text(4.45, 2.75, up, ha="center", fontsize=9)


def _paths(ax: Axes, bend: Callable[[int], list[tuple[float, float]]]) -> np.ndarray:
    """The right half: two clients' paths in the space of parameters, their optima, and the mean of their ends."""
    start, optima = np.array([6.1, 1.0]), [np.array([8.6, 3.9]), np.array([9.7, 1.0])]
    ends = []
    for k, color in enumerate(CLIENTS):
        ax.plot(*optima[k], "*", color=color, markersize=13)
        ax.text(optima[k][0] + 0.15, optima[k][1] + 0.15, f"optimum of\nclient {k + 1}", fontsize=7.5, color=color)
        points = [start, *(start + np.array(move) for move in bend(k))]
        for a, b in zip(points, points[1:], strict=False):
            _arrow(ax, a, b, color)
        ends.append(points[-1])
    mean = (ends[0] + ends[1]) / 2
    ax.plot(*zip(*ends, strict=True), color=STILL, linestyle=":", linewidth=1.2)
    _arrow(ax, start, mean, SERVER, linewidth=2.6)
    ax.plot(*start, "o", color=SERVER, markersize=7)
    ax.text(start[0] - 0.1, start[1] - 0.5, "$w_t$", ha="center", fontsize=11)
    ax.text(mean[0] + 0.12, mean[1] + 0.02, "$w_{t+1}$", fontsize=11)
    return np.stack(ends)


def _fedavg(ax: Axes) -> None:
    _travels(ax, "$w_t$", "$w_t^k$", "E passes of SGD")
    _paths(ax, lambda k: [(0.75, 0.45), (1.35, 1.2), (1.8, 2.1)] if k == 0 else [(0.9, 0.25), (1.9, 0.2), (2.9, 0.1)])


def _fedprox(ax: Axes) -> None:
    _travels(ax, "$w_t$", "$w_t^k$", "SGD on loss +\n$\\mu/2\\,\\Vert w-w_t\\Vert^2$")
    ends = _paths(
        ax, lambda k: [(0.6, 0.4), (1.0, 0.9), (1.25, 1.35)] if k == 0 else [(0.7, 0.2), (1.4, 0.2), (1.9, 0.1)]
    )
    for end, color in zip(ends, CLIENTS, strict=True):  # springs
        t = np.linspace(0, 1, 60)[:, None]
        across = np.array([-(end - (6.1, 1.0))[1], (end - (6.1, 1.0))[0]]) / np.linalg.norm(end - (6.1, 1.0))
        spring = np.array([6.1, 1.0]) + t * (end - (6.1, 1.0)) + 0.09 * np.sin(16 * np.pi * t) * across
        ax.plot(*spring.T, color=color, linewidth=0.8, alpha=0.7)


def _scaffold(ax: Axes) -> None:
    _travels(ax, "$w_t,\\ c$", "$w_t^k,\\ c_k$", "steps along\n$g - c_K + c$")
    _paths(ax, lambda k: [(0.75, 0.6), (1.5, 1.15), (2.2, 1.75)] if k == 0 else [(0.9, 0.35), (1.75, 0.75), (2.5, 1.1)])
    ax.text(7.0, 3.35, "$-c_k + c$ turns every\nclient towards the mean", ha="center", fontsize=8)


def _layers(ax: Axes, labels: Sequence[str], colors: Sequence[str], hatches: Sequence[str]) -> None:
    for i, (label, color, hatch) in enumerate(zip(labels, colors, hatches, strict=True)):
        y = 0.35 + i * 0.72
        face = {"facecolor": "white" if hatch else color, "alpha": 1 if hatch else 0.35}
        ax.add_patch(Rectangle((6.0, y), 2.0, 0.55, edgecolor=color, hatch=hatch, linewidth=1.4, **face))
        ax.text(
            7.0,
            y + 0.27,
            label,
            ha="center",
            va="center",
            fontsize=8.5,
            bbox={"facecolor": "white", "pad": 0.8, "linewidth": 0},
        )


def _fedtan(ax: Axes) -> None:
    _travels(ax, "$w_t$", "$w_t^k$", "first step in\nlock-step")
    _layers(
        ax,
        ("layer", "batch norm", "layer", "batch norm", "loss"),
        ("0.6", BATCH_NORM, "0.6", BATCH_NORM, "0.6"),
        ("", "", "", "", ""),
    )
    for y in (1.35, 2.79):
        _arrow(ax, (8.05, y + 0.12), (9.6, y + 0.12), SERVER, arrowstyle="<|-|>")
    ax.text(8.85, 3.25, "three exchanges\nper layer: mean,\nvariance, gradients", ha="center", fontsize=8, va="bottom")
    ax.text(9.7, 2.15, "server\naverages", fontsize=8, va="center")


def _layerwise(ax: Axes) -> None:
    _travels(ax, "block $s$", "block $s$", "steps on\nblock $s$ only")
    _layers(
        ax,
        ("block 1", "block 2", "block 3", "block 4", "heads"),
        ("0.6", "0.6", ACTIVE, "0.85", ACTIVE),
        ("////", "////", "", "", ""),
    )
    for text, y in (
        ("frozen: forward only,\nnothing kept in memory", 0.97),
        ("active: trained, travels", 2.06),
        ("joins in a later stage", 2.78),
        ("travel with the block", 3.5),
    ):
        ax.text(8.15, y, text, fontsize=8, va="center")


METHODS = {"FedAvg": _fedavg, "FedProx": _fedprox, "SCAFFOLD": _scaffold, "FedTAN": _fedtan, "layer-wise": _layerwise}


@checked
def method(ax: Axes, name: str) -> Axes:
    """One algorithm on one drawing: left, what travels; right, what a client's local training does.

    Args:
        ax: where to draw, about 8 x 3.6 inches.
        name: a key of `METHODS`.

    Raises:
        ValueError: an unknown name.
    """
    choice("name", name, METHODS)
    _canvas(ax, 11.2, 4.6)
    METHODS[name](ax)
    ax.set_title(name, fontsize=11, loc="left", fontweight="bold")
    return ax
