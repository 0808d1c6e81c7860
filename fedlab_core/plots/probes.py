"""Pictures of weight space: landscapes with the paths of runs, triangles of three models, starts and stability."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from numpy.typing import ArrayLike

from fedlab_core.check import Depth, checked, sized
from fedlab_core.hints import Shaped
from fedlab_core.plots import COLORMAP, look, places
from fedlab_core.probes.groups import Connectivity
from fedlab_core.probes.lines import LossLine
from fedlab_core.probes.planes import Landscape


@checked
def landscape(ax: Axes, seen: Landscape, levels: Depth = 12) -> Axes:
    """The loss on a plane as colour with contours, on a logarithmic scale; gaps of an unfinished scan are filled from
    their neighbours, and the title says so."""
    values = np.nan_to_num(seen.filled(), nan=np.inf)
    finite = values[np.isfinite(values)]
    low, high = max(finite.min(), 1e-4), min(finite.max(), 100 * max(finite.min(), 1e-4))
    values = np.clip(values, low, high)
    edges = np.geomspace(low, max(high, low * 1.01), levels + 1)
    drawn = ax.contourf(seen.x, seen.y, values, edges, cmap=f"{COLORMAP}_r", norm=LogNorm(edges[0], edges[-1]))
    ax.contour(seen.x, seen.y, values, edges, colors="white", linewidths=0.4, alpha=0.7)
    ticks = np.geomspace(edges[0], edges[-1], 5)
    bar = ax.figure.colorbar(drawn, ax=ax, ticks=ticks, format="%.2g", pad=0.02, shrink=0.7)
    bar.ax.minorticks_off()
    bar.set_label("loss (nats)", fontsize=8)
    ax.set(xlabel="distance along u", ylabel="distance along v", aspect="equal")
    if seen.done < 1:
        ax.set_title(f"{seen.done:.0%} of the grid")
    return ax


@checked
def paths(ax: Axes, found: Mapping[str, Annotated[ArrayLike, Shaped("points", "coordinates")]]) -> Axes:
    """Paths of runs on a plane: from a small dot to a large marker.

    Args:
        found: by name, (points, 2 or more) coordinates, as `Plane.path` returns them.
    """
    for i, (name, points) in enumerate(found.items()):
        xy, own = np.asarray(points)[:, :2], look(i + 1, 9.0)  # not blue, which is the map's
        ax.plot(*xy.T, linestyle=own["linestyle"], color="white", linewidth=3.2, zorder=3)
        ax.plot(*xy.T, linestyle=own["linestyle"], color=own["color"], linewidth=1.8, zorder=4)
        ax.plot(*xy[0], marker=".", color=own["color"], markeredgecolor="white", markersize=9, zorder=5)
        ax.plot(*xy[-1], markeredgecolor="white", label=name, zorder=5, **own)
    return ax


@checked
def triangle(
    ax: Axes,
    weights: Annotated[ArrayLike, Shaped("points", "corners")],
    values: Annotated[ArrayLike, Shaped("points")],
    corners: Sequence[str],
    point: Annotated[ArrayLike, Shaped("corners")] | None = None,
) -> Axes:
    """Values on the mixtures of three models, one model per corner.

    Args:
        weights: (points, 3) rows adding up to 1.
        values: (points,) the loss, drawn as colour.
        corners: names of the three models.
        point: weights of a mixture to mark, such as the global model among three clients.
    """
    place = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    values = np.asarray(values)
    xy = sized("weights", weights, points=len(values), corners=3) @ place
    drawn = ax.tricontourf(*xy.T, values, 12, cmap=f"{COLORMAP}_r")
    ax.tricontour(*xy.T, values, 12, colors="white", linewidths=0.4, alpha=0.7)
    ax.figure.colorbar(drawn, ax=ax, format="%.2g", pad=0.02, shrink=0.6).set_label("loss (nats)", fontsize=8)
    for at, name, offset, side in zip(place, corners, (-0.04, -0.04, 0.03), ("right", "left", "center"), strict=True):
        ax.text(at[0], at[1] + offset, name, ha=side, va="bottom" if offset > 0 else "top", fontsize=8)
    if point is not None:
        marked = sized("point", point, corners=3) @ place
        ax.plot(*marked, marker="*", markersize=15, color="#D55E00", markeredgecolor="white")
    ax.set(aspect="equal", xlim=(-0.15, 1.15), ylim=(-0.15, 1.0))
    ax.set_axis_off()
    return ax


@checked
def spread_bars(ax: Axes, found: Mapping[str, Any]) -> Axes:
    """Accuracy of the families of mixtures of a round, see `probes.stability`: mean, standard deviation and worst."""
    names = {"dirichlet": "Dirichlet mixtures", "halves": "random halves", "leave_one_out": "all but one"}
    for i, key in enumerate(names):
        mean, sd, worst = (found[key][f"accuracy_{part}"] for part in ("mean", "sd", "worst"))
        ax.errorbar(mean, i, xerr=sd, capsize=4, **look(i, 6.0) | {"linestyle": "none"})
        ax.plot(worst, i, "x", color=look(i)["color"])
    ax.axvline(found["average"]["accuracy"], color="0.3", linewidth=1.2, label="their average")
    ax.axvline(found["clients"], color="0.3", linewidth=1.2, linestyle=":", label="clients alone")
    ax.plot([], [], "x", color="0.3", label="the worst")
    ax.legend(
        *(part[:3] for part in ax.get_legend_handles_labels()),
        loc="upper center",
        bbox_to_anchor=(0.5, 1.16),
        ncols=3,
        fontsize=7,
    )
    ax.set_yticks(range(len(names)), names.values())
    ax.set(xlabel="test accuracy", ylim=(-0.6, len(names) - 0.4))
    return ax


@checked
def loss_lines(ax: Axes, lines: Mapping[str, LossLine | Mapping[str, Any]]) -> Axes:
    """Loss along lines between two models each, with their barriers in the legend."""
    index = places(lines)
    for name, line in lines.items():
        theta, loss, barrier = (
            (line[key] if isinstance(line, Mapping) else getattr(line, key)) for key in ("theta", "loss", "barrier")
        )
        ax.plot(theta, loss, markevery=4, label=f"{name}: barrier {barrier:.3f}", **look(index[name], 4.0))
    ax.set(xlabel=r"$\theta$ (1: IID, 0: skewed)", ylabel="training loss (nats)", ylim=(0, 1.4 * ax.get_ylim()[1]))
    ax.legend(loc="upper center")
    return ax


@checked
def by_skew(
    ax: Axes, accuracy: Mapping[str, Mapping[str, Sequence[float]]], pooled: Mapping[str, Sequence[float]]
) -> Axes:
    """Accuracy by start and skew: mean and every seed as a dot; centralised training as a line across.

    Args:
        accuracy: by start and skew, one value per seed; skews may be missing.
        pooled: by start, one value per seed; starts may be missing.
    """
    skews = list(dict.fromkeys(skew for by in accuracy.values() for skew in by))
    index = places(accuracy)
    for i, (start, by) in enumerate(accuracy.items()):
        place = {skew: x + 0.12 * (i - (len(accuracy) - 1) / 2) for x, skew in enumerate(skews) if skew in by}
        own, means = look(index[start], 6.0), [np.mean(by[skew]) for skew in place]
        ax.plot(place.values(), means, label=start, **own)
        for skew, x in place.items():
            ax.plot([x] * len(by[skew]), by[skew], ".", color=own["color"], markersize=5, alpha=0.6)
        if start in pooled:
            across = {"color": own["color"], "linestyle": own["linestyle"], "alpha": 0.7}
            ax.axhline(np.mean(pooled[start]), linewidth=1, **across)
    ax.set_xticks(range(len(skews)), skews)
    ax.set(ylabel="test accuracy", xlim=(-0.4, len(skews) - 0.6))
    ax.legend(title="line across: centralised", title_fontsize=8)
    return ax


@checked
def spread_against_drift(ax: Axes, runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> Axes:
    """Spread of the Dirichlet mixtures' loss against the size of the clients' updates, one dot per round and seed, one
    series per start: below at equal size means more stable at equal drift."""
    index = places(runs)
    for name, seeds in runs.items():
        points = np.array([(r["size"], r["dirichlet"]["loss_sd"]) for rounds in seeds for r in rounds])
        ax.plot(*points.T, label=name, **look(index[name]) | {"linestyle": "none"})
    ax.set(xscale="log", yscale="log", xlabel=r"mean size of the updates $\Vert w_k - w_t \Vert$")
    ax.set_ylabel("sd of the loss of 20 mixtures")
    ax.legend()
    return ax


@checked
def mixtures_over_rounds(
    accuracy: Axes, per_drift: Axes, name: str, rows: Sequence[Mapping[str, Any]], style: Mapping[str, Any]
) -> None:
    """A run's mixtures of the clients' models over rounds: mean accuracy with a band of one standard deviation and the
    worst as crosses; and the standard deviation of their loss per unit of drift, since close models differ little.

    Args:
        rows: of `probes.spread`; without any nothing is drawn.
        style: colour, dashes and marker, as `plots.look` gives them.
    """
    accuracy.set(xlabel="round", ylabel="test accuracy of mixtures", ylim=(0, 1.02))
    per_drift.set(xlabel="round", ylabel="sd of their loss, per unit of drift")
    if not rows:
        return
    keys = ("round", "accuracy_mean", "accuracy_sd", "accuracy_worst")
    t, mean, sd, worst = (np.array([row[key] for row in rows]) for key in keys)
    low, high = (mean - sd).clip(0, 1), (mean + sd).clip(0, 1)
    accuracy.plot(t, mean, label=name, **style)
    accuracy.fill_between(t, low, high, color=style["color"], alpha=0.2, linewidth=0)
    accuracy.plot(t, worst, "x", color=style["color"], markersize=5)
    per_drift.plot(t, [row["loss_sd"] / max(row["size"], 1e-12) for row in rows], **style)


@checked
def spread_over_rounds(accuracy: Axes, per_drift: Axes, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Mixtures of the clients' models over rounds, run by run, see `mixtures_over_rounds`.

    Args:
        found: by run, rows of `probes.spread`; a run without any keeps its colour for later.
    """
    index = places(found)
    for name, rows in found.items():
        mixtures_over_rounds(accuracy, per_drift, name, rows, look(index[name], 4.0))
    per_drift.set_ylim(0, None)


@checked
def groups(left: Axes, right: Axes, name: str, frames: Sequence[tuple[int, Connectivity]], index: int) -> None:
    """A run's group barrier on one split and on the clients' own data, round by round, as line `index`."""
    rounds = [number for number, _ in frames]
    left.plot(rounds, [found.barrier for _, found in frames], label=name, **look(index, 4.0))
    right.plot(rounds, [found.own for _, found in frames], **look(index, 4.0))
    for ax, data in ((left, "test data"), (right, "own training data")):
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.set(title=f"{data}: loss of the mean - mean loss (nats)", xlabel="round")
