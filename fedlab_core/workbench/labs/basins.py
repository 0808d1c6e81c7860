"""Notebook 04: do two runs share a basin, how steady is the average, and how do a round's clients hang together?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from fedlab_core import plots, probes
from fedlab_core.experiment import Experiment
from fedlab_core.plots import probes as plots_probes
from fedlab_core.probes.groups import Connectivity, connectivity
from fedlab_core.probes.planes import Landscape, plane_through, scan
from fedlab_core.studies.pretraining_runs import DIGITS
from fedlab_core.workbench.plan import Plan, Result, before
from fedlab_core.workbench.text import sentence

ALPHAS = (0.05, 0.1, 0.3, 100.0)
STARTS = ("random", "letters", "fractal pairs")
THETAS = [i / 16 for i in range(17)]
ROUNDS = 6
RE_ESTIMATED = 400  # training examples that batch norm's statistics are estimated from again


@dataclass(frozen=True)
class Pair:
    """Two runs after a round, and what lies between them.

    Attributes:
        round: rounds done.
        line: loss between the two models, as they are; fresh: with batch norm's statistics re-estimated at every point.
        paths: by run, (points, 3) its way in the plane of the two ends and their start.
        seen: the loss in that plane, once it is being scanned.
    """

    round: int
    line: probes.LossLine
    fresh: probes.LossLine | None
    paths: Mapping[str, NDArray]
    seen: Landscape | None = None


def experiment(start: str, alpha: float, seed: int, norm: str) -> Experiment:
    """The skewed run; its first weights and batches follow from the seed."""
    skewed = DIGITS.replace(partition="dirichlet", partition_options={"alpha": alpha}, lr=0.1, engine="stacked")
    return skewed.replace(start=start, seed=seed, norm=norm, batch_norm="average" if norm == "batch" else None)


def pairs(one: Experiment, other: Experiment) -> Iterator[Pair]:
    """Trains both, then scans the plane through their start and their ends."""
    first, second = one.build(), other.build()
    batch = one.norm == "batch"
    for _ in range(ROUNDS):
        runs = {"IID": first.run(1), "skewed": second.run(1)}
        ends = (first.state, second.state)
        line = probes.line(first, *ends, THETAS, split="test")
        fresh = probes.line(first, *ends, THETAS, split="test", recalibrate_with=RE_ESTIMATED) if batch else None
        plane = plane_through(first.state_at(0), *ends, first.trained_names)
        paths = {name: plane.path(run.state_at(t) for t in range(run.round + 1)) for name, run in runs.items()}
        now = Pair(first.round, line, fresh, paths)
        yield now
    around = [point for path in paths.values() for point in path]
    for seen in scan(first, plane, around, size=17, recalibrate_with=RE_ESTIMATED if batch else None):
        yield Pair(now.round, line, fresh, paths, seen)


def two_runs(start: str, alpha: float, other: str, norm: str) -> Mapping[str, Iterator[Pair]]:
    """IID clients against skewed ones; from the same start, or the skewed run from other first weights."""
    skewed = experiment(start, alpha, 0 if other == "same weights" else 100, norm)
    iid = experiment(start, alpha, 0, norm).replace(partition="iid", partition_options={})
    return {"pair": pairs(iid, skewed)}


def draw_pair(figure: Any, result: Result) -> None:
    """The line between the two models, and the plane through them and their start."""
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    frames: list[Pair] = result.frames["pair"]
    if not frames:
        return
    last = frames[-1]
    for kept, dash in zip(result.earlier, ("-", "--", "-.", ":"), strict=False):
        line, grey = kept.frames["pair"][-1].line, {"color": "0.65", "linewidth": 1.2, "linestyle": dash}
        left.plot(line.theta, line.loss, label=f"before: barrier {line.barrier:.2f}", **grey)
    for i, old in enumerate(f for f in frames if f.round < last.round):
        pale = {"color": plots.LINE_COLORS[0], "alpha": 0.25, "linewidth": 1, "label": "" if i else "earlier rounds"}
        left.plot(old.line.theta, old.line.loss, **pale)
    left.plot(last.line.theta, last.line.loss, "o-", color=plots.LINE_COLORS[0], markersize=4)
    left.plot([], [], "o-", color=plots.LINE_COLORS[0], label=f"round {last.round}: barrier {last.line.barrier:.2f}")
    if last.fresh is not None:
        label = f"statistics re-estimated: barrier {last.fresh.barrier:.2f}"
        left.plot(last.fresh.theta, last.fresh.loss, "s--", color=plots.LINE_COLORS[2], markersize=4, label=label)
    top = max(left.get_ylim()[1], 1.0)
    left.set(xlabel=r"$\theta$ (0: skewed clients, 1: IID)", ylabel="test loss (nats)", ylim=(0, 1.25 * top))
    left.legend(loc="upper center", fontsize=7)
    if last.seen is not None:
        plots_probes.landscape(right, last.seen)
    plots_probes.paths(right, last.paths)
    right.set_title("plane of the start and both ends", fontsize=9)
    right.legend(loc="best", fontsize=7, frameon=True, framealpha=0.9)


def read_pair(result: Result) -> str:
    """The barrier, with and without re-estimated statistics, and the losses at the ends."""
    last: Pair | None = result.last()
    if last is None:
        return "No round yet."
    iid, skewed = last.line.parents
    fresh = "" if last.fresh is None else f", {last.fresh.barrier:.2f} with statistics re-estimated"
    return (
        f"After {last.round} rounds the test losses are {iid:.2f} (IID) and {skewed:.2f} (skewed); between the two "
        f"the loss rises by {last.line.barrier:.2f} nats{fresh}."
    )


BASIN = Plan(
    "Two runs, one basin?",
    two_runs,
    {"start": STARTS, "alpha": ALPHAS, "other": ("same weights", "other weights"), "norm": ("none", "batch")},
    {"start": "random", "alpha": 0.05},
    rounds=30,
    draw=draw_pair,
    sentence=read_pair,
    experiment=lambda start, alpha, other, norm: experiment(start, alpha, 0 if other == "same weights" else 100, norm),
    size=(10.0, 3.9),
    about={
        "other": "First weights of the skewed run: those of the run with IID clients, or others",
        "norm": "Normalisation of the network",
    },
)


# ---------------------------------------------------------------------------------------------- how steady is it


@dataclass(frozen=True)
class Steady:
    """A round's mixtures: `spread` as `probes.spread` gives it, and the loss on the triangle of the first three clients
    with the weights of their average."""

    spread: Mapping[str, float]
    triangle: tuple[float, ...]
    clients: tuple[int, ...]
    shares: tuple[float, ...]


WEIGHTS = probes.triangle_weights(6)


def steady(one: Experiment, count: int) -> Iterator[Steady]:
    """Mixtures of the clients' models after every round."""
    run = one.build()
    for record in run.rounds(10**6):
        three = run.inside(record.round).updates[:3]
        sizes = torch.tensor([u.examples for u in three], dtype=torch.float64)
        found = probes.mixtures(run, [u.state for u in three], WEIGHTS)
        shares = tuple((sizes / sizes.sum()).tolist())
        yield Steady(probes.spread(run, record.round, count=count), found.loss, tuple(u.client for u in three), shares)


