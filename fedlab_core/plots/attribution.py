"""Pictures of an attribution: from centralised to federated cause by cause, cell by cell, and round by round."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fedlab_core.check import checked, choice, whole
from fedlab_core.plots import LINE_COLORS
from fedlab_core.probes.attribution import Attribution, interval

LABELS = {"test_accuracy": "test accuracy", "test_loss": "test loss (nats)"}
COLORS = {
    "skew": LINE_COLORS[0],
    "local steps": LINE_COLORS[1],
    "participation": LINE_COLORS[2],
    "statistics": LINE_COLORS[3],
}
_BAND: dict[str, Any] = {"alpha": 0.15, "linewidth": 0}


def _check(found: Attribution, measure: str, round: int = -1) -> None:
    choice("measure", measure, found.values)
    whole("round", round, -len(found.rounds), len(found.rounds) - 1)


@checked
def waterfall(ax: Axes, found: Attribution, measure: str = "test_accuracy", round: int = -1) -> Axes:
    """Steps from centralised to federated training, one for every cause: its Shapley value with a 95 % interval.

    Args:
        measure: a key of `found.values`.
        round: position among the evaluated rounds.
    """
    _check(found, measure, round)
    values, parts = found.values[measure][..., round], found.parts(measure)[..., round]
    names = ["centralised", *found.causes, "federated"]
    level = values[:, 0].mean().item()
    ends = [interval(values[:, 0]), *(interval(part) for part in parts.T), interval(values[:, -1])]
    for place, (name, (mean, low, high)) in enumerate(zip(names, ends, strict=True)):
        whole = name not in found.causes
        base = 0.0 if whole else level
        top = mean if whole else level + mean
        color = "0.75" if whole else COLORS[name]
        ax.bar(place, top - base, bottom=base, color=color, width=0.62)
        if np.isfinite(low):
            ax.vlines(place, base + low, base + high, color="0.2", linewidth=1.2)
        if place + 1 < len(names):
            ax.plot([place + 0.31, place + 0.69], [top, top], color="0.5", linewidth=0.8)
        text = f"{mean:.3f}" if whole else f"{mean:+.3f}"
        ax.annotate(text, (place, max(top, base, base + high if np.isfinite(high) else top)), (0, 3),
                    textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
        level = top
    ax.set_xticks(range(len(names)), names, fontsize=8, rotation=30, ha="right", rotation_mode="anchor")
    seeds = len(found.seeds)
    ax.set(ylabel=LABELS.get(measure, measure), xlim=(-0.6, len(names) - 0.4))
    ax.set_title(f"round {found.rounds[round]}, {seeds} seed{'s, 95 % intervals' if seeds > 1 else ''}", fontsize=9)
    ax.set_ylim(0, 1.06 * ax.get_ylim()[1])
    return ax


@checked
def cells(ax: Axes, found: Attribution, measure: str = "test_accuracy", round: int = -1) -> Axes:
    """What every cell measured, best on top; the dots on the left say which causes are on.

    Args:
        measure, round: see `waterfall`.
    """
    _check(found, measure, round)
    values = found.values[measure][..., round]
    means = [f"{mean:.9f}" for mean in values.mean(0).tolist()]  # equal where cells differ by rounding only
    worst_last = 1.0 if measure.endswith("loss") else -1.0
    order = sorted(range(len(found.cells)), key=lambda k: (worst_last * float(means[k]), len(found.cells[k])))
    low, high = values.min().item(), values.max().item()
    width = max(high - low, 1e-9)
    columns = {cause: low - width * (0.08 + 0.09 * (len(found.causes) - i)) for i, cause in enumerate(found.causes)}
    for row, k in enumerate(order):
        ax.plot(values[:, k], [row] * len(values), "o", color="0.3", markersize=3.5, alpha=0.6)
        ax.vlines(values[:, k].mean(), row - 0.35, row + 0.35, color="0.1", linewidth=1.6)
        for cause, x in columns.items():
            on = cause in found.cells[k]
            ax.plot(x, row, "o", color=COLORS[cause] if on else "0.9", markersize=6.5, clip_on=False)
    for cause, x in columns.items():
        ax.annotate(cause, (x, -0.8), rotation=60, ha="left", va="bottom", fontsize=7, annotation_clip=False)
    ax.set(
        yticks=[], xlabel=LABELS.get(measure, measure), xlim=(min(columns.values()) - 0.05 * width, high + 0.05 * width)
    )
    ax.set_ylim(len(order) - 0.4, -0.7)
    ax.set_xticks([tick for tick in ax.get_xticks() if low - 0.03 * width <= tick <= high + 0.05 * width])
    ax.spines["left"].set_visible(False)
    ax.grid(axis="y", color="0.94")
    return ax


@checked
def over_rounds(ax: Axes, found: Attribution, measure: str = "test_accuracy") -> Axes:
    """The part of every cause over rounds, and the gap that they add up to; bands are 95 % intervals over the seeds."""
    _check(found, measure)
    lines = {"gap": found.gap(measure), **{c: found.parts(measure)[:, i] for i, c in enumerate(found.causes)}}
    for name, values in lines.items():
        mean, low, high = np.array([interval(column) for column in values.T]).T
        color = COLORS.get(name, "0.2")
        ax.plot(found.rounds, mean, color=color, label=name, linestyle="--" if name == "gap" else "-", linewidth=1.6)
        if np.isfinite(low).all():
            ax.fill_between(found.rounds, low, high, color=color, **_BAND)
    ax.axhline(0, color="0.75", linewidth=0.8, zorder=0)
    ax.set(xlabel="round", ylabel=f"{LABELS.get(measure, measure)}, part of the gap")
    ax.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return ax
