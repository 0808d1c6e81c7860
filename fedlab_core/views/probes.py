"""Weight space in the workbench: the plane of a run's path, the triangle of three clients, stability over rounds."""

from matplotlib.figure import Figure

from fedlab_core import plots, probes
from fedlab_core.plots import probes as plots_probes
from fedlab_core.workbench import Run, View
from fedlab_core.workbench.views import SIZE

GRID, MOST_POINTS = 13, 24


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
    ax.set_title(f"test loss; the path of {run.name} leaves its plane by {off:.2g} at most")
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


VIEWS = (View("Plane", plane_view, slow=True), View("Triangle", triangle_view, slow=True))
