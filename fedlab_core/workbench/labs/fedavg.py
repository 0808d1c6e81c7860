"""Notebook 01: rounds to a target, the line between two models, and what makes FedAvg slow."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fedlab_core import plots
from fedlab_core.data import Dataset, load_dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.glossary import define
from fedlab_core.history import rounds_to_target
from fedlab_core.models import build_model
from fedlab_core.partition import Partition
from fedlab_core.plots import fedavg as plots_fedavg
from fedlab_core.probes.lines import LossLine, line
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.studies.fedavg_rounds import DIGITS, TARGET, WORK
from fedlab_core.workbench.plan import Plan, Result, before, best_of, draw_pair, lines_of, looks_of
from fedlab_core.workbench.text import sentence

FAST = DIGITS.replace(engine="stacked", lr=0.215)
SPLITS = ("iid", "shards", "quantity")


# ---------------------------------------------------------------------------------------------- race to a target


def race_experiment(partition: str, E: int, B: int | None, C: float, **_: Any) -> Experiment:
    """FedAvg on digits with 20 clients."""
    return FAST.replace(partition=partition, epochs=E, batch_size=B, fraction=C)


def race(partition: str, E: int, B: int | None, C: float, FedSGD: bool) -> Mapping[str, Experiment]:
    """FedAvg, and beside it FedSGD at the rate that was best for it."""
    runs = {f"FedAvg, E={E}, B={B or 'all'}": race_experiment(partition, E, B, C)}
    rate = 0.464 if partition == "iid" else 0.215
    return runs | (
        {"FedSGD": FAST.replace(partition=partition, fraction=C, lr=rate, **WORK["FedSGD"])} if FedSGD else {}
    )


def draw_race(figure: Any, result: Result) -> None:
    """Curves per round, per gradient step and per megabyte; vertical lines where the target is crossed."""
    axes = figure.subplots(1, 3, sharey=True)
    for ax, x in zip(axes, ("round", "steps", "megabytes"), strict=True):
        before(ax, result, *(functools.partial(plots.measured, key=key) for key in (x, "test_accuracy")))
        plots.curves(ax, lines_of(result), "test_accuracy", x)
        ax.axhline(TARGET, color="0.5", linewidth=1, linestyle=":")
    for name, look in looks_of(result).items():
        if math.isfinite(rounds := rounds_to_target(result.frames[name], TARGET)):
            axes[0].axvline(rounds, color=look["color"], linewidth=1, linestyle=":")
    axes[1].set_xscale("symlog", linthresh=10)
    axes[1].set(ylabel="", xlabel="gradient steps", xlim=(0, 1.3 * axes[1].get_xlim()[1]))
    axes[2].set(ylabel="", xlabel="megabytes sent")
    axes[0].legend(loc="lower right")


def read_race(result: Result) -> str:
    """Rounds, steps and megabytes to the target, and the ratio."""
    parts, counted = [], {}
    for name, frames in result.frames.items():
        if not frames:
            continue
        counted[name] = rounds = rounds_to_target(frames, TARGET)
        best = max(plots.measured(r, "test_accuracy") for r in frames)
        reached = (
            f"{rounds:.1f} rounds" if math.isfinite(rounds) else f"not in {frames[-1].round} rounds (best {best:.2f})"
        )
        parts.append(f"{name}: {reached}")
    fast, *others = counted.values() or (0.0,)
    ratio = f", {others[0] / fast:.1f} times as many" if others and math.isfinite(others[0]) and fast else ""
    return f"To {100 * TARGET:.0f} % test accuracy: {'; '.join(parts)}{ratio}."


RACE = Plan(
    "Race to 93 %: how many rounds does local work save?",
    race,
    {
        "partition": SPLITS,
        "E": (1, 5, 20),
        "B": (10, 50, None),
        "C": (0.0, 0.1, 0.25, 0.5, 1.0),
        "FedSGD": (True, False),
    },
    {"E": 5, "C": 0.25},
    rounds=40,
    draw=draw_race,
    sentence=read_race,
    experiment=race_experiment,
    size=(10.5, 3.4),
    about={"partition": "How the digits are dealt out to the clients", "FedSGD": define("FedSGD")},
)


# ---------------------------------------------------------------------------------------------- averaging two models


def parents(start: str, epochs: int, examples: int) -> Iterator[LossLine]:
    """The line between two 2NN after more and more passes, each over its own examples (figure 1)."""
    data, seeds = load_dataset("digits"), {"shared": (0, 0), "independent": (0, 1)}[start]
    halves = torch.randperm(len(data.x), generator=generator(0, "figure 1"))[: 2 * examples].split(examples)
    runs = []
    for half, seed in enumerate(seeds):
        model = build_model("2nn", data.input_shape, data.num_classes, generator(0, "initial weights", seed))
        holder = Partition(halves[half], torch.tensor([0, examples]), "one client")
        settings = Settings(
            1.0, max(1, epochs // 5), batch_size=50, lr=0.1, seed=half, evaluate_every=10**6, engine="stacked"
        )
        runs.append(Federation(data, holder, model, settings))
    for _ in range(min(5, epochs)):
        one, two = (run.run(1) for run in runs)
        yield line(one, one.state, two.state, [-0.2 + 0.1 * i for i in range(15)])


def two_models(start: str, epochs: int, examples: int, theta: float) -> Mapping[str, Iterator[LossLine]]:
    """Both starts; which of them is shown first, and theta, are chosen in the picture."""
    return {f"{name} start": parents(name, epochs, examples) for name in ("shared", "independent")}


def draw_two_models(figure: Any, result: Result) -> None:
    """The line of either start, the chosen one first: earlier moments pale, the last in colour; a ring at theta."""
    theta, axes = result.settings["theta"], figure.subplots(1, 2, sharey=True)
    index_of = plots.places(result.frames)
    order = sorted(result.frames, key=lambda name: not name.startswith(result.settings["start"]))
    for i, (ax, name) in enumerate(zip(axes, order, strict=True)):
        lines, index = result.frames[name], index_of[name]
        for k, old in enumerate(lines[:-1]):
            look = {"color": plots.LINE_COLORS[index], "alpha": 0.5, "linewidth": 1, "label": "" if k else "earlier"}
            ax.plot(old.theta, old.loss, **look)
        if lines:
            plots_fedavg.loss_lines(ax, lines[-1:], name, index)
            at = min(lines[-1].theta, key=lambda t: abs(t - theta))
            ax.plot(at, lines[-1].loss_at(at), "o", markersize=11, markerfacecolor="none", color="black")
            ax.set_ylabel("loss on the training set (nats)" if i == 0 else "")
            if name.startswith("shared"):  # low in the middle
                ax.legend(loc="upper center", fontsize=7)


def read_two_models(result: Result) -> str:
    """The midpoint beside the better and the worse of the two models."""
    parts = []
    for name, lines in result.frames.items():
        if lines:
            last = lines[-1]
            word = "better than both" if last.midpoint <= min(last.parents) else "worse than the better one"
            word = "worse than both" if last.midpoint > max(last.parents) else word
            ends = " and ".join(f"{loss:.2f}" for loss in sorted(last.parents))
            parts.append(f"{name}: their average has loss {last.midpoint:.2f}, the two have {ends}: {word}")
    return sentence("; ".join(parts))


TWO_MODELS = Plan(
    "Averaging two models",
    two_models,
    {"start": ("shared", "independent"), "epochs": (5, 20, 60, 100), "examples": (100, 200, 600),
     "theta": (0.0, 0.25, 0.5, 0.75, 1.0)},
    {"epochs": 20, "examples": 600, "theta": 0.5},
    rounds=5,
    draw=draw_two_models,
    sentence=read_two_models,
    size=(9.0, 3.5),
    about={
        "start": "Drawn on the left: two models from the same first weights, or each from its own",
        "epochs": "Passes of each model over its own examples",
        "examples": "Of each model",
        "theta": "Weight of the first model in the mixture that is ringed",
    },
    views=("start", "theta"),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- what makes it slow


def many_experiment(E: int, alpha: float, lr: float) -> Experiment:
    """Skewed digits with E passes per round."""
    skewed = FAST.replace(partition="dirichlet", partition_options={"alpha": alpha})
    return skewed.replace(epochs=E, batch_size=20, lr=lr)


def read_many(result: Result) -> str:
    """Accuracy, drift and steps of each."""
    parts = []
    for name, frames in result.frames.items():
        if len(frames) > 1:
            last = frames[-1]
            parts.append(
                f"{name}: {last.total.steps} steps, drift {last.metrics['drift']:.1f}, best {best_of(frames):.2f}"
            )
    return "; ".join(parts) + "."


TOO_MANY_STEPS = Plan(
    "Too many local steps?",
    lambda E, alpha, lr: {"E=1": many_experiment(1, alpha, lr), f"E={E}": many_experiment(E, alpha, lr)},
    {"E": (5, 10, 25, 50), "alpha": (0.05, 0.1, 0.3, 100.0), "lr": (0.03, 0.1, 0.3)},
    {"E": 25, "alpha": 0.1, "lr": 0.1},
    rounds=8,
    draw=draw_pair,
    sentence=read_many,
    experiment=many_experiment,
    size=(9.0, 3.4),
)


def sized_experiment(spread: float, weights: str = "examples") -> Experiment:
    """Digits dealt out IID to clients whose sizes are log-normal with that spread."""
    split = FAST.replace(partition="quantity", partition_options={"sigma": spread})
    return split.replace(epochs=5, weighting=weights)


def read_sizes(result: Result) -> str:
    """How uneven the clients are, and what that does."""
    run = next(iter(result.sources.values()))
    sizes = run.partition.sizes if isinstance(run, Federation) else torch.tensor([0])
    parts = [f"{name}: best {best_of(frames):.2f}" for name, frames in result.frames.items() if frames]
    return f"Clients hold {int(sizes.min())} to {int(sizes.max())} images; {'; '.join(parts)}."


UNBALANCED = Plan(
    "Unbalanced clients: who counts how much?",
    lambda spread, printed: {
        "weighted by examples": sized_experiment(spread),
        "uniform": sized_experiment(spread, "uniform"),
    }
    | ({"as printed in v3": sized_experiment(spread, "printed_v3")} if printed else {}),
    {"spread": (0.1, 0.5, 1.0, 1.5), "printed": (True, False)},
    {"spread": 1.0},
    rounds=10,
    draw=draw_pair,
    sentence=read_sizes,
    experiment=lambda spread, printed: sized_experiment(spread),
    size=(9.0, 3.4),
    about={
        "spread": "Standard deviation of the logarithm of the clients' sizes",
        "printed": "Also weight as the third version of the paper prints it",
    },
)  # fmt: skip


@functools.cache
def pixels(background: float) -> Dataset:
    """Digits in [background, background + 1]: the paper does not say where the empty pixel sits."""
    return dataclasses.replace(load_dataset("digits"), mean=(-background,), std=(1.0,))


def placed(background: float, lr: float) -> Mapping[str, Federation]:
    """FedAvg (E = 1) on pixels in [background, background + 1], and on standardised ones."""
    split = FAST.replace(partition="iid", epochs=1, lr=lr)
    runs = {
        f"pixels in [{background:g}, {background + 1:g}]": pixels(background),
        "standardised": load_dataset("digits"),
    }
    return {
        name: Federation(data, split.make_partition(data), split.make_model(data), split.settings)
        for name, data in runs.items()
    }


def read_rounds(result: Result) -> str:
    """Rounds to 90 %."""
    parts = []
    for name, frames in result.frames.items():
        if frames:
            rounds = rounds_to_target(frames, 0.9)
            parts.append(
                f"{name}: " + (f"{rounds:.1f} rounds" if math.isfinite(rounds) else f"best {best_of(frames):.2f}")
            )
    return f"To 90 %: {'; '.join(parts)}."


BACKGROUND = Plan(
    "Where the background pixel sits",
    placed,
    {"background": (-1.0, -0.5, -0.25, 0.0, 0.5), "lr": (0.05, 0.1, 0.215, 0.464)},
    {"background": 0.0, "lr": 0.1},
    rounds=40,
    draw=draw_pair,
    sentence=read_rounds,
    size=(9.0, 3.4),
    about={"background": "Value of an empty pixel; a full one is 1 more"},
)
