"""Weight space in the workbench: the plane of a run's path, the triangle of three clients, stability over rounds, and
the runs of the panel by start and skew."""

import textwrap
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from matplotlib.figure import Figure

from fedlab_core import plots, probes
from fedlab_core.federation import Federation
from fedlab_core.plots import probes as plots_probes
from fedlab_core.workbench.runs import Run
from fedlab_core.workbench.tabs import SIZE, View, words_only

GRID, MOST_POINTS, MOST_FOLLOWED = 13, 24, 8
THETAS = tuple(i / 10 for i in range(11))
_LINES: WeakKeyDictionary[Run, dict[tuple[Any, ...], probes.LossLine]] = WeakKeyDictionary()
_FOLLOWED: WeakKeyDictionary[Run, dict[int, Mapping[str, Any]]] = WeakKeyDictionary()


def plane_view(run: Run, round: int) -> Figure:
    """The loss on the plane that the run's path leaves least, with the paths of all runs of the panel on it."""
    federation = run.heeding
    fig, ((ax,),) = plots.figure(1, 1, SIZE)
    if federation.round < 2:
        return words_only(fig, "The plane of a path needs at least two rounds.")
    shown = _thinned(federation.round)
    plane = probes.plane_of_path([federation.state_at(t) for t in shown], federation.trained_names)
    names = set(federation.trained_names)
    same = [r for r in run.overlaid if names == set(r.federation.trained_names) and _fits(r, run)]
    found = {r: plane.path(r.heeding.state_at(t) for t in _thinned(r.round)) for r in same}
    around = [point for path in found.values() for point in path]
    *_, seen = probes.scan(federation, plane, around, size=GRID)
    plots_probes.landscape(ax, seen)
    for one, path in found.items():
        x, y, own = path[:, 0], path[:, 1], one.line.style
        ax.plot(x, y, linestyle=own["linestyle"], color="white", linewidth=4)  # a run may have the colour of the map
        ax.plot(x, y, label=one.label, markevery=[len(x) - 1], markeredgecolor="white", **own | {"markersize": 8})
        ax.plot(x[0], y[0], ".", color=own["color"], markeredgecolor="white", markersize=9)
    off = found[run][:, 2].max() if run in found else 0.0
    what = f"the path of {run.label} leaves its plane by {off:.2g} at most"
    fig.suptitle(f"test loss; every path leads from its dot to its mark\n{what}", fontsize=9)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def triangle_view(run: Run, round: int) -> Figure:
    """All mixtures of three sampled clients' models of the round, and their average at the star."""
    federation = run.heeding
    fig, ((loss, accuracy),) = plots.figure(1, 2, SIZE)
    if not 1 <= round <= federation.round:
        return words_only(fig, "Round 0: before any training, no client has a model of its own.")
    inside = federation.inside(round)
    if len(inside.updates) < 3:
        return words_only(fig, "The triangle needs three sampled clients.")
    chosen = inside.updates[:3]
    corners = [f"client {update.client}" for update in chosen]
    weights = probes.triangle_weights(8)
    found = probes.mixtures(federation, [update.state for update in chosen], weights)
    shares = [weight / sum(inside.weights[:3]) for weight in inside.weights[:3]]
    plots_probes.triangle(loss, weights, found.loss, corners, shares)
    loss.set_title(f"round {round}: mixtures of three clients\n(star: their average)")
    plots_probes.spread_bars(accuracy, probes.stability(federation, round, count=12))
    return fig


