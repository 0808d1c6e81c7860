"""Runs of layer-wise, progressive and end-to-end federated self-supervised learning, and their controls."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedlab_core.data import Dataset, load_dataset
from fedlab_core.federation import Federation
from fedlab_core.layerwise.accounts import flops_by_round, peak_memory, staged_run, traffic
from fedlab_core.layerwise.evaluation import features, knn_accuracy, linear_probe
from fedlab_core.layerwise.method import LayerWise
from fedlab_core.layerwise.network import StagedModel, build_staged
from fedlab_core.local.work import Context
from fedlab_core.methods import FedAvg
from fedlab_core.models import build_model
from fedlab_core.partition import Partition, dirichlet, iid, pooled
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.studies.record import once

NO_EVALUATION = 10**6  # rounds between two evaluations by the loop; the study has its own


@dataclass(frozen=True)
class Setup:
    """What the runs of a comparison have in common.

    Attributes:
        dataset, examples, test_examples: a name for `load_dataset` and, if not None, the sizes of a random subset.
        model: options of `build_staged`.
        clients: that hold the data; all take part in every round.
        alpha: of a Dirichlet label partition; None for IID.
        steps, batch_size: of each client and round.
        stage: rounds per stage of a staged run; the length of all runs is `stage` times the number of units.
        views: see `LayerWise`.
        labels: labelled examples per class of the few-label probe.
    """

    dataset: str = "digits"
    examples: int | None = None
    test_examples: int | None = None
    model: Mapping[str, Any] = field(
        default_factory=lambda: {"patch": 4, "dim": 64, "depth": 6, "heads": 4, "hidden": 128, "out": 64, "layers": 2}
    )
    clients: int = 4
    alpha: float | None = None
    steps: int = 5
    batch_size: int = 64
    stage: int = 5
    views: str = "characters"
    labels: int = 10

    def data(self, root: str | Path | None = None) -> Dataset:
        """The data set, loaded once."""
        return _load(self.dataset, self.examples, self.test_examples, None if root is None else str(root))

    def network(self, data: Dataset, seed: int, **changes: Any) -> StagedModel:
        """The model with its initial weights."""
        return build_staged(data.input_shape, generator(seed, "initial weights"), **{**self.model, **changes})

    @property
    def units(self) -> int:
        """Units of the encoder (ViT only)."""
        return int(self.model["depth"])

    @property
    def rounds(self) -> int:
        """Rounds of a run."""
        return self.stage * self.units


@lru_cache(maxsize=2)
def _load(name: str, examples: int | None, test_examples: int | None, root: str | None) -> Dataset:
    data = load_dataset(name, root)
    return data if examples is None else data.subset(examples, test_examples)


COMPARED: dict[str, dict[str, Any]] = {
    "layer-wise": {"scheme": "layer_wise"},
    "end-to-end": {"scheme": "end_to_end"},
    "progressive": {"scheme": "progressive"},
    "layer-wise, 3 x longer": {"scheme": "layer_wise", "longer": 3},
    "centralised": {"scheme": "end_to_end", "central": True},
}
"""Options of `LayerWise`, and: "longer" (times as many rounds), "central" (all data in one place), "depth"."""


@dataclass(frozen=True)
class Supervised(FedAvg):
    """FedAvg with the optimiser of the self-supervised runs."""

    def optimiser(self, parameters: Sequence[nn.Parameter], context: Context) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, context.lr, weight_decay=context.settings.weight_decay, foreach=True)


def federation(
    setup: Setup, seed: int, lr: float, root: str | Path | None = None, **options: Any
) -> tuple[Federation, int]:
    """A federation that is ready to run, and the number of its rounds."""
    data = setup.data(root)
    longer, central, depth = options.pop("longer", 1), options.pop("central", False), options.pop("depth", setup.units)
    rule = LayerWise(rounds_per_stage=setup.stage * longer, views=setup.views, **options)
    settings = Settings(
        fraction=1.0,
        steps=setup.steps * (setup.clients if central else 1),
        epochs=None,
        batch_size=setup.batch_size,
        lr=lr,
        weight_decay=1e-5,
        seed=seed,
        evaluate_every=NO_EVALUATION,
    )
    model = setup.network(data, seed, depth=depth)
    return Federation(data, pooled(len(data.x)) if central else _split(setup, data, seed), model, settings, rule), (
        setup.rounds * longer
    )


def measure(setup: Setup, run: Federation, seed: int) -> dict[str, float]:
    """Nearest neighbours, the linear probe, and the mean of three few-label probes on the run's frozen features."""
    data, (model, rule) = run.dataset, staged_run(run)
    bank = features(model, data, run.state, rule.depth(run.round, len(model.units)))
    few = [linear_probe(bank, data.y, data.test_y, per_class=setup.labels, seed=3 * seed + i) for i in range(3)]
    return {
        "knn": knn_accuracy(bank.x, data.y, bank.test_x, data.test_y),
        "knn_train": knn_accuracy(bank.x, data.y, bank.x, data.y, leave_one_out=True),
        "probe": linear_probe(bank, data.y, data.test_y),
        "few": sum(few) / len(few),
    }


