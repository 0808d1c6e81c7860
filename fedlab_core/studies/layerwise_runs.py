"""Runs of layer-wise, progressive and end-to-end federated self-supervised learning, their controls, and the records.

Learning rates are the best of six steps of 2 from 0.00025 on by the nearest-neighbour accuracy on the training images
(each left out in turn) with seed 0, one for each scheme.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from matplotlib.figure import Figure

from fedlab_core.data import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.layerwise.accounts import deepest, flops_by_round, peak_memory, staged_run, traffic
from fedlab_core.layerwise.evaluation import features, knn_accuracy, linear_probe
from fedlab_core.layerwise.method import LayerWise
from fedlab_core.layerwise.network import StagedModel, build_staged
from fedlab_core.methods.named import build_method
from fedlab_core.plots import layerwise as plots_layerwise
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.studies.arms import Arm, Comparison, Runs, by_arm
from fedlab_core.studies.units import Stop, full, heeding

NO_EVALUATION = 10**6  # rounds between two evaluations by the loop; the study has its own
LABELS = 10  # labelled examples per class of the few-label probe
HEADS = {"hidden": 128, "out": 64, "layers": 2}
DIGITS = Experiment(
    clients=4,
    model="vit",
    model_options={"patch": 4, "dim": 64, "depth": 6, "heads": 4},
    method="layer_wise",
    method_options={"rounds_per_stage": 5},
    settings=Settings(1.0, None, 5, 64, 1e-3, weight_decay=1e-5, evaluate_every=NO_EVALUATION, engine="loop"),
)
"""All of four clients in every round, five steps each."""


def network(experiment: Experiment, data: Dataset, **changes: Any) -> StagedModel:
    """The encoder and its heads, with their initial weights."""
    draws = generator(experiment.settings.seed, "initial weights")
    return build_staged(data.input_shape, draws, **{**experiment.model_options, **HEADS, **changes})


def federation(experiment: Experiment, data: Dataset | None = None) -> Federation:
    """A federation that is ready to run."""
    data = experiment.load_data() if data is None else data
    rule = build_method(experiment.method, **experiment.method_options)
    model = network(experiment, data)
    return Federation(data, experiment.make_partition(data), model, experiment.settings, rule)


def changed(experiment: Experiment, lr: float | None = None, depth: int | None = None, **options: Any) -> Experiment:
    """An experiment with another rate, depth, or options of its method."""
    model = experiment.model_options if depth is None else {**experiment.model_options, "depth": depth}
    one = experiment.replace(method_options={**experiment.method_options, **options}, model_options=model)
    return one if lr is None else one.replace(lr=lr)


def measure(run: Federation) -> dict[str, float]:
    """Nearest neighbours, the linear probe, and the mean of three few-label probes on the run's frozen features."""
    data, seed, (model, rule) = run.dataset, run.settings.seed, staged_run(run)
    bank = features(model, data, run.state, rule.depth(run.round, len(model.units)))
    few = [linear_probe(bank, data.y, data.test_y, per_class=LABELS, seed=3 * seed + i) for i in range(3)]
    return {
        "knn": knn_accuracy(bank.x, data.y, bank.test_x, data.test_y),
        "knn_train": knn_accuracy(bank.x, data.y, bank.x, data.y, leave_one_out=True),
        "probe": linear_probe(bank, data.y, data.test_y),
        "few": sum(few) / len(few),
    }


def run(settings: Mapping[str, Any], stop: Stop, device: str) -> dict[str, Any]:
    """A unit: one run, evaluated after every so many rounds; of "fedavg" the test accuracy of supervised training of
    the encoder, a ceiling.

    Returns:
        Plain data; lists have an entry per evaluation: rounds, measures, and cumulated over all clients FLOPs and
        bytes (both ways, of stateful and of stateless clients).

    Raises:
        Stopped: it was asked to stop.
    """
    experiment, rounds = full(settings["experiment"]).replace(device=device), settings["rounds"]
    data = experiment.load_data()
    if settings.get("tests") is not None:
        data = data.subset(len(data.x), settings["tests"])
    if experiment.method == "fedavg":
        ceiling = experiment.begin(experiment.make_start(data=data), data=data).run(rounds)
        return {"accuracy": ceiling.evaluate()["test_accuracy"]}
    fed = federation(experiment, data)
    at, measures, losses = [0], [measure(fed)], []
    for record in heeding(fed.rounds(rounds), stop):
        losses.append(round(record.metrics["train_loss"], 4))
        if record.round % settings["every"] == 0 or record.round == rounds:
            at.append(record.round)
            measures.append(measure(fed))
    costs = {"flops": list(accumulate(flops_by_round(fed)))}
    for name, stateful in (("bytes", True), ("bytes_stateless", False)):
        costs[name] = [0, *accumulate(map(sum, traffic(fed, stateful)))]
    return {
        "round": at,
        **{key: [round(m[key], 4) for m in measures] for key in measures[0]},
        **{name: [values[r] for r in at] for name, values in costs.items()},
        "loss": losses,
        "held_out": round(measures[-1]["knn_train"], 4),
    }


