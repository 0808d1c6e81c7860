"""Notebook 00: a round step by step, and the tug of war of the clients' updates."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from fedlab_core import plots
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.partition import label_counts
from fedlab_core.plots import schematics
from fedlab_core.state import flatten
from fedlab_core.workbench.plan import Plan, Result, before

ALL = "all at once"
CLIENTS = plots.LINE_COLORS[1]  # of all clients together, as arrows and as a curve


@dataclass(frozen=True)
class Pull:
    """The clients' updates of one round, seen in the plane of their mean and of what they disagree about most.

    Attributes:
        round: its number.
        clients: who took part, m of them.
        counts: (K, classes) who holds what, of all clients.
        arrows: (m, 2) each update along the mean update, and along the main direction of disagreement.
        sizes: (m,) true lengths of the updates, outside the plane as well.
        mean: length of the mean update.
        cosine: mean cosine between two clients' updates.
        own: (m,) test accuracy of each client's model; accuracy: of their average.
    """

    round: int
    clients: tuple[int, ...]
    counts: NDArray
    arrows: NDArray
    sizes: NDArray
    mean: float
    cosine: float
    own: NDArray
    accuracy: float


def pull(run: Federation, round: int) -> Pull:
    """The pull of a round that has been run."""
    inside, names = run.inside(round), run.trained_names
    start = flatten(inside.start, names).double()
    updates = torch.stack([flatten(u.state, names).double() - start for u in inside.updates])
    shares = torch.tensor(inside.weights, dtype=torch.float64) / sum(inside.weights)
    mean = shares @ updates
    along = mean / mean.norm().clamp_min(1e-12)
    rest = updates - (updates @ along)[:, None] * along
    across = torch.linalg.svd(rest, full_matrices=False).Vh[0]
    across = across * (1.0 if (rest @ across)[0] >= 0 else -1.0)  # the sign of a singular vector means nothing
    own = [r["test_accuracy"] for r in run.evaluate_states([u.state for u in inside.updates])]
    metrics = run.history[round].metrics
    return Pull(
        round,
        tuple(u.client for u in inside.updates),
        label_counts(run.partition, run.dataset.y, run.dataset.num_classes).numpy(),
        torch.stack((updates @ along, updates @ across), 1).numpy(),
        updates.norm(dim=1).numpy(),
        float(mean.norm()),
        metrics.get("cosine", float("nan")),
        np.array(own),
        metrics["test_accuracy"],
    )


def experiment(alpha: float, E: int, clients: int = 10, **_: Any) -> Experiment:
    """Digits dealt out by a Dirichlet distribution; half of the clients, ten at most, take part in a round."""
    skewed = Experiment(partition="dirichlet", partition_options={"alpha": alpha}, clients=clients)
    return skewed.replace(fraction=min(0.5, 10 / clients), epochs=E, batch_size=10, lr=0.1, engine="stacked")


def pulls(alpha: float, E: int, clients: int = 10, **_: Any) -> dict[str, Iterator[Pull]]:
    """One pull per round."""
    run = experiment(alpha, E, clients).build()
    return {"FedAvg": (pull(run, record.round) for record in run.rounds(10**6))}


def tug(ax: Axes, found: Pull, color: str, step: str = ALL) -> Axes:
    """The clients' updates as arrows from the model they received, and their weighted mean in black."""
    reach = 1.15 * max(found.sizes.max(), found.mean)
    if step != "download":
        for client, (x, y) in zip(found.clients, found.arrows, strict=True):
            ax.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.8})
            ax.text(x, y, f" {client}", color=color, fontsize=8, va="center")
    if step in (ALL, "average"):
        look = {"arrowstyle": "-|>", "color": "black", "linewidth": 3, "mutation_scale": 16}
        ax.annotate("", (found.mean, 0), (0, 0), arrowprops=look)
        beside = found.arrows[(found.arrows[:, 0] > 0) & (found.arrows[:, 0] < 1.3 * found.mean), 1]
        side = 1 if (beside < 0).sum() > (beside > 0).sum() else -1  # where fewer clients' numbers stand
        va = "bottom" if side > 0 else "top"
        ax.text(found.mean, 0.07 * side * reach, "mean", ha="right", va=va, fontsize=9, fontweight="bold")
    ax.plot(0, 0, "o", color="black", markersize=6)
    ax.set(xlim=(-0.55 * reach, reach), ylim=(-0.85 * reach, 0.85 * reach), aspect="equal")
    ax.set_xlabel("along the mean update")
    ax.set_ylabel("main disagreement")
    ax.set_title(f"round {found.round}: updates $w_t^k - w_t$")
    return ax