def steady_experiment(alpha: float, E: int, start: str, mixtures: int = 20) -> Experiment:
    """Ten clients, all in every round."""
    return experiment(start, alpha, 0, "none").replace(epochs=E)


def draw_steady(figure: Any, result: Result) -> None:
    """The triangle of three clients; mixtures' accuracy over rounds; spread of their loss per unit of drift."""
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
    frames = result.frames
    plots_probes.spread_over_rounds(middle, right, {name: [f.spread for f in fs] for name, fs in frames.items()})
    before(right, result, lambda f: f.spread["round"], lambda f: f.spread["loss_sd"] / f.spread["size"])
    shown = [(name, fs[-1]) for name, fs in frames.items() if fs]
    if shown:
        start, last = shown[-1]
        names = [f"client {k}" for k in last.clients]
        plots_probes.triangle(left, WEIGHTS, last.triangle, names, last.shares)
        what = "mixtures of three clients\n(star: their average)"
        left.set_title(f"{start}, round {int(last.spread['round'])}: {what}", fontsize=9)
        middle.legend(loc="lower right", fontsize=7)
    if result.earlier:
        right.legend(fontsize=7)
    middle.set_title("accuracy of mixtures, ±1 sd, worst x", fontsize=9)
    right.set_title("spread of their loss / drift", fontsize=9)
    right.set_ylabel("")
    middle.set_ylabel("")