def equal_memory(experiment: Experiment) -> int:
    """Units of the deepest end-to-end network that needs no more memory than layer-wise training of the whole one."""
    data = experiment.load_data()
    batch = torch.zeros(experiment.settings.batch_size or 1, *data.input_shape)
    budget = peak_memory(network(experiment, data), LayerWise(), batch).total
    return deepest(budget, lambda n: network(experiment, data, depth=n), LayerWise(scheme="end_to_end"), batch)


def at_budget(one: Mapping[str, Any], axis: str, budget: float, measure: str) -> float | None:
    """The measure when a budget of rounds, flops, bytes or bytes_stateless is spent, interpolated linearly between two
    evaluations; None outside of what was evaluated during training."""
    spent, values = one[axis][1:], one[measure][1:]
    if not spent[0] <= budget <= spent[-1]:
        return None
    after = next(i for i, amount in enumerate(spent) if amount >= budget)
    if spent[after] == budget:
        return values[after]
    share = (budget - spent[after - 1]) / (spent[after] - spent[after - 1])
    return values[after - 1] + share * (values[after] - values[after - 1])


SEEDS = (0, 1, 2, 3, 4)
RATES = (0.25, 0.5, 0.75)
"""Probabilities of dropping a frozen block."""


def study(
    name: str, title: str, experiment: Experiment, arms: Mapping[str, Arm], draw: Callable[[Runs], Figure]
) -> Comparison:
    """Arms side by side, evaluated after every stage."""
    stage = experiment.method_options["rounds_per_stage"]
    rounds, picture = stage * experiment.model_options["depth"], lambda data: draw(by_arm(data))
    arms = {name: replace(arm, more={"every": stage, **arm.more}) for name, arm in arms.items()}
    return Comparison(f"layerwise_{name}", title, experiment, rounds, arms, SEEDS, 0, None, run, picture)


def budgets(
    name: str, title: str, experiment: Experiment, layered: float, progressive: float, whole: float
) -> Comparison:
    """The schemes at their rates, with controls: three times as long, all data in one place, an end-to-end network of
    equal memory (see `equal_memory`), and supervised training."""
    model, options, settings = experiment.model_options, experiment.method_options, experiment.settings
    stage, pooled = (
        options["rounds_per_stage"],
        {"partition": "pooled", "steps": experiment.clients * (settings.steps or 1)},
    )

    def scheme(name: str, lr: float, seeds: tuple[int, ...] = SEEDS, **changes: Any) -> Arm:
        return Arm({"method_options": {**options, "scheme": name}, **changes}, lr=lr, seeds=seeds)

    longer = {"method_options": {**options, "scheme": "layer_wise", "rounds_per_stage": 3 * stage}}
    supervised = {"method": "fedavg", "method_options": {}, "optimiser": "adamw"}
    arms = {
        "layer-wise": scheme("layer_wise", layered),
        "end-to-end": scheme("end_to_end", whole),
        "progressive": scheme("progressive", progressive),
        "layer-wise, 3 x longer": Arm(longer, lr=layered, more={"rounds": 3 * stage * model["depth"]}),
        "centralised": scheme("end_to_end", whole, SEEDS[:1], **pooled),
        "end-to-end, small": scheme("end_to_end", whole, model_options={**model, "depth": 1}),
        "supervised": Arm(supervised, lr=2e-3, seeds=SEEDS[:1]),
    }
    return study(name, title, experiment, arms, plots_layerwise.three_budgets)


def dropped(**options: Any) -> Arm:
    """Depth dropout; who draws the mask changes the costs, so one seed shows the accuracy."""
    changes = {"method_options": {"rounds_per_stage": 2, "scheme": "layer_wise", **options}}
    return Arm(changes, lr=2e-3, seeds=SEEDS[:1] if "mask" in options else SEEDS)


_DROPOUT = {"0": dropped(), **{f"{rate:g}": dropped(drop=rate) for rate in RATES}}
_DROPOUT |= {f"0.5, mask by {mask}": dropped(drop=0.5, mask=mask) for mask in ("step", "server")}
_PHOTOGRAPHS = DIGITS.replace(
    dataset_options={"examples": 4000}, method_options={"rounds_per_stage": 3, "views": "photographs"}
)
_CIFAR10 = _PHOTOGRAPHS.replace(dataset="cifar10", model_options={**DIGITS.model_options, "patch": 8})
_CALTECH = _PHOTOGRAPHS.replace(dataset="caltech101", model_options={**DIGITS.model_options, "patch": 16})
"""The images of Caltech-101 are 64 pixels wide, those of CIFAR-10 32: 16 patches in both."""
COMPARISONS = (
    budgets("digits", "Digits, ViT with 6 blocks", DIGITS, 2e-3, 4e-3, 1e-3),
    study(
        "dropout",
        "Digits, ViT with 6 blocks: depth dropout",
        changed(DIGITS, rounds_per_stage=2),
        _DROPOUT,
        plots_layerwise.dropout_rates,
    ),
    replace(budgets("cifar10", "CIFAR-10, 4,000 images", _CIFAR10, 1e-3, 5e-4, 5e-4), tests=1000),
    replace(budgets("caltech101", "Caltech-101, 4,000 images", _CALTECH, 5e-4, 1e-3, 5e-4), tests=1000),
)