def run(
    setup: Setup, seed: int, lr: float, *, every: int | None = None, root: str | Path | None = None, **options: Any
) -> dict[str, Any]:
    """One run, evaluated at the end of every stage, or after every so many rounds.

    Returns:
        Plain data; lists have an entry per evaluation: rounds, measures, and cumulated over all clients FLOPs and
        bytes (both ways, of stateful and of stateless clients).
    """
    fed, rounds = federation(setup, seed, lr, root, **options)
    every = every or setup.stage
    at, measures = [0], [measure(setup, fed, seed)]
    losses = []
    for record in fed.rounds(rounds):
        losses.append(round(record.metrics["train_loss"], 4))
        if record.round % every == 0 or record.round == rounds:
            at.append(record.round)
            measures.append(measure(setup, fed, seed))
    flops = list(accumulate(flops_by_round(fed)))
    both = {
        name: [0, *accumulate(map(sum, traffic(fed, stateful)))]
        for name, stateful in (("bytes", True), ("bytes_stateless", False))
    }
    return {
        "setup": asdict(setup),
        "options": options,
        "seed": seed,
        "lr": lr,
        "round": at,
        **{key: [round(m[key], 4) for m in measures] for key in measures[0]},
        "flops": [flops[r] for r in at],
        **{name: [values[r] for r in at] for name, values in both.items()},
        "loss": losses,
    }


def supervised(setup: Setup, seed: int, lr: float, root: str | Path | None = None) -> float:
    """Test accuracy of the same encoder trained with labels for as many steps: a ceiling."""
    data = setup.data(root)
    names = {"patch", "dim", "depth", "heads"} & setup.model.keys()
    options = {name: setup.model[name] for name in names}
    model = build_model("vit", data.input_shape, data.num_classes, generator(seed, "initial weights"), **options)
    settings = Settings(
        1.0, None, setup.steps, setup.batch_size, lr, weight_decay=1e-5, seed=seed, evaluate_every=setup.rounds
    )
    fed = Federation(data, _split(setup, data, seed), model, settings, Supervised()).run(setup.rounds)
    return fed.history[-1].metrics["test_accuracy"]


def kept_run(folder: Path | None, setup: Setup, seed: int, lr: float, **options: Any) -> dict[str, Any]:
    """Call `run` once per folder, and read its result afterwards."""
    named = "-".join(f"{k}={v}" for k, v in sorted(options.items()) if k != "root")
    changed = {k: v for k, v in asdict(setup).items() if v != asdict(Setup())[k]}
    key = f"layerwise-{setup.dataset}-{named}-lr{lr:g}-seed{seed}-{_key(changed)}"
    return once(key, lambda: run(setup, seed, lr, **options), folder)


def _key(changes: Mapping[str, Any]) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(repr(sorted(changes.items())).encode()).hexdigest()[:6]


def tuned(
    setup: Setup, options: Mapping[str, Any], grid: Sequence[float], folder: Path | None, root: str | Path | None = None
) -> float:
    """The learning rate of a grid with the best nearest-neighbour accuracy on the training images (each left out in
    turn) at the end of a run with seed 0."""
    return max(grid, key=lambda lr: kept_run(folder, setup, 0, lr, root=root, **options)["knn_train"][-1])


def memory_curves(setup: Setup = Setup()) -> dict[str, list[dict[str, float]]]:
    """Peak memory of layer-wise and end-to-end training over depth, batch and loss, one varied at a time.

    Returns:
        By what is varied: rows with its value, the bytes of both, and their ratio.
    """
    shape = setup.data().input_shape
    curves: dict[str, list[dict[str, float]]] = {}
    varied: dict[str, Sequence[Any]] = {
        "depth": (1, 2, 4, 6, 8, 12),
        "batch": (8, 16, 32, 64, 128, 256),
        "objective": ("simclr", "simsiam", "byol", "moco_v3"),
    }
    for name, values in varied.items():
        for value in values:
            depth, batch = value if name == "depth" else setup.units, value if name == "batch" else setup.batch_size
            options = {"objective": value} if name == "objective" else {}
            model = setup.network(setup.data(), 0, depth=depth, predictor_hidden=64 if options else None)
            pictures = torch.zeros(batch, *shape)
            row = {
                s: peak_memory(model, LayerWise(scheme=s, **options), pictures).total
                for s in ("layer_wise", "end_to_end")
            }
            curves.setdefault(name, []).append({name: value, **row, "ratio": row["end_to_end"] / row["layer_wise"]})
    return curves


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


def _split(setup: Setup, data: Dataset, seed: int) -> Partition:
    draws = generator(seed, "partition")
    if setup.alpha is None:
        return iid(len(data.x), setup.clients, draws)
    return dirichlet(data.y, setup.clients, setup.alpha, draws, min_size=setup.batch_size)