def draw_steps(figure: Any, result: Result) -> None:
    """Server and clients on the left; the updates of the round on the right."""
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    found: Pull | None = result.last()
    if found is None:
        return
    step = result.settings["step"]
    schematics.round_of(left, found.counts, found.clients, None if step == ALL else step)
    tug(right, found, schematics.UPLOAD, step)


def read_steps(result: Result) -> str:
    """What the picture shows, in numbers."""
    found: Pull | None = result.last()
    if found is None:
        return "No round yet."
    return (
        f"Round {found.round}: {len(found.clients)} clients moved {found.sizes.mean():.2f} on average, their mean "
        f"{found.mean:.2f}. Their own models are {found.own.mean():.2f} accurate, the average is {found.accuracy:.2f}."
    )


def draw_tug(figure: Any, result: Result) -> None:
    """The last round's updates; over rounds, how long they are, how long their mean is, and what remains of them."""
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    frames: list[Pull] = result.frames["FedAvg"]
    if not frames:
        return
    tug(left, frames[-1], CLIENTS)
    rounds = [f.round for f in frames]
    lengths = {"each client": [f.sizes.mean() for f in frames], "their mean": [f.mean for f in frames]}
    for (name, values), color, marker in zip(lengths.items(), (CLIENTS, "black"), "so", strict=True):
        middle.plot(rounds, values, color=color, marker=marker, markersize=4, label=name)
    middle.legend(loc="upper right")
    middle.set(xlabel="round", ylim=(0, None), title="length of the updates")
    before(right, result, lambda f: f.round, lambda f: f.cosine)
    if result.earlier:
        right.legend()
    right.plot(rounds, [f.cosine for f in frames], color=plots.LINE_COLORS[0], marker="o", markersize=4)
    right.axhline(0, color="0.6", linewidth=0.8)
    right.set(xlabel="round", ylim=(-0.5, 1.02), title="mean cosine between two clients")


def read_tug(result: Result) -> str:
    """How much of what the clients walked is left in the mean, at the first and at the last round."""
    frames: list[Pull] = result.frames["FedAvg"]
    if not frames:
        return "No round yet."
    first, last = frames[0], frames[-1]
    return (
        f"The mean is {100 * first.mean / first.sizes.mean():.0f} % as long as the clients' updates in round 1, "
        f"{100 * last.mean / last.sizes.mean():.0f} % in round {last.round}; cosine between clients {first.cosine:.2f} "
        f"and {last.cosine:.2f}; accuracy {last.accuracy:.2f}."
    )


ALPHAS = (0.05, 0.1, 0.3, 1.0, 100.0)
STEP_BY_STEP = Plan(
    "A round, step by step",
    pulls,
    {"alpha": ALPHAS, "E": (1, 5, 20), "step": (ALL, *schematics.STEPS)},
    {"alpha": 0.3, "E": 5},
    rounds=6,
    draw=draw_steps,
    sentence=read_steps,
    experiment=experiment,
    size=(10.0, 3.6),
    about={"step": "The part of the round that is shown; all parts are trained"},
    views=("step",),
)
TUG_OF_WAR = Plan(
    "Tug of war: where do the clients pull?",
    pulls,
    {"alpha": ALPHAS, "E": (1, 2, 5, 20), "clients": (4, 10, 20, 50)},
    {"alpha": 0.1, "E": 5, "clients": 10},
    rounds=12,
    draw=draw_tug,
    sentence=read_tug,
    experiment=experiment,
    size=(10.5, 3.5),
    about={"clients": "Of the federation; half of them, ten at most, take part in a round"},
)