def read_steady(result: Result) -> str:
    """Accuracy and spread of the mixtures, absolutely and per unit of drift."""
    parts = []
    for name, frames in result.frames.items():
        if frames:
            s = frames[-1].spread
            per = s["loss_sd"] / s["size"]
            parts.append(
                f"{name}: mixtures {s['accuracy_mean']:.2f} ± {s['accuracy_sd']:.2f}, worst {s['accuracy_worst']:.2f}; "
                f"drift {s['size']:.2f}, spread of the loss per unit of drift {per:.2f}"
            )
    rounds = max((int(f[-1].spread["round"]) for f in result.frames.values() if f), default=0)
    return " ".join([f"Round {rounds}.", *map(sentence, parts)])


STEADY = Plan(
    "How steady is the average?",
    lambda alpha, E, start, mixtures: {
        f"from {name}": steady(steady_experiment(alpha, E, name), mixtures) for name in dict.fromkeys(("random", start))
    },
    {"alpha": ALPHAS, "E": (1, 2, 5, 10), "start": STARTS, "mixtures": (5, 20, 50)},
    {"alpha": 0.05, "E": 2, "start": "letters", "mixtures": 20},
    rounds=10,
    draw=draw_steady,
    sentence=read_steady,
    experiment=steady_experiment,
    size=(10.5, 3.7),
    about={"mixtures": "Random mixtures of the clients' models in every round"},
)


# ---------------------------------------------------------------------------------------------- all clients at once


def connected(one: Experiment) -> Iterator[tuple[int, Connectivity]]:
    """Round and connectivity, round by round."""
    run = one.build()
    while True:
        yield run.run(1).round, connectivity(run, run.round)


def connected_experiment(E: int, alpha: float, start: str) -> Experiment:
    """Ten clients, all in every round."""
    return experiment(start, alpha, 0, "none").replace(epochs=E)


def draw_connected(figure: Any, result: Result) -> None:
    """Above 0 the mean of all clients' models is worse than they are: on the test data, and on their own."""
    left, right = figure.subplots(1, 2)
    for name, index in plots.places(result.frames).items():
        plots_probes.groups(left, right, name, result.frames[name], index)
    left.legend(fontsize=7)


def read_connected(result: Result) -> str:
    """The last round in numbers."""
    parts = []
    for name, frames in result.frames.items():
        for round, c in frames[-1:]:
            said = f"{c.barrier:+.2f} nats on the test data and {c.own:+.2f} on their own, pairs at most {c.worst:.2f}"
            parts.append(f"{name}, round {round}: {said}")
    return f"Loss of the mean minus mean loss: {'; '.join(parts)}." if parts else "No round yet."


CONNECTED = Plan(
    "All clients at once: the group's barrier",
    lambda E, alpha, start: {
        f"E = {e}": connected(connected_experiment(e, alpha, start)) for e in dict.fromkeys((1, E))
    },
    {"E": (1, 5, 20, 50), "alpha": ALPHAS, "start": STARTS},
    {"E": 20, "alpha": 0.05},
    rounds=8,
    draw=draw_connected,
    sentence=read_connected,
    experiment=connected_experiment,
    size=(9.0, 3.4),
)
