"""Figures about averaging models: the loss along the line between two of them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from fedlab_core.check import checked
from fedlab_core.plots import LINE_COLORS
from fedlab_core.probes.lines import LossLine


@checked
def loss_lines(ax: Axes, lines: Sequence[LossLine], title: str, index: int = 0) -> Axes:
    """Loss along the lines between several pairs of models: each pair thin, their mean thick (McMahan et al. 2017,
    figure 1).

    Vertical lines mark the two models, the horizontal one the better of the two, averaged over the pairs.

    Args:
        ax: where to draw.
        lines: at least one, all with the same thetas.
        title: above the Axes.
        index: chooses colour and dashes.

    Raises:
        ValueError: no lines, or different thetas.
    """
    if len({line.theta for line in lines}) != 1:
        raise ValueError(f"lines: {len(lines)} with {len({line.theta for line in lines})} sets of thetas, expected one")
    color = LINE_COLORS[index]
    for line in lines:
        ax.plot(line.theta, line.loss, color=color, alpha=0.35, linewidth=1)
    mean = np.mean([line.loss for line in lines], 0)
    middle = lines[0].theta.index(0.5)
    ax.plot(
        lines[0].theta, mean, color=color, linewidth=2.5, label=f"mean of {len(lines)} pairs" if lines[1:] else None
    )
    ax.plot(0.5, mean[middle], "D", color=color, markersize=7, label="their average")
    better = float(np.mean([min(line.parents) for line in lines]))
    ax.axhline(better, color="0.35", linestyle="--", linewidth=1, label="better of the two models")
    for theta in (0, 1):
        ax.axvline(theta, color="0.75", linewidth=1, zorder=0)
    ax.set_title(title)
    ax.set_xlabel(r"$\theta$ in $\theta\, w + (1 - \theta)\, w'$")
    ax.set_ylabel("loss on the training set (nats)")
    return ax
