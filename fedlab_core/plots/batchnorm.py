"""Pictures of batch normalisation in a federation; like those of `plots`, drawn into the Axes they are given."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from fedlab_core.check import checked, sized
from fedlab_core.hints import Shaped
from fedlab_core.plots import COLORMAP, LINE_COLORS, OKABE_ITO, Line, lines_across, look, places

SOURCES = {
    "local": "local BN (both sources)",
    "forward": "only mean and variance are local",
    "backward": "only their gradients are local",
}


@checked
def normalise(values: Annotated[ArrayLike, Shaped()], mean: float, variance: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + 1e-5), batch normalisation before gamma and beta."""
    return (np.asarray(values, float) - mean) / np.sqrt(variance + 1e-5)


@checked
def number_lines(
    axes: Sequence[Axes], a: Annotated[ArrayLike, Shaped("values")], b: Annotated[ArrayLike, Shaped("values")]
) -> Sequence[Axes]:
    """Two clients' numbers in one channel: as they are, normalised by each client alone, and normalised together.

    Args:
        axes: three.
        a, b: the channel's values in client A's and client B's batch.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    both = np.concatenate([a, b])
    alone = [normalise(v, v.mean(), v.var()) for v in (a, b)]
    together = [normalise(v, both.mean(), both.var()) for v in (a, b)]
    titles = ("what the layer receives", "each client alone", "both together")
    for ax, title, pair in zip(axes, titles, ((a, b), alone, together), strict=True):
        for row, values in enumerate(pair):
            mark = look(row, 8.0) | {"linestyle": "none"}
            ax.vlines(values.mean(), 0.72 - row, 1.28 - row, color=mark["color"], linewidth=1.5)
            ax.plot(values, np.full(len(values), 1.0 - row), alpha=0.85, **mark)
            ax.annotate(
                f"mean {values.mean():.1f}".replace("-0.0", "0.0"),
                (values.mean(), 1.34 - row),
                ha="center",
                fontsize=8,
                color=mark["color"],
            )
        ax.set(title=title, yticks=(0, 1), yticklabels=("client B", "client A"), ylim=(-0.6, 1.7))
        ax.set_xlim((-2, 12) if ax is axes[0] else (-2.6, 2.6))
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
    return axes


@checked
def mismatch_map(
    ax: Axes,
    values: Annotated[ArrayLike, Shaped("layers", "clients")],
    layers: Sequence[str],
    clients: Sequence[int],
    most: float = 1.0,
) -> Axes:
    """Layers from the input (top) to the output, a column per client, colour = mismatch from 0 to `most`.

    Args:
        values: (layers, clients), as in `measures.Mismatch`.
        layers, clients: their names and numbers.
        most: end of the colour scale; larger values have the colour of the end.
    """
    import pandas as pd  # with seaborn a second that other pictures need not wait for
    import seaborn

    table = pd.DataFrame(sized("values", values, layers=len(layers), clients=len(clients)), list(layers), list(clients))
    bar = {"extend": "max" if table.to_numpy().max(initial=0) > most else "neither"}
    few = {"annot": table.size <= 60, "fmt": ".2f", "annot_kws": {"fontsize": 8}}
    seaborn.heatmap(table, ax=ax, vmin=0, vmax=most, cmap=COLORMAP, cbar_kws=bar, **few)
    ax.tick_params(length=0)
    ax.tick_params(axis="y", labelrotation=0, labelsize=7)
    ax.set(xlabel="client", ylabel="batch-norm layer")
    return ax


@checked
def deviation_by_depth(
    ax: Axes, tensors: Sequence[str], sizes: Mapping[str, Annotated[ArrayLike, Shaped("tensors")]]
) -> Axes:
    """Relative gradient deviation of every parameter tensor, first layer on the left, one line per source, log scale.

    Args:
        tensors: names of the parameters.
        sizes: by source, a key of `SOURCES`, one number per tensor.
    """
    for i, (source, values) in enumerate(sizes.items()):
        label = SOURCES.get(source, source)
        found = sized("sizes", values, tensors=len(tensors))
        ax.plot(range(len(tensors)), np.maximum(found, 1e-16), label=label, **look(i))
    step = -(-len(tensors) // 24)
    ax.set_xticks(range(0, len(tensors), step), tensors[::step], rotation=40, ha="right", fontsize=7)
    ax.set_yscale("log")
    ax.axhline(1, color="0.75", linewidth=1, zorder=0)
    ax.set_ylabel(r"$\Vert D \Vert \,/\, \Vert \nabla F \Vert$")
    lines_across(ax)
    return ax


@checked
def deviation_over_skew(ax: Axes, rows: Sequence[Mapping[str, Any]], source: str = "local") -> Axes:
    """Relative gradient deviation over label skew, one line per round looked at.

    Args:
        rows: as `studies.batchnorm_exact.at_skews` returns them.
        source: a key of `SOURCES`.
    """
    for i, number in enumerate(sorted({row["round"] for row in rows})):
        part = [row for row in rows if row["round"] == number]
        sizes = [row["deviation"][source]["size"] for row in part]
        ax.plot([row["skew"] for row in part], sizes, label=f"after {number} rounds", **look(i))
    ax.set(xlabel="label skew (0: IID, 1: two classes per client)", yscale="log")
    ax.set_ylabel(r"$\Vert D \Vert \,/\, \Vert \nabla F \Vert$")
    ax.axhline(1, color="0.75", linewidth=1, zorder=0)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if ax.get_ylim()[0] <= tick <= ax.get_ylim()[1]]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    lines_across(ax)
    ax.legend()
    return ax


@checked
def without_noise(axes: Sequence[Axes], runs: Sequence[Mapping[str, Any]]) -> Sequence[Axes]:
    """The objective F and the norm of its gradient over rounds, of runs without sampling noise.

    Args:
        axes: two.
        runs: as `studies.batchnorm_exact.full_batch` returns them.
    """
    index = places(dict.fromkeys(run["variant"] for run in runs))
    rates = list(dict.fromkeys((run["lr"], run["lr_decay"]) for run in runs))
    for ax, key in zip(axes, ("objective", "gradient"), strict=True):
        for run in runs:
            i, j = index[run["variant"]], rates.index((run["lr"], run["lr_decay"]))
            rate = f"lr {run['lr']:g}" + (", decaying" if run["lr_decay"] < 1 else "")
            width = 4 if run["variant"].startswith("centralised") else 1.8  # drawn below FedTAN, which lies on it
            style = {"color": look(i)["color"], "linestyle": look(j)["linestyle"], "linewidth": width}
            style |= {"alpha": 0.4, "zorder": 1} if width == 4 else {}
            ax.plot(run["round"], run[key], label=f"{run['variant']}, {rate}", **style)
        ax.set_xlabel("round = one step on all data")
        ax.grid(axis="y", color="0.92")  # over the line that lies below FedTAN
    axes[0].set(title="objective F of centralised training", ylim=(0, None))
    axes[1].set(title=r"norm of its gradient, $\Vert \nabla F \Vert$", yscale="log")
    return axes


@checked
def left_out(ax: Axes, errors: Mapping[str, float]) -> Axes:
    """Relative error of the clients' mean gradient by what is left out, one bar each, log scale.

    Args:
        errors: as `studies.batchnorm_exact.identity` returns them.
    """
    names = list(errors)
    values = [max(errors[name], 1e-17) for name in names]
    colors = [OKABE_ITO[2] if value < 1e-10 else OKABE_ITO[5] for value in values]
    ax.barh(range(len(names)), values, color=colors, left=1e-17)
    for row, value in enumerate(values):
        ax.annotate(f"{value:.0e}" if value < 1e-3 else f"{value:.2f}", (value * 1.6, row), va="center", fontsize=8)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(
        xscale="log", xlim=(1e-17, 1e3), xlabel=r"$\Vert \sum_k p_k g_k - \nabla F \Vert \,/\, \Vert \nabla F \Vert$"
    )
    return ax


@checked
def finals(ax: Axes, runs: Mapping[str, Sequence[Mapping[str, Any]]], x: str = "test") -> Axes:
    """Final test accuracy by variant: a mark per seed, a bar at their mean, best on top.

    Args:
        runs: by variant, one per seed, see `studies.arms.outcome`.
        x: the number of each run to show.
    """
    means = {name: np.mean([run[x] for run in found]) for name, found in runs.items()}
    order = sorted(means, key=lambda name: -means[name])
    for row, name in enumerate(order):
        values = [run[x] for run in runs[name]]
        ax.barh(row, means[name], color="0.9", height=0.7, zorder=1)
        ax.plot(values, [row] * len(values), "o", color=LINE_COLORS[0], markersize=5, alpha=0.8)
        ax.annotate(f"{means[name]:.3f}", (0.01, row), va="center", fontsize=8)
    ax.set_yticks(range(len(order)), order)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.0), xlabel="test accuracy of the one global model (mark: seed)")
    return ax


@checked
def accuracy_against(ax: Axes, runs: Mapping[str, Sequence[Mapping[str, Any]]], x: str = "round") -> Axes:
    """Test accuracy, mean over the seeds, against "round", "exchanges" (log scale) or "megabytes".

    Args:
        runs: by variant, one per seed, see `studies.arms.outcome`.
        x: see above.
    """
    index = places(runs)
    for name, found in runs.items():
        ys = np.mean([run["test_accuracy"] for run in found], axis=0)
        xs = np.asarray(found[0][x], float)
        start = 1 if x == "exchanges" else 0
        ax.plot(xs[start:], ys[start:], label=name, markevery=max(1, len(xs) // 8), **look(index[name], 4.0))
    if x == "exchanges":
        ax.set_xscale("log")
    else:
        ax.xaxis.get_major_locator().set_params(integer=True)
    labels = {"round": "round", "exchanges": "exchanges with the server", "megabytes": "megabytes, both ways"}
    ax.set(xlabel=labels[x], ylabel="test accuracy", ylim=(0, 1.02))
    lines_across(ax)
    return ax


@checked
def lines(histories: Mapping[str, Sequence[Any]]) -> list[Line]:
    """Histories by name as lines for `plots.curves`."""
    index = places(histories)
    return [Line(name, history, index=index[name]) for name, history in histories.items()]


@checked
def policies(ax: Axes, rows: Sequence[Any]) -> Axes:
    """An audit: by policy, the accuracy of the global model and the mean of the clients' models.

    Args:
        rows: of `batchnorm.audit.Audit`, the first one at the top; those that were refused have no marks.
    """
    for y, row in enumerate(rows):
        if row.accuracy is not None and row.clients is not None:
            ax.hlines(y, *sorted((row.accuracy, row.clients)), color="0.8", linewidth=1.5, zorder=0)
    for key, label, color, marker in (
        ("accuracy", "global model", "black", "o"),
        ("clients", "clients' models after local training, mean", LINE_COLORS[1], "D"),
    ):
        found = [(getattr(row, key), y) for y, row in enumerate(rows) if getattr(row, key) is not None]
        ax.plot(*zip(*found, strict=True), marker, color=color, markersize=7, label=label)
    ax.set(xlabel="test accuracy", xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticks(range(len(rows)), [row.policy for row in rows])
    ax.grid(axis="x", alpha=0.3)
    return ax
