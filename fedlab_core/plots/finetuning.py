"""Pictures of fine-tuning; drawn into the Axes they are given unless they return a Figure."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fedlab_core.check import checked
from fedlab_core.plots import LINE_COLORS, figure, lines_across, logarithmic, look

TITLES = {
    "full": "full",
    "head": "head only",
    "bias": "bias",
    "layer_norm": "LayerNorm",
    "vpt_shallow": "prompts, shallow",
    "vpt_deep": "prompts, deep",
    "adapter": "adapter",
    "lora": "LoRA",
    "coop": "text prompt",
}
"""Methods as legends call them."""
COLUMNS = ("embedding", "prompt", "norms", "attention", "LoRA", "MLP", "adapter", "gate", "projection", "scale", "head")
FROZEN, TRAINED = "#C9DCEB", "#E69F00"
AXES = {"round": ("rounds", 1.0), "bytes": ("MB sent, both ways", 1e6), "flops": ("TFLOP, all clients", 1e12)}
COLORS = (*LINE_COLORS, "#7F7F7F")  # one for each of eight methods
Groups = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""By start, or by shots, and by method: one run per seed, see `studies.finetuning_runs.run`."""


@checked
def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, dashes and marker of lines by name.

    A method of `TITLES` looks alike in every picture, and "bias, alone" has the colour of "bias"; other names take
    colours in their order.
    """
    names = list(names)
    methods = [name.partition(",")[0] for name in names]
    found = {}
    for place, (name, method) in enumerate(zip(names, methods, strict=True)):
        known = method in TITLES
        index = list(TITLES).index(method) if known else place
        found[name] = look(index + (methods[:place].count(method) if known else 0)) | {"color": COLORS[index % 8]}
    return found


@checked
def network(ax: Axes, rows: Sequence[Mapping[str, Any]], tower: str = "image") -> Axes:
    """What of a network is trained: a box per part, from the input at the bottom to the head, filled as far as it is.

    Args:
        ax: where to draw.
        rows: as `finetuning.anatomy` returns them.
        tower: which to draw, "image" or "text".
    """
    rows = [row for row in rows if row["tower"] == tower]
    blocks = sorted({row["block"] for row in rows if row["block"] is not None})
    inner = [kind for kind in COLUMNS if any(row["kind"] == kind and row["block"] is not None for row in rows)]
    first = [row for row in rows if row["block"] is None and row["kind"] in ("embedding", "prompt")]
    last = [row for row in rows if row["block"] is None and row["kind"] not in ("embedding", "prompt")]
    levels: list[tuple[str, list[Mapping[str, Any]]]] = [("input", first)]
    levels += [(f"block {block + 1}", [r for r in rows if r["block"] == block]) for block in blocks]
    levels += [("output", last)]
    wide = max(3, len(inner))
    for height, (name, parts) in enumerate(levels):
        ax.text(-0.12, height + 0.5, name, ha="right", va="center", fontsize=8)
        inside = name.startswith("block")
        order = inner if inside else [r["kind"] for r in sorted(parts, key=lambda r: COLUMNS.index(r["kind"]))]
        for row in parts:
            left = order.index(row["kind"]) if inside else wide / 2 - len(parts) / 2 + order.index(row["kind"])
            _part(ax, left, height, row)
    ax.set(xlim=(-0.2, wide + 0.1), ylim=(-0.1, len(levels) + 0.1))
    ax.axis("off")
    return ax


def _part(ax: Axes, left: float, bottom: float, row: Mapping[str, Any]) -> None:
    share = row["trained"] / row["parameters"]
    x, y, width, height = left + 0.04, bottom + 0.1, 0.92, 0.8
    ax.add_patch(Rectangle((x, y), width, height, facecolor=FROZEN, edgecolor="#0072B2", hatch="////", linewidth=0))
    if share:
        filled = max(0.06, share)  # a sliver that can be seen
        ax.add_patch(Rectangle((x, y), width * filled, height, facecolor=TRAINED, edgecolor="black", linewidth=0))
    edge = {"edgecolor": "black", "linewidth": 1.4} if share else {"edgecolor": "#0072B2", "linewidth": 0.8}
    ax.add_patch(Rectangle((x, y), width, height, facecolor="none", **edge))
    said = f"{row['kind']}\n{row['trained']:,}" if share else row["kind"]
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
    weight = "bold" if share else "normal"
    ax.text(left + 0.5, bottom + 0.5, said, ha="center", va="center", fontsize=7, weight=weight, bbox=box)


@checked
def budgets(axes: Iterable[Axes], runs: Mapping[str, Sequence[Mapping[str, Any]]], target: float | None = None) -> None:
    """Test accuracy over rounds, bytes and FLOPs: mean over seeds, and a band from the worst to the best of them.

    Args:
        axes: three.
        runs: by method, one per seed, as `studies.finetuning_runs.run` returns them.
        target: an accuracy to mark.
    """
    axes, looks = list(axes), styles(runs)
    for ax, (axis, (label, unit)) in zip(axes, AXES.items(), strict=True):
        for name, seeds in runs.items():
            shortest = min(len(one["test"]) for one in seeds)
            values = np.array([one["test"][:shortest] for one in seeds])
            x = np.array(seeds[0][axis][:shortest]) / unit
            start = int(axis != "round")  # a logarithmic axis has no zero
            ax.plot(x[start:], values.mean(0)[start:], label=TITLES.get(name, name), **looks[name])
            band = {"color": looks[name]["color"], "alpha": 0.15, "linewidth": 0}
            ax.fill_between(x[start:], values.min(0)[start:], values.max(0)[start:], **band)
        if target is not None:
            ax.axhline(target, color="0.35", linewidth=1, linestyle=":")
        ax.set(xlabel=label, ylim=(0, 1.02))
        if axis != "round":
            logarithmic(ax)
        lines_across(ax)
    axes[0].set_ylabel("test accuracy")


@checked
def dots(ax: Axes, groups: Mapping[str, Mapping[str, Sequence[float]]]) -> Axes:
    """A column of dots per group: one small mark per seed and a large one at their mean, methods side by side.

    Args:
        ax: where to draw.
        groups: accuracies by group, then by method.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    looks = styles(names)
    for i, name in enumerate(names):
        shift = 0.11 * (i - (len(names) - 1) / 2)
        mark = looks[name] | {"linestyle": "none"}
        for x, group in enumerate(groups.values()):
            values = group[name]
            ax.plot([x + shift] * len(values), values, alpha=0.7, **mark | {"markersize": 3})
            label = TITLES.get(name, name) if x == 0 else None
            ax.plot(x + shift, mean(values), label=label, markeredgecolor="black", **mark | {"markersize": 7})
    ax.set_xticks(range(len(groups)), list(groups))
    ax.set(ylabel="test accuracy", ylim=(0, 1.02), xlim=(-0.5, len(groups) - 0.5))
    lines_across(ax)
    return ax


