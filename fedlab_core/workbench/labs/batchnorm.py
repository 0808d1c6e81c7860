"""Notebook 02: a race of normalisers, and FedTAN with one exchange switched off."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedlab_core.batchnorm.fedtan import FedTAN
from fedlab_core.batchnorm.lockstep import EVERYTHING, NOTHING, Sharing
from fedlab_core.batchnorm.measures import (
    deviation,
    fixed_batches,
    in_training,
    mean_gradient,
    mismatch,
    union_gradient,
)
from fedlab_core.data import missing_data
from fedlab_core.experiment import Experiment
from fedlab_core.history import Record
from fedlab_core.plots import batchnorm as plots_batchnorm
from fedlab_core.state import batch_norms
from fedlab_core.studies.arms import by_arm
from fedlab_core.studies.batchnorm_runs import DIGITS, MNIST, VARIANTS
from fedlab_core.studies.record import recorded
from fedlab_core.workbench.plan import Band, Plan, Result, before, looks_of
from fedlab_core.workbench.text import sentence

FIELDS = {
    "batch norm, repaired": ("FedAvg+BN", "FedTAN", "centralised BN"),
    "other normalisers": ("FedAvg+BN", "GroupNorm", "LayerNorm", "no normalisation"),
    "policies for BN": ("FedAvg+BN", "SiloBN", "FedBN", "FedAvg+BN, total variance"),
}
"""Which variants race."""
EVERY = 6  # rounds of the race per frame


@dataclass(frozen=True)
class Look:
    """A moment of a race: the round's record, the largest share of a BN layer's variance that lies between clients, and
    the relative deviation of the averaged gradient; both None without batch normalisation."""

    record: Record
    between: float | None
    deviation: float | None


def race(data: str, skew: float, steps: int) -> Experiment:
    """Digits, or MNIST averaged to 14 x 14 where it is in the data root."""
    if data == "mnist" and (missing := missing_data("mnist")):
        raise FileNotFoundError(missing)
    return race_experiment(data, skew, steps)


def race_experiment(data: str, skew: float, steps: int, **_: Any) -> Experiment:
    """FedAvg with averaged batch norm; its data may be missing here."""
    base = DIGITS if data == "digits" else MNIST
    return base.replace(partition_options={"skew": skew}, steps=steps, evaluate_every=EVERY)


def looks(experiment: Experiment, name: str) -> Iterator[Look]:
    """One look every few rounds."""
    changes = VARIANTS[name]
    run = experiment.replace(engine="loop" if "method" in changes else "stacked", **changes).build()
    batches = fixed_batches(run, 64)
    while True:
        run.run(EVERY)
        between = gap = None
        if batch_norms(run.model):
            model = in_training(run, run.state)
            between = float(mismatch(model, batches).between.max())
            rule = run.method if isinstance(run.method, FedTAN) else NOTHING
            shared = EVERYTHING if name == "centralised BN" else rule
            gap = deviation(mean_gradient(model, batches, shared), union_gradient(model, batches)).total_size
        yield Look(run.history[-1], between, gap)


def draw_race(figure: Any, result: Result) -> None:
    """Test accuracy, mismatch and gradient deviation over rounds."""
    axes = figure.subplots(1, 3)
    looks = looks_of(result)
    for band in result.behind:
        band.draw(axes[0], looks[band.label.removesuffix(" on MNIST")]["color"])
    before(axes[0], result, lambda f: f.record.round, lambda f: f.record.metrics["test_accuracy"])
    for name, frames in result.frames.items():
        look, rounds = looks[name], [f.record.round for f in frames]
        axes[0].plot(rounds, [f.record.metrics["test_accuracy"] for f in frames], label=name, **look)
        for ax, key in ((axes[1], "between"), (axes[2], "deviation")):
            values = [getattr(f, key) for f in frames]
            if values and values[0] is not None:
                ax.plot(rounds, [max(v, 1e-8) for v in values], **look)
    axes[0].set(xlabel="round", title="test accuracy", ylim=(0, 1.02))
    top = 1.06 * axes[1].get_ylim()[1]  # room for the marks
    if any(frames and frames[-1].between is None for frames in result.frames.values()):
        axes[1].text(0.03, 0.03, "no line: no batch norm", transform=axes[1].transAxes, fontsize=8, color="0.35")
    axes[1].set(xlabel="round", title="mismatch: share of variance between clients", ylim=(0, top))
    axes[2].set(xlabel="round", title="relative error of the averaged gradient", yscale="log", ylim=(1e-8, 30))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def read_race(result: Result) -> str:
    """Where each variant stands."""
    parts = []
    for name, frames in result.frames.items():
        if frames:
            last = frames[-1]
            error = "" if last.deviation is None else f" (gradient error {last.deviation:.2g})"
            parts.append(f"{name} {last.record.metrics['test_accuracy']:.2f}{error}")
    rounds = max((f[-1].record.round for f in result.frames.values() if f), default=0)
    return f"Test accuracy after {rounds} rounds: {'; '.join(parts)}."


def race_behind(data: str, skew: float, steps: int, field: str) -> Sequence[Band]:
    """The recorded MNIST runs of the same variants, where skew and local steps are theirs."""
    if (skew, steps) != (1.0, 1):
        return ()
    found = by_arm(recorded("batchnorm_mnist"))
    bands = []
    for name in FIELDS[field]:
        if runs := found.get(name):
            keep = [i for i, r in enumerate(runs[0]["round"]) if r <= 60]
            curves = [[run["test_accuracy"][i] for i in keep] for run in runs]
            bands.append(Band.of_curves(f"{name} on MNIST", [runs[0]["round"][i] for i in keep], curves))
    return bands


NORMALISERS = Plan(
    "Race of normalisers",
    lambda data, skew, steps, field: {n: looks(race(data, skew, steps), n) for n in FIELDS[field]},
    {"field": tuple(FIELDS), "skew": (0.0, 0.5, 0.75, 1.0), "steps": (1, 5), "data": ("digits", "mnist")},
    {"skew": 1.0},
    rounds=10,
    draw=draw_race,
    sentence=read_race,
    experiment=race_experiment,
    behind=race_behind,
    size=(10.5, 3.9),
    about={
        "field": "Who races",
        "skew": "0: every client holds all classes; 1: two each",
        "steps": "Local steps a round",
    },
)


# -------------------------------------------------------------------------------------- FedTAN, one exchange missing

FULL, NONE = "all exchanges: FedTAN", "no exchange: FedAvg+BN"
SWITCHES: dict[str, Sharing] = {
    FULL: EVERYTHING,
    "without exchange 1 (means)": Sharing(mean=False),
    "without exchange 2 (variances)": Sharing(variance=False),
    "without exchange 3 (gradients)": Sharing(gradients=False),
    NONE: NOTHING,
}


@dataclass(frozen=True)
class Error:
    """Relative error of the clients' averaged gradient at a round's model, by parameter tensor and over all."""

    round: int
    names: tuple[str, ...]
    by_tensor: tuple[float, ...]
    total: float


def errors(off: str, unequal: bool) -> Mapping[str, Iterator[Error]]:
    """The error of the gradient under each rule of exchange, at the models that centralised training passes."""
    pooled = DIGITS.replace(evaluate_every=10**6, double=True, **VARIANTS["centralised BN"])

    def frames(rule: Sharing) -> Iterator[Error]:
        run = pooled.build()
        sizes = (4, 8, 16, 32, 64) if unequal else (24,) * 5
        batches = [(x[:n], y[:n]) for (x, y), n in zip(fixed_batches(run, 64), sizes, strict=True)]
        while True:
            model = in_training(run, run.state)
            found = deviation(mean_gradient(model, batches, rule), union_gradient(model, batches))
            yield Error(run.round, found.names, tuple(found.size.tolist()), found.total_size)
            run.run(8)

    rules = {off: SWITCHES[off], FULL: EVERYTHING, NONE: NOTHING}
    return {name: frames(rule) for name, rule in rules.items()}


def draw_errors(figure: Any, result: Result) -> None:
    """The error of every tensor at the last model looked at, first layer on the left; and over all, by round."""
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    looks = looks_of(result)
    for name, frames in result.frames.items():
        if frames:
            look, last = looks[name], frames[-1]
            left.plot(range(len(last.names)), [max(v, 1e-16) for v in last.by_tensor], label=name, **look)
            right.plot([f.round for f in frames], [max(f.total, 1e-16) for f in frames], **look)
            left.set_xticks(range(len(last.names)), last.names, rotation=40, ha="right", fontsize=7)
            left.set_title(f"by layer, after {last.round} rounds of centralised training")
    left.set(yscale="log", ylabel=r"$\Vert D \Vert \,/\, \Vert \nabla F \Vert$", ylim=(1e-17, 1e2))
    right.set(yscale="log", xlabel="round", title="over all parameters", ylim=(1e-17, 1e2))
    left.legend(loc="center right")


def read_errors(result: Result) -> str:
    """The error with the exchange switched off, and where it is."""
    (name, frames), exact = next(iter(result.frames.items())), result.frames[FULL]
    if not frames or not exact:
        return "Nothing measured yet."
    last = frames[-1]
    wrong = [n for n, size in zip(last.names, last.by_tensor, strict=True) if size > 1e-8]
    where = "exact in every tensor" if not wrong else f"wrong in {len(wrong)} of {len(last.names)} tensors"
    full = f"; with all three exchanges {exact[-1].total:.0e}" if wrong else ""
    return sentence(f"{name}: relative error of the gradient {last.total:.2g}, {where}{full}")


EXCHANGES = Plan(
    "FedTAN with an exchange switched off",
    lambda off, unequal: errors(off, unequal),
    {"off": tuple(SWITCHES), "unequal": (True, False)},
    {"off": "without exchange 3 (gradients)", "unequal": True},
    rounds=8,
    draw=draw_errors,
    sentence=read_errors,
    size=(10.5, 3.9),
    about={"off": "The exchange that is left out", "unequal": "Clients' batches of different sizes"},
)


# ---------------------------------------------------------------------------------------------- five numbers


def numbers(distance: float) -> Mapping[str, Iterator[tuple[torch.Tensor, torch.Tensor]]]:
    """Client A's five numbers, and client B's."""
    a = torch.arange(5.0)
    return {"numbers": iter([(a, a + distance)])}


def draw_numbers(figure: Any, result: Result) -> None:
    """The clients' numbers as they are, normalised alone, and normalised together."""
    if (pair := result.last()) is not None:
        plots_batchnorm.number_lines(figure.subplots(1, 3), *pair)


def read_numbers(result: Result) -> str:
    """The share of the variance that lies between the clients."""
    if (pair := result.last()) is None:
        return ""
    a, b = pair
    both = torch.cat(pair)
    between = ((a.mean() - both.mean()) ** 2 + (b.mean() - both.mean()) ** 2) / 2 / both.var(correction=0)
    return f"{100 * between:.0f} % of the channel's variance lies between the clients; normalising alone removes it."


FIVE_NUMBERS = Plan(
    "Five numbers per client",
    numbers,
    {"distance": (0, 1, 2, 3, 4, 6, 8)},
    {"distance": 6},
    rounds=1,
    draw=draw_numbers,
    sentence=read_numbers,
    size=(9.0, 2.6),
    about={"distance": "Between the numbers of the two clients"},
)
