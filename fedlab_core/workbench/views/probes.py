"""Weight space in the workbench: the plane of a run's path, the triangle of three clients, stability over rounds, and
the runs of the panel by start and skew."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from matplotlib.figure import Figure

from fedlab_core import plots, probes
from fedlab_core.federation import Federation
from fedlab_core.plots import probes as plots_probes
from fedlab_core.workbench import Run, View
from fedlab_core.workbench.tabs import SIZE

GRID, MOST_POINTS, MOST_FOLLOWED = 13, 24, 8
_FOLLOWED: WeakKeyDictionary[Run, dict[int, Mapping[str, Any]]] = WeakKeyDictionary()


def plane_view(run: Run, round: int) -> Figure:
    """The loss on the plane that the run's path leaves least, with the paths of all runs of the panel on it."""
    federation = run.federation
    fig, ((ax,),) = plots.figure(1, 1, SIZE)
    if federation.round < 2:
        return _words(fig, "The plane of a path needs at least two rounds.")
    shown = _thinned(federation.round)
    plane = probes.plane_of_path([federation.state_at(t) for t in shown], federation.trained_names)
    names = set(federation.trained_names)
    same = [r for r in run.overlaid if names == set(r.federation.trained_names) and _fits(r, run)]
    found = {r.name: plane.path(r.federation.state_at(t) for t in _thinned(r.round)) for r in same}
    around = [point for path in found.values() for point in path]
    for seen in probes.scan(federation, plane, around, size=GRID):  # noqa: B007  (the last one is drawn)
        pass
    plots_probes.landscape(ax, seen)
    plots_probes.paths(ax, found)
    off = found[run.name][:, 2].max() if run.name in found else 0.0
    fig.suptitle(f"test loss; the path of {run.name} leaves its plane by {off:.2g} at most", fontsize=10)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def triangle_view(run: Run, round: int) -> Figure:
    """All mixtures of three sampled clients' models of the round, and their average at the star."""
    federation = run.federation
    fig, ((loss, accuracy),) = plots.figure(1, 2, SIZE)
    if not 1 <= round <= federation.round:
        accuracy.set_axis_off()
        return _words(fig, "Round 0: before any training, no client has a model of its own.")
    inside = federation.inside(round)
    if len(inside.updates) < 3:
        accuracy.set_axis_off()
        return _words(fig, "The triangle needs three sampled clients.")
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
    """Mean, standard deviation and worst of mixtures of the clients' models over rounds, for the run shown and for
    others of the panel that were looked at before; computed once, from the kept snapshots."""
    fig, ((accuracy, per_drift),) = plots.figure(1, 2, SIZE)
    federation, known = run.federation, _FOLLOWED.setdefault(run, {})
    if federation.round < 1:
        per_drift.set_axis_off()
        return _words(fig, "Round 0: before any training, no client has a model of its own.")
    if min(len(federation.partition), federation.settings.clients_per_round(len(federation.partition))) < 2:
        per_drift.set_axis_off()
        return _words(fig, "Mixtures need at least two sampled clients.")
    for t in _followed(run):
        if t not in known:
            known[t] = probes.spread(federation, t, count=12)
    found = {r.name: [row for t, row in sorted(_FOLLOWED.get(r, {}).items()) if t <= r.round] for r in run.overlaid}
    plots_probes.spread_over_rounds(accuracy, per_drift, found)
    for ax in (accuracy, per_drift):
        ax.axvline(round, color="0.6", linewidth=1)
        ax.xaxis.get_major_locator().set_params(integer=True)
    accuracy.set_title("12 mixtures: mean, sd, worst (x)")
    per_drift.set_title("stable, or only still?")
    fig.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=4)
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


def _followed(run: Run) -> list[int]:
    """Rounds that begin at a kept snapshot, at most `MOST_FOLLOWED` and the last; more rounds keep every second."""
    at = [t + 1 for t in run.federation.timeline.rounds() if t < run.round]
    step = 1
    while len(at[::step]) > MOST_FOLLOWED:
        step *= 2
    return sorted({*at[::step], at[-1]})


def _words(fig: Figure, text: str) -> Figure:
    ax = fig.axes[0]
    ax.set_axis_off()
    ax.text(0, 0.5, text, fontsize=9)
    return fig


def _thinned(rounds: int) -> list[int]:
    """Rounds 0 to the last, at most `MOST_POINTS` of them."""
    step = -(-(rounds + 1) // MOST_POINTS)
    return [*range(0, rounds, step), rounds]


def _fits(one: Run, other: Run) -> bool:
    a, b = (r.federation.state for r in (one, other))
    return a.keys() == b.keys() and all(a[name].shape == b[name].shape for name in a)


VIEWS = (
    View("Plane", plane_view, slow=True),
    View("Triangle", triangle_view, slow=True),
    View("Stability", stability_view, slow=True),
    View("Starts", starts_view),
)