@checked
def strength(starts: Groups) -> Figure:
    """The recorded runs by start: the last accuracy of every method, and the curves of the strongest start."""
    fig, grid = figure(2, 2, (9.6, 6.4))
    first, *others = grid.flat
    dots(first, {n: {m: _ends(seeds) for m, seeds in one.items()} for n, one in starts.items()})
    first.set_title("by start")
    last = list(starts)[-1]
    budgets(others, starts[last])
    for ax in others:
        ax.set_title(f"start: {last}")
    fig.legend(*others[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


@checked
def over_shots(groups: Groups) -> Figure:
    """The recorded runs over shots: accuracy at the end, and before any training."""
    fig, axes = figure(1, 2, (10, 3.8))
    shots = list(groups)
    for name, own in styles(groups[shots[0]]).items():
        kinds = [groups[count][name] for count in shots]
        _band(axes[0, 0], shots, [_ends(seeds) for seeds in kinds], name, own)
        _band(axes[0, 1], shots, [[one["test"][0] for one in seeds] for seeds in kinds], name, own)
    for ax, title in zip(axes.flat, ("after fine-tuning", "before fine-tuning"), strict=True):
        _shots_axis(ax, shots)
        ax.set(title=title, ylim=(0, 1.02), ylabel="test accuracy")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


@checked
def federated_or_alone(groups: Groups) -> Figure:
    """The recorded federated and local-only runs over shots: accuracy on all and on the client's own classes, and
    the gap to the training pictures."""
    fig, axes = figure(1, 3, (10, 3.6))
    shots = list(groups)
    for name, own in styles(groups[shots[0]]).items():
        kinds = [[one["clients"] for one in groups[count][name]] for count in shots]
        for ax, measure in zip(axes.flat, ("test", "own"), strict=False):
            _band(ax, shots, [[one[measure] for one in seeds] for seeds in kinds], name, own)
        _band(axes[0, 2], shots, [[one["train"] - one["own"] for one in seeds] for seeds in kinds], name, own)
    titles = ("all classes", "the client's own classes", "training minus own classes")
    for ax, title in zip(axes.flat, titles, strict=True):
        _shots_axis(ax, shots)
        ax.set(title=title)
    for ax in axes.flat[:2]:
        ax.set(ylim=(0, 1.02), ylabel="test accuracy")
    axes[0, 2].set_ylabel("difference in accuracy")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


@checked
def times_less(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> Axes:
    """How many times less than full fine-tuning each method sends, keeps for the backward pass and computes.

    Args:
        ax: where to draw.
        rows: as `finetuning.cost_table` returns them, the first of them "full".
    """
    kinds = {"bytes": "bytes that travel", "kept": "bytes kept for backward", "flops": "FLOPs of a step"}
    for i, (key, label) in enumerate(kinds.items()):
        values = [rows[0][key] / row[key] for row in rows]
        places = np.arange(len(rows)) + 0.27 * (i - 1)
        hatch = ("", "////", "....")[i]
        ax.bar(places, values, 0.25, label=label, color=LINE_COLORS[i], hatch=hatch, edgecolor="white")
    ax.set_yscale("log")
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set_xticks(range(len(rows)), [TITLES[row["method"]] for row in rows])
    ax.set_ylabel("times less than full")
    ax.legend()
    return ax


def _ends(seeds: Sequence[Mapping[str, Any]]) -> list[float]:
    return [one["clients"]["test"] for one in seeds]


def _band(ax: Axes, shots: Sequence[str], values: Sequence[Sequence[float]], name: str, own: dict[str, Any]) -> None:
    x = [int(count) for count in shots]
    ax.plot(x, [mean(v) for v in values], label=name, **own)
    band = {"color": own["color"], "alpha": 0.12, "linewidth": 0}
    ax.fill_between(x, [min(v) for v in values], [max(v) for v in values], **band)


def _shots_axis(ax: Axes, shots: Sequence[str]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks([int(count) for count in shots], shots)
    ax.set_xlabel("pictures per class and client")
    lines_across(ax)
