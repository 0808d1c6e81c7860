"""Pictures of layer-wise training; like those of `plots`, drawn into the Axes they are given unless they return a
Figure."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from fedlab_core.check import Depth, checked
from fedlab_core.costs import MIB, Memory
from fedlab_core.layerwise.stages import Stage
from fedlab_core.plots import figure, lines_across, logarithmic, look, places

KINDS: dict[str, dict[str, Any]] = {
    "trained": {"facecolor": "#E69F00", "edgecolor": "black", "linewidth": 1.4},
    "frozen": {"facecolor": "#C9DCEB", "edgecolor": "#0072B2", "hatch": "////", "linewidth": 1.0},
    "dropped": {"facecolor": "white", "edgecolor": "#0072B2", "linestyle": (0, (4, 3)), "linewidth": 1.0},
    "not there yet": {"facecolor": "0.96", "edgecolor": "0.8", "linestyle": (0, (1, 2)), "linewidth": 1.0},
}
"""How a part of the network is drawn, by what happens to it in a step."""
PARTS = (("kept", "kept for backward", "#D55E00", ""), ("weights", "weights", "#0072B2", "////"),
         ("gradients", "gradients", "#56B4E9", "...."), ("optimiser", "optimiser", "#CC79A7", "xxxx"))  # fmt: skip
AXIS_LABELS = {
    "round": ("rounds", 1.0),
    "flops": ("TFLOP, all clients", 1e12),
    "bytes": ("MB sent both ways,\nclients keep frozen blocks", 1e6),
    "bytes_stateless": ("MB sent both ways,\nclients keep nothing", 1e6),
}
MEASURES = {"knn": "nearest neighbours", "probe": "linear probe", "few": "linear probe, few labels"}


@checked
def network(ax: Axes, units: Depth, stage: Stage, kept: Sequence[bool] | None = None) -> Axes:
    """The network from the input (bottom) to the heads: which units are frozen, trained, dropped, or still to come.

    Args:
        units: of the whole network.
        stage: of the round.
        kept: (depth,) units that take part in the step.
    """
    kinds = ["frozen" if stage.frozen else "trained"]
    for i in range(units):
        present = i < stage.depth
        dropped = present and kept is not None and not kept[i]
        kind = "frozen" if i < stage.frozen else "trained"
        kinds.append("not there yet" if not present else "dropped" if dropped else kind)
    kinds.append("trained")
    names = ["stem", *(f"block {i + 1}" for i in range(units)), "heads"]
    for row, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        wide = 0.4 if 0 < row <= units else 0.32
        box = FancyBboxPatch((-wide, row + 0.14), 2 * wide, 0.72, boxstyle="round,pad=0.02", **KINDS[kind])
        ax.add_patch(box)
        size = 9 if units <= 10 else 7
        background = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85} if kind == "frozen" else None
        ax.text(
            0,
            row + 0.5,
            name,
            ha="center",
            va="center",
            fontsize=size,
            bbox=background,
            color="0.65" if kind == "not there yet" else "black",
            weight="bold" if kind == "trained" else "normal",
        )
        if kind != "not there yet":
            ax.text(0.5, row + 0.5, kind, ha="left", va="center", fontsize=size, color="0.25")
    there = [row for row, kind in enumerate(kinds) if kind != "not there yet"]
    for row, above in itertools.pairwise(there):  # the activations' way up, behind what is not there yet
        arrow = {"arrowstyle": "-|>", "color": "0.3", "lw": 1}
        ax.annotate("", (0, above + 0.13), (0, row + 0.87), arrowprops=arrow, zorder=0)
    ax.set(xlim=(-0.55, 0.95), ylim=(-0.1, units + 2.1))
    ax.axis("off")
    return ax


@checked
def memory_bars(ax: Axes, memories: Mapping[str, Memory]) -> Axes:
    """One column per way of training, by name, stacked by what the memory is for, with its total in MiB above."""
    bottom = np.zeros(len(memories))
    for key, label, color, hatch in PARTS:
        heights = np.array([getattr(m, key) / MIB for m in memories.values()])
        ax.bar(list(memories), heights, 0.62, bottom, color=color, hatch=hatch, edgecolor="white", label=label)
        bottom += heights
    for x, total in enumerate(bottom):
        ax.text(x, total, f"{total:.2f}", ha="center", va="bottom", fontsize=9)
    ax.set_ylim(0, 1.12 * bottom.max())
    ax.set_ylabel("memory of a training step (MiB)")
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


@checked
def lines(ax: Axes, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Axes:
    """Named lines, each with its own colour, dashes and marker."""
    index = places(curves)
    for name, (x, y) in curves.items():
        ax.plot(x, y, label=name, **look(index[name]))
    lines_across(ax)
    return ax


@checked
def budgets(
    axes: Sequence[Axes],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    measure: str,
    floor: float,
    ceiling: float | None = None,
) -> Sequence[Axes]:
    """One measure over rounds, FLOPs and bytes: the mean over seeds, and a band from the worst to the best of them.

    Args:
        axes: one per key of `AXIS_LABELS`, in order; fewer show the first ones.
        runs: by name, one per seed, as `studies.layerwise_runs.run` returns them.
        measure: a key of `MEASURES`.
        floor, ceiling: accuracy of random frozen features, and of supervised training.
    """
    index = places(runs)
    for ax, (axis, (label, unit)) in zip(axes, AXIS_LABELS.items(), strict=False):
        for name, seeds in runs.items():
            values = np.array([one[measure][1:] for one in seeds])
            x = np.mean([one[axis][1:] for one in seeds], 0) / unit
            own = look(index[name], 4.0)
            ax.plot(x, values.mean(0), label=name, **own)
            ax.fill_between(x, values.min(0), values.max(0), color=own["color"], alpha=0.15, linewidth=0)
        ax.axhline(floor, color="0.3", linewidth=1.2, linestyle=(0, (1, 1.5)), label="random frozen features")
        if ceiling is not None:
            ax.axhline(ceiling, color="0.3", linewidth=1.2, linestyle=(0, (6, 2)), label="supervised, end-to-end")
        ax.set_xlabel(label)
        lines_across(ax)
        if axis != "round":
            logarithmic(ax)
    axes[0].set_ylabel(f"{MEASURES[measure]}, accuracy", fontsize=8)
    return axes


@checked
def three_budgets(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """The recorded comparison: nearest neighbours and the few-label probe over rounds, FLOPs and both sums of bytes.

    Args:
        found: runs by name, one per seed, see `studies.layerwise_runs.run`.
    """
    fig, axes = figure(2, 4, (9.6, 5.8))
    runs = {name: seeds for name, seeds in found.items() if name not in ("centralised", "supervised")}
    for row, measure in zip(axes, ("knn", "few"), strict=True):
        floor = float(np.mean([one[measure][0] for one in runs["end-to-end"]]))
        ceiling = float(np.mean([one["accuracy"] for one in found["supervised"]])) if measure == "knn" else None
        budgets(row, runs, measure, floor, ceiling)
        low, high = min(ax.get_ylim()[0] for ax in row), max(ax.get_ylim()[1] for ax in row)
        for ax in row:
            ax.set_ylim(low, min(high, 1.0))
            ax.tick_params(axis="y", labelleft=ax is row[0])
    for ax in axes[0]:
        ax.set_xlabel("")
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


@checked
def dropout_rates(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """The recorded runs over dropout rates: accuracy per seed and its mean, and the FLOPs and bytes they took.

    Args:
        runs: by rate, one per seed, see `studies.layerwise_runs.run`.
    """
    fig, axes = figure(1, 2, (9, 3.6))
    rates = [name for name in runs if "mask" not in name]
    x = [float(rate) for rate in rates]
    for i, (measure, label) in enumerate(MEASURES.items()):
        values = [[one[measure][-1] for one in runs[rate]] for rate in rates]
        axes[0, 0].plot(x, [np.mean(seeds) for seeds in values], label=label, **look(i))
        for at, seeds in zip(x, values, strict=True):
            axes[0, 0].plot([at] * len(seeds), seeds, alpha=0.6, **look(i, 3.0) | {"linestyle": "none"})
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set(ylabel="accuracy", ylim=(low - 0.3 * (high - low), high))  # room for the legend
    first = runs[rates[0]][0]
    for i, (axis, label) in enumerate({"flops": "FLOPs", "bytes_stateless": "bytes, clients keep nothing",
                                       "bytes": "bytes, clients keep frozen blocks"}.items()):  # fmt: skip
        y = [np.mean([one[axis][-1] for one in runs[rate]]) / first[axis][-1] for rate in rates]
        axes[0, 1].plot(x, y, label=label, **look(i + 3))
    axes[0, 1].set(ylabel="relative to no dropout", ylim=(0, 1.1))
    for ax in axes.flat:
        ax.set(xlabel="probability of dropping a frozen block", xticks=x)
        lines_across(ax)
        ax.legend(loc="lower left")
    return fig