def stability_view(run: Run, round: int) -> Figure:
    """Mean, standard deviation and worst of mixtures of the clients' models over rounds, for the run shown, its parent
    and others of the panel that were looked at before; computed once, from the kept snapshots."""
    fig, ((accuracy, per_drift),) = plots.figure(1, 2, SIZE)
    if run.round < 1:
        return words_only(fig, "Round 0: before any training, no client has a model of its own.")
    if not _mixes(run):
        return words_only(fig, "Mixtures need at least two sampled clients.")
    for one in (other for other in run.overlaid if other in (run, run.parent)):
        known = _FOLLOWED.setdefault(one, {})
        for t in _followed(one) if _mixes(one) else []:
            if t not in known:
                known[t] = probes.spread(one.heeding, t, count=12)
    for one in [*(other for other in run.overlaid if other is not run), run]:
        rows = [row for t, row in sorted(_FOLLOWED.get(one, {}).items()) if t <= one.round]
        plots_probes.mixtures_over_rounds(accuracy, per_drift, one.label, rows, one.line.style)
    per_drift.set_ylim(0, None)
    for ax in (accuracy, per_drift):
        ax.axvline(round, color="0.6", linewidth=1)
        ax.xaxis.get_major_locator().set_params(integer=True)
    accuracy.set_title("12 mixtures: mean, sd, worst (x)")
    per_drift.set(title="stable, or only moved little?")
    fig.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def basin_view(run: Run, round: int) -> Figure:
    """Loss and accuracy on the straight line from the run's model to another's: in one basin, no barrier stands
    between."""
    fig, ((loss, accuracy),) = plots.figure(1, 2, SIZE)
    other, federation = run.other, run.heeding
    if other is not None and not _fits(other, run):
        return words_only(fig, f"{other.label} has another network: no line leads there.")
    if other is None and round < 1:
        return words_only(fig, "Round 0: no way yet. Choose a later round, or another run.")
    at, name = (min(round, other.round), other.label) if other is not None else (0, run.label)
    known, key = _LINES.setdefault(run, {}), (round, None if other is None else id(other), at)
    if key not in known:
        end = (other or run).heeding.state_at(at)
        known[key] = probes.line(federation, federation.state_at(round), end, THETAS, split="test")
    line, style = known[key], run.line.style
    for ax, values, label in ((loss, line.loss, "test loss (nats)"), (accuracy, line.accuracy, "test accuracy")):
        ax.plot(line.theta, values, **style)
        ax.set(xlabel="position on the line", ylabel=label, xlim=(0, 1))
        ends = [(name, at, "left"), (run.label, round, "right")]
        ax.set_xticks([0, 1], [f"{textwrap.shorten(end, 30, placeholder=' …')}\nround {t}" for end, t, _ in ends])
        for tick, (_, _, side) in zip(ax.get_xticklabels(), ends, strict=True):
            tick.set(ha=side, fontsize=8)
        plots.lines_across(ax)
    loss.plot([0, 1], [line.loss[0], line.loss[-1]], color="0.5", linewidth=1, linestyle=":")
    loss.set_title(f"barrier {line.barrier:.3f} nats above the dotted line")
    loss.set_ylim(0, 1.06 * max(filter(np.isfinite, line.loss), default=1.0))
    accuracy.set_ylim(0, 1.02)
    return fig


def starts_view(run: Run, round: int) -> Figure:
    """Accuracy at the round of the panel's runs by start and partition, and of their centralised references."""
    fig, ((ax,),) = plots.figure(1, 1, SIZE)
    accuracy: dict[str, dict[str, list[float]]] = {}
    pooled: dict[str, list[float]] = {}
    for one in run.overlaid:
        start, where = one.experiment.start, one.federation.partition.description
        accuracy.setdefault(start, {}).setdefault(where, []).append(_accuracy(one.federation, round))
        if one.reference is not None and one.reference_shown:
            pooled.setdefault(start, []).append(_accuracy(one.reference, round))
    plots_probes.by_skew(ax, accuracy, pooled)
    ax.set_title(f"runs of the panel by start and partition, round {round} or their last")
    return fig


def _accuracy(federation: Federation, round: int) -> float:
    """The last test accuracy measured up to a round."""
    seen = [r.metrics["test_accuracy"] for r in federation.history[: round + 1] if "test_accuracy" in r.metrics]
    return seen[-1] if seen else float("nan")


def _mixes(run: Run) -> bool:
    """Whether it has a round of at least two clients."""
    clients = len(run.federation.partition)
    return run.round > 0 and min(clients, run.federation.settings.clients_per_round(clients)) > 1


def _followed(run: Run) -> list[int]:
    """Rounds that begin at a kept snapshot, at most `MOST_FOLLOWED` and the last; more rounds keep every second."""
    at = [t + 1 for t in run.federation.timeline.rounds() if t < run.round]
    step = 1
    while len(at[::step]) > MOST_FOLLOWED:
        step *= 2
    return sorted({*at[::step], at[-1]})


def _thinned(rounds: int) -> list[int]:
    """Rounds 0 to the last, at most `MOST_POINTS` of them."""
    step = -(-(rounds + 1) // MOST_POINTS)
    return [*range(0, rounds, step), rounds]


def _fits(one: Run, other: Run) -> bool:
    a, b = (r.federation.state for r in (one, other))
    return a.keys() == b.keys() and all(a[name].shape == b[name].shape for name in a)


STABILITY = View("Stability", stability_view, slow=True)
BASIN = View("Basin", basin_view, slow=True, against=True)
VIEWS = (
    View("Plane", plane_view, slow=True),
    View("Triangle", triangle_view, slow=True),
    STABILITY,
    View("Starts", starts_view),
)
