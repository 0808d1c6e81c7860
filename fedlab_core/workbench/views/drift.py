"""Drift: the clients' updates of a round as arrows, and how far they pull apart over rounds."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedlab_core import plots
from fedlab_core.federation import Federation
from fedlab_core.workbench.runs import Run
from fedlab_core.workbench.tabs import SIZE, View, legend, lines_of, rounds_axis

MOST_NAMED = 12  # clients whose arrows are numbered
_KNOWN: WeakKeyDictionary[Run, dict[int, "Arrows"]] = WeakKeyDictionary()
OVER_ROUNDS = {
    "relative_drift": r"relative drift $\Vert w_k - w_t \Vert \,/\, \Vert w_t \Vert$",
    "cosine": "cosine between updates",
    "diversity": "gradient diversity",
}


@dataclass(frozen=True)
class Arrows:
    """The updates of a round in the plane that holds most of their length.

    Attributes:
        clients: their numbers.
        tips: (clients, 2) ends of the updates w_k - w_t; they begin at the origin, the model all received.
        mean: (2,) end of the averaged update.
        share: of the squared lengths of all updates that lies in the plane, 0 to 1.
    """

    clients: tuple[int, ...]
    tips: NDArray
    mean: NDArray
    share: float


def arrows(federation: Federation, round: int) -> Arrows:
    """The updates of a round, replayed, along their two largest principal directions (uncentred).

    The first direction points where the mean does, so that neighbouring rounds look alike.

    Args:
        round: from 1.
    """
    inside, names = federation.inside(round), federation.trained_names
    m = len(inside.updates)
    gram = torch.zeros((m, m), dtype=torch.float64, device=next(iter(inside.start.values())).device)
    for name in names:
        start = inside.start[name].flatten()
        moved = torch.stack([update.state[name].flatten() - start for update in inside.updates]).double()
        gram = gram + moved @ moved.T
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.clamp_min(0).flip(0)[:2], vectors.flip(1)[:, :2]
    tips = vectors * values.sqrt()
    if m == 1:  # a single update has no second direction
        tips = torch.cat((tips, torch.zeros(1, 1, dtype=tips.dtype)), 1)
    mean = torch.tensor(inside.shares, dtype=tips.dtype) @ tips
    signs = torch.where(mean < 0, -1.0, 1.0)
    share = float(values.sum() / gram.trace().clamp_min(torch.finfo(gram.dtype).tiny))
    clients = tuple(update.client for update in inside.updates)
    return Arrows(clients, (tips * signs).numpy(), (mean * signs).numpy(), share)


def arrows_of(run: Run, round: int) -> Arrows:
    """The arrows of a run's round, computed once."""
    known = _KNOWN.setdefault(run, {})
    if round not in known:
        known[round] = arrows(run.heeding, round)
    return known[round]


def draw_arrows(ax: Axes, found: Arrows, color: str) -> Axes:
    """Arrows of the clients' updates and of their mean, all from the model that every client received."""
    ends = np.concatenate((found.tips, found.mean[None], np.zeros((1, 2))))
    low, high = ends.min(0), ends.max(0)
    reach = 0.58 * max((high - low).max(), 1e-12)
    middle = (low + high) / 2
    look = {"angles": "xy", "scale_units": "xy", "scale": 1, "units": "inches"}
    ax.quiver(*np.zeros_like(found.tips).T, *found.tips.T, color=color, alpha=0.75, width=1.4 / 72, **look)
    ax.quiver(0, 0, *found.mean, color="black", width=3 / 72, **look)
    if len(found.clients) <= MOST_NAMED:
        for client, tip in zip(found.clients, 1.06 * found.tips, strict=True):
            ax.text(*tip, str(client), fontsize=8, ha="center", va="center", color="0.25")
    ax.plot(0, 0, "o", color="white", markeredgecolor="black", zorder=5)
    (left, bottom), (right, top) = middle - reach, middle + reach
    ax.set(aspect="equal", xlim=(left, right), ylim=(bottom, top))
    ax.axhline(0, color="0.92", linewidth=1, zorder=0)
    ax.axvline(0, color="0.92", linewidth=1, zorder=0)
    return ax


def drift_view(run: Run, round: int) -> Figure:
    """The round's updates as arrows; relative drift, cosine and gradient diversity of all runs over rounds."""
    fig, (left, *right) = plots.mosaic("ab;ac;ad", SIZE, width_ratios=[1.15, 1])
    record = run.at(round)
    if record is None or not record.clients:
        left.set_axis_off()
        left.text(0, 0.5, "Round 0: before any training,\nno client has moved yet.", fontsize=9)
    elif not np.isfinite(record.metrics["drift"]):
        left.set_axis_off()
        left.text(0, 0.5, f"Round {round}: the updates are\nno longer finite.", fontsize=9)
    else:
        found = arrows_of(run, round)
        draw_arrows(left, found, run.line.style["color"])
        what = f"{len(found.clients)} updates; thick: their mean"
        left.set_title(
            f"round {round}: {what}\n{100 * found.share:.0f} % of their squared length is in this plane", fontsize=9
        )
        left.set_xlabel(f"drift {record.metrics['drift']:.2f}: mean full length of the thin arrows", fontsize=8)
        left.tick_params(labelsize=7)
        left.locator_params(nbins=5)
    for ax, (key, title) in zip(right, OVER_ROUNDS.items(), strict=True):
        plots.curves(ax, lines_of(run, reference=False), key, at=round)
        rounds_axis(ax, run)
        ax.set_title(title, fontsize=8)
        ax.set_ylabel("")
        ax.tick_params(labelsize=7)
        ax.set_xlabel("round" if key == "diversity" else "", fontsize=8)
    right[1].set_ylim(-1.02, 1.02)
    for ax, key in ((right[0], "relative_drift"), (right[2], "diversity")):
        heights = [r.metrics.get(key, 0.0) for one in run.overlaid for r in one.federation.past.records]
        ax.set_ylim(0, 1.1 * max(filter(np.isfinite, heights), default=0.0) or None)
    legend(fig, right[0])
    return fig


VIEW = View("Drift", drift_view, slow=True)
