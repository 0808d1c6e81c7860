"""Notebook 05: what should travel, together or alone, and what averaging LoRA's factors gets wrong."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from fedlab_core.costs import count_flops
from fedlab_core.experiment import Experiment
from fedlab_core.finetuning.accounts import classification_loss, payload
from fedlab_core.finetuning.lora import update_error
from fedlab_core.studies.arms import grouped, rates
from fedlab_core.studies.finetuning_runs import (
    FAMILIES,
    SCENES,
    SHOTS,
    STARTS,
    Way,
    accuracy,
    at_clients,
    federation,
)
from fedlab_core.studies.record import recorded
from fedlab_core.workbench.plan import Band, Plan, Result, before, looks_of, say
from fedlab_core.workbench.text import sentence

SHOTS_ARE = "Training pictures of a class that a client keeps, at most"
METHODS = ("bias", "layer_norm", "vpt_deep", "adapter", "lora", "head", "full")


@dataclass(frozen=True)
class Spent:
    """A run so far: rounds done, test accuracy, megabytes sent, GFLOP computed, and how many parameters travel."""

    round: int
    test: float
    megabytes: float
    gflop: float
    trained: int


def rate(start: str, method: str) -> float:
    """The learning rate that the recorded search chose; 0.03 without a record."""
    return rates(recorded("finetuning_strength")).get(f"{start}: {method}", 0.03)


def tune(way: Way, lr: float) -> Iterator[Spent]:
    """One frame per second round."""
    run = federation(SCENES.replace(lr=lr), way)
    data = run.dataset
    step = count_flops(run.model, classification_loss(data.prepare(data.x[: run.settings.batch_size])))
    trained = payload(run.model).trained
    yield Spent(0, accuracy(run, run.state, data.test_x, data.test_y), 0.0, 0.0, trained)
    while True:
        record = run.run(2).history[-1]
        test = accuracy(run, run.state, data.test_x, data.test_y)
        yield Spent(record.round, test, record.total.bytes / 1e6, record.total.steps * step / 1e9, trained)


def draw_travel(figure: Any, result: Result) -> None:
    """Curves over rounds, over megabytes and over GFLOP."""
    axes = figure.subplots(1, 3, sharey=True)
    looks = looks_of(result)
    for band in result.behind:
        band.draw(axes[0], looks[band.label]["color"])
    for ax, key in zip(axes, ("round", "megabytes", "gflop"), strict=True):
        before(ax, result, attrgetter(key), lambda f: f.test)
        for name, frames in result.frames.items():
            ax.plot([getattr(f, key) for f in frames], [f.test for f in frames], label=say(name), **looks[name])
    axes[0].set(xlabel="round", ylabel="test accuracy", ylim=(0, 1))
    axes[1].set_xscale("symlog", linthresh=0.02)
    axes[1].set(xlabel="megabytes sent (log)", xlim=(0, 1.3 * axes[1].get_xlim()[1]))
    axes[2].set(xlabel="GFLOP of all clients")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7)


def read_travel(result: Result) -> str:
    """Accuracy, parameters and megabytes of each."""
    parts = [
        f"{say(name)} {frames[-1].test:.2f} with {frames[-1].trained:,} parameters, {frames[-1].megabytes:.2f} MB"
        for name, frames in result.frames.items()
        if frames
    ]
    rounds = max((f[-1].round for f in result.frames.values() if f), default=0)
    return f"Test accuracy after {rounds} rounds: {'; '.join(parts)}."


def travel_behind(method: str, start: str, shots: int) -> Sequence[Band]:
    """The recorded runs of the same start and methods."""
    found = grouped(recorded("finetuning_strength"))
    if not found or shots != 16:
        return ()
    bands = []
    for name in dict.fromkeys((method, "full")):
        if runs := found[start].get(name):
            bands.append(Band.of_curves(f"{name}", runs[0]["round"], [run["test"] for run in runs]))
    return bands


TRAVEL = Plan(
    "What should travel?",
    lambda method, start, shots: {
        m: tune(Way(STARTS[start], m, shots=shots), rate(start, m)) for m in dict.fromkeys((method, "full"))
    },
    {"method": METHODS, "start": tuple(STARTS), "shots": (1, 2, 4, 8, 16)},
    {"start": "strong", "shots": 16},
    rounds=5,
    draw=draw_travel,
    sentence=read_travel,
    behind=travel_behind,
    size=(10.5, 3.8),
    about={"method": "What is trained and travels", "start": "How much the network has learnt", "shots": SHOTS_ARE},
)


def families(network: str, shots: int) -> dict[str, Iterator[Spent]]:
    """CLIP-tiny by its classifier, or a ViT, beside the ViT with a fresh linear one; biases tuned, recorded rates."""
    lrs = rates(recorded("finetuning_clip"))
    names = dict.fromkeys((network, "ViT, linear head"))
    return {n: tune(replace(FAMILIES[n], shots=shots), lrs.get(f"{shots}: {n}", 0.01)) for n in names}


def clip_behind(network: str, shots: int) -> Sequence[Band]:
    """The recorded runs of the same networks and shots."""
    found = grouped(recorded("finetuning_clip")).get(str(shots), {})
    names = [name for name in dict.fromkeys((network, "ViT, linear head")) if name in found]
    return [Band.of_curves(n, found[n][0]["round"], [run["test"] for run in found[n]]) for n in names]


CLIP = Plan(
    "CLIP against a ViT",
    families,
    {"network": tuple(FAMILIES), "shots": SHOTS},
    {"network": "CLIP, text head", "shots": 1},
    rounds=5,
    draw=draw_travel,
    sentence=read_travel,
    behind=clip_behind,
    size=(10.5, 3.8),
    about={"network": "Tower and classifier", "shots": SHOTS_ARE},
)


@dataclass(frozen=True)
class Ends:
    """Accuracies after a round, means over clients: on all test pictures, on test pictures weighted by the client's own
    classes, and on its own training pictures."""

    round: int
    test: float
    own: float
    train: float


def clients(shots: int, alpha: float, alone: bool) -> Iterator[Ends]:
    """One frame per third round."""
    one = SCENES.replace(partition_options={"alpha": alpha, "min_size": 8}, lr=0.1 if alone else 0.03)
    run = federation(one, Way("vit_strong", "bias", local=alone, shots=shots))
    if alone:  # as many local steps for each client as the federated run takes for all
        run = run.fork("alone", at=0, fraction=1.0)
    while True:
        found = at_clients(run, run.dataset.test_x, run.dataset.test_y)
        yield Ends(run.round, found["test"], found["own"], found["train"])
        run.run(3)


def draw_together(figure: Any, result: Result) -> None:
    """Training and test accuracy, together and alone; the gap between the two is over-fitting."""
    axes = figure.subplots(1, 3, sharey=True)
    looks = looks_of(result)
    titles = {"test": "all classes", "own": "the client's own classes", "train": "its training pictures"}
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        before(ax, result, lambda f: f.round, attrgetter(key))
        for name, frames in result.frames.items():
            ax.plot([f.round for f in frames], [getattr(f, key) for f in frames], label=name, **looks[name])
        ax.set(title=title, xlabel="round", ylim=(0, 1.02))
    axes[0].set_ylabel("accuracy, mean over clients")
    axes[0].legend(loc="lower right")


def read_together(result: Result) -> str:
    """Test, own classes and over-fitting of both."""
    parts = []
    for name, frames in result.frames.items():
        if frames:
            last = frames[-1]
            gap = last.train - last.own
            said = f"{name}: all classes {last.test:.2f}, own classes {last.own:.2f}"
            parts.append(f"{said}, over-fitting (training minus own) {gap:+.2f}")
    return sentence("; ".join(parts))


TOGETHER = Plan(
    "Together or alone?",
    lambda shots, alpha: {"together": clients(shots, alpha, False), "alone": clients(shots, alpha, True)},
    {"shots": (1, 2, 4, 8, 16), "alpha": (0.1, 0.5, 100.0)},
    {"shots": 4, "alpha": 0.5},
    rounds=4,
    draw=draw_together,
    sentence=read_together,
    size=(10.0, 3.4),
    about={"shots": SHOTS_ARE},
)


LORA_WAYS: dict[str, dict[str, Any]] = {
    "averaged factors": {},
    "FFA-LoRA": {"tuning_options": {"freeze_a": True}},
    "FedSA-LoRA": {"method": "fedsa_lora"},
    "FLoRA": {"method": "flora", "tuning_options": {"delta": True}},
    "FedEx-LoRA": {"method": "fedex_lora", "tuning_options": {"delta": True}},
}
"""Ways to aggregate LoRA: what an experiment says of method and tuning."""
FEW = SCENES.replace(
    dataset_options={"per_class": 40, "test_per_class": 10}, clients=4, fraction=1.0, batch_size=8, double=True,
    evaluate_every=1, model="vit", model_options={"patch": 8}, start="vit_strong", tuning="lora",
)  # fmt: skip


@dataclass(frozen=True)
class Aggregated:
    """A round of clients that train LoRA.

    Attributes:
        round: its number.
        megabytes: sent so far.
        accuracy: on the test set, of the global model; mean of the clients' models where they keep their B.
        error: largest error of a layer's global update, see `update_error`; None where none is made.
    """

    round: int
    megabytes: float
    accuracy: float
    error: float | None


def low_rank(way: str, steps: int, lr: float) -> Experiment:
    """Four clients that tune the strong network."""
    changes = LORA_WAYS[way]
    options = {"rank": 4, **changes.get("tuning_options", {})}
    return FEW.replace(
        **(changes | {"tuning_options": options}), steps=steps, lr=lr, evaluate_clients=way == "FedSA-LoRA"
    )


def aggregated(way: str, steps: int, lr: float) -> Iterator[Aggregated]:
    """One frame per round from 0 on, in float64."""
    run, own = low_rank(way, steps, lr).build(), way == "FedSA-LoRA"
    yield Aggregated(0, 0.0, run.evaluate()["test_accuracy"], None)
    for record in run.rounds(10**6):
        inside = run.inside(record.round)
        errors = update_error(run.state, [u.state for u in inside.updates], inside.weights).values()
        accuracy = record.metrics["clients_test_accuracy" if own else "test_accuracy"]
        yield Aggregated(record.round, record.total.bytes / 1e6, accuracy, None if own else max(errors))


def draw_aggregated(figure: Any, result: Result) -> None:
    """Error of the global update by round, and accuracy over what was sent."""
    left, right = figure.subplots(1, 2)
    looks = looks_of(result)
    for name, frames in result.frames.items():
        look = looks[name]
        known = [(f.round, max(f.error, 1e-17)) for f in frames if f.error is not None]
        left.plot([r for r, _ in known], [e for _, e in known], label=name, **look)
        right.plot([f.megabytes for f in frames], [f.accuracy for f in frames], **look)
    left.set(yscale="log", ylim=(1e-17, 1), xlabel="round", title="relative error of the global update")
    left.xaxis.get_major_locator().set_params(integer=True)
    right.set(xlabel="megabytes sent", xlim=(0, None), ylim=(0, 1), title="test accuracy")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def read_aggregated(result: Result) -> str:
    """Error, megabytes and accuracy of each."""
    parts, lasts = [], {name: frames[-1] for name, frames in result.frames.items() if frames}
    for name, last in lasts.items():
        error, whose = "no global update", " of the clients' models"
        if last.error is not None:
            error, whose = f"error {100 * last.error:.1f} %" if last.error > 1e-12 else "error below 1e-12", ""
        spent = f"{error}, {last.megabytes:.2f} MB, " if last.round else ""
        parts.append(f"{name}: {spent}accuracy {last.accuracy:.2f}{whose if last.round else ''}")
    return f"After {max((last.round for last in lasts.values()), default=0)} rounds: {'; '.join(parts)}."


LORA = Plan(
    "Averaging LoRA",
    lambda way, steps, lr: {w: aggregated(w, steps, lr) for w in dict.fromkeys(("averaged factors", way))},
    {"way": tuple(LORA_WAYS), "steps": (1, 4, 16), "lr": (0.01, 0.03, 0.1)},
    {"way": "FLoRA", "steps": 4, "lr": 0.1},
    rounds=7,
    draw=draw_aggregated,
    experiment=low_rank,
    sentence=read_aggregated,
    size=(9.0, 3.6),
    about={"way": "How the server combines the clients' factors", "steps": "Local steps a round"},
)
