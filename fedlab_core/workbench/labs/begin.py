"""Notebook 03: starts against server optimisers, and two layers in which misaligned filters are seen."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from fedlab_core import probes
from fedlab_core.experiment import Experiment
from fedlab_core.history import Record
from fedlab_core.plots import logarithmic
from fedlab_core.pretraining.two_layer import STARTS as FILTERS
from fedlab_core.pretraining.two_layer import two_layer
from fedlab_core.studies.pretraining_runs import DIGITS, METHODS
from fedlab_core.workbench.plan import Plan, Result, looks_of
from fedlab_core.workbench.text import sentence

ALPHAS = (0.05, 0.1, 0.3, 100.0)
SERVERS = {"FedAvg": "fedavg", "FedAvgM": "fedavgm", "FedAdam": "fedadam", "FedYogi": "fedyogi"}


@dataclass(frozen=True)
class Begun:
    """A round's record, and the largest eigenvalue of the training loss's Hessian at the model before it."""

    record: Record
    top: float


def begun(server: str, start: str, alpha: float) -> Experiment:
    """A start and a server optimiser, with the rates that the recorded search found from random weights or letters."""
    options, *found = METHODS.get(SERVERS[server], ({}, {"lr": 0.3}, {"lr": 0.3}))
    rates = dict(found[start != "random"])
    skewed = DIGITS.replace(partition="dirichlet", partition_options={"alpha": alpha}, engine="stacked", start=start)
    return skewed.replace(lr=rates.pop("lr"), method=SERVERS[server], method_options={**options, **rates})


def watched(one: Experiment) -> Iterator[Begun]:
    """Trains, and looks at the curvature before each round."""
    run = one.build()
    while True:
        top = probes.curvature(run, run.state, examples=200, steps=10).top
        yield Begun(run.run(1).history[-1], top)


def begin(server: str, start: str, alpha: float) -> Mapping[str, Iterator[Begun]]:
    """Random weights and a start, under FedAvg and under another server optimiser."""
    pairs = [(s, b) for s in dict.fromkeys(("FedAvg", server)) for b in dict.fromkeys(("random", start))]
    return {f"{b}, {s}": watched(begun(s, b, alpha)) for s, b in pairs}


def draw_begin(figure: Any, result: Result) -> None:
    """Accuracy, gradient diversity and curvature over the rounds."""
    axes = figure.subplots(1, 3)
    looks = looks_of(result)
    for name, frames in result.frames.items():
        look, rounds = looks[name], [f.record.round for f in frames]
        for ax, key in zip(axes, ("test_accuracy", "diversity"), strict=False):
            ax.plot(rounds, [f.record.metrics[key] for f in frames], label=name, **look)
        axes[2].plot(rounds, [max(f.top, 1e-3) for f in frames], **look)
    axes[0].set(title="test accuracy", ylim=(0, 1.02))
    axes[1].set_title("gradient diversity of the updates")
    axes[2].set_title("largest eigenvalue before the round")
    for ax in axes:
        ax.set_xlabel("round")
    for ax in axes[1:]:
        logarithmic(ax, "y", (1, 2, 5))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def read_begin(result: Result) -> str:
    """The last round's accuracy, and diversity and curvature of the first."""
    parts = [
        sentence(
            f"{name}: accuracy {frames[-1].record.metrics['test_accuracy']:.2f}, in round 1 diversity "
            f"{frames[0].record.metrics['diversity']:.2f} and largest eigenvalue {frames[0].top:.2g}"
        )
        for name, frames in result.frames.items()
        if frames
    ]
    return f"After {max((len(f) for f in result.frames.values()), default=0)} rounds. {' '.join(parts)}"


BEGIN = Plan(
    "Where to begin, and with which server?",
    begin,
    {"server": tuple(SERVERS), "start": ("random", "letters", "fractal pairs", "noise"), "alpha": ALPHAS},
    {"server": "FedAdam", "start": "letters", "alpha": 0.05},
    rounds=10,
    draw=draw_begin,
    sentence=read_begin,
    experiment=begun,
    size=(11.0, 3.8),
    about={"server": "What the server does with the mean update"},
)


# ------------------------------------------------------------------------------------------- two layers, to the letter


@dataclass(frozen=True)
class Turned:
    """After a round: share of wrong test examples, and how many of the 20 filters are misaligned."""

    round: int
    error: float
    misaligned: int


def turned(one_class: bool, start: str, steps: int, seed: int) -> Iterator[Turned]:
    """Ten clients, full-batch gradient steps, in float64."""
    data = two_layer(one_class, seed=seed)
    w = data.begin(start, seed=seed)
    for round in count():
        yield Turned(round, data.error(w), data.misaligned(w))
        w = data.local(w, 0.1, steps)


def filters(start: str, steps: int, seed: int) -> Mapping[str, Iterator[Turned]]:
    """Clients that hold both classes, and clients that hold one."""
    return {
        name: turned(one, start, steps, seed) for name, one in (("both classes", False), ("one class a client", True))
    }


def draw_filters(figure: Any, result: Result) -> None:
    """Misaligned filters, and test error, over the rounds."""
    axes = figure.subplots(1, 2)
    looks = looks_of(result)
    for name, frames in result.frames.items():
        look, rounds = looks[name], [f.round for f in frames]
        axes[0].plot(rounds, [f.misaligned for f in frames], label=name, **look)
        axes[1].plot(rounds, [100 * f.error for f in frames], **look)
    axes[0].set(title="misaligned filters of 20", yticks=range(0, 21, 5), ylim=(-0.5, 20.5), xlabel="round")
    axes[1].set(title="test error, %", ylim=(0, None), xlabel="round")
    axes[0].legend(loc="upper right")


def read_filters(result: Result) -> str:
    """Misaligned filters at first, after a round, and the error at the end."""
    parts = []
    for name, frames in result.frames.items():
        if frames:
            after, error = frames[min(1, len(frames) - 1)].misaligned, 100 * frames[-1].error
            said = f"{frames[0].misaligned} filters misaligned, {after} after a round, test error {error:.1f} %"
            parts.append(sentence(f"{name}: {said}"))
    return f"After {max((len(f) - 1 for f in result.frames.values()), default=0)} rounds. {' '.join(parts)}"


TWO_LAYERS = Plan(
    "Two layers: which filters does skew hurt?",
    filters,
    {"start": FILTERS, "steps": (1, 10, 50), "seed": (0, 1, 2)},
    {"start": "all misaligned", "steps": 50},
    rounds=12,
    draw=draw_filters,
    sentence=read_filters,
    size=(9.0, 3.4),
    about={"start": "How the first weights of the 20 filters stand to the signals", "steps": "Local steps a round"},
)
