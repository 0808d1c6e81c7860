"""Why batch normalisation damages federated learning on skewed labels, and what repairs it: the runs behind notebook
02."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fedlab_core.batchnorm.fedtan import FedTAN, UnionSGD
from fedlab_core.batchnorm.neighbours import fixbn, four_ways, reestimate
from fedlab_core.data import Dataset, load_dataset
from fedlab_core.data.statistics import channel_statistics
from fedlab_core.federation import Federation
from fedlab_core.methods import FedAvg
from fedlab_core.models import build_model
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.studies.record import once

LRS = (0.03, 0.1, 0.3)
"""Learning rates tried for every variant; each is judged at its best one."""
CIFAR_TEST = 2000
"""Test images of "cifar10" that are looked at."""


@dataclass(frozen=True)
class Variant:
    """An answer to what should happen to normalisation: a norm of the model, a method, a policy."""

    norm: str
    policy: str | None = None
    method: FedAvg = FedAvg()


VARIANTS: dict[str, Variant] = {
    "centralised BN": Variant("batch", "average", UnionSGD()),
    "FedTAN": Variant("batch", "average", FedTAN()),
    "FedTAN, frozen later": Variant("batch", "average", FedTAN(freeze=True)),
    "FedAvg+BN": Variant("batch", "average"),
    "FedAvg+BN, total variance": Variant("batch", "total_variance"),
    "SiloBN": Variant("batch", "local_statistics"),
    "FedBN": Variant("batch", "local"),
    "FixBN": Variant("batch", "average"),
    "GroupNorm": Variant("group"),
    "LayerNorm": Variant("layer"),
    "weight standardised": Variant("weight"),
    "no normalisation": Variant("none"),
}


@dataclass(frozen=True)
class Setup:
    """Who trains what on which data; JSON-able.

    Attributes:
        data: "digits" (8x8), "mnist" (1,000 images per digit, averaged to 14x14) or "cifar10" (`examples` images).
        examples: training examples of "cifar10".
        clients: K, all in every round, with n / K examples each.
        skew: share of a client's examples that come in order of their labels; 1 leaves 10 / K classes per client.
        model, options: see `build_model`.
        steps: local steps per round, E of the paper; batch: examples per step and client.
        rounds, evaluate_every: length of a run.
        schedule: of the learning rate over the run, see `Settings`.
    """

    data: str = "digits"
    examples: int = 10_000
    clients: int = 5
    skew: float = 1.0
    model: str = "mlp"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    steps: int = 1
    batch: int | None = 32
    rounds: int = 100
    evaluate_every: int = 10
    schedule: str = "constant"

    def replace(self, **changes: Any) -> "Setup":
        """A copy with other values."""
        return dataclasses.replace(self, **changes)

    @property
    def key(self) -> str:
        """A short hash of everything, equal for equal setups."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]

    def load(self) -> Dataset:
        """The data set.

        Raises:
            FileNotFoundError: MNIST or CIFAR-10 are not in the data root.
        """
        if self.data == "mnist":
            return halved(first_of_each_class(load_dataset("mnist", download=False), 1000))
        if self.data == "cifar10":
            data = load_dataset("cifar10", download=False)
            chosen = first_of_each_class(data, self.examples // data.num_classes)
            return dataclasses.replace(
                chosen,
                test_x=data.test_x[:CIFAR_TEST],
                test_y=data.test_y[:CIFAR_TEST],
                notes=f"{chosen.notes}; the first {CIFAR_TEST} test images",
            )
        return load_dataset(self.data)

    def build(
        self, variant: Variant, seed: int = 0, lr: float = 0.1, data: Dataset | None = None, **changes: Any
    ) -> Federation:
        """A federation, ready to run; `changes` are of its settings."""
        data = data or self.load()
        partition = label_blocks(data.y, self.clients, self.skew, generator(seed, "partition"))
        draws = generator(seed, "initial weights")
        model = build_model(self.model, data.input_shape, data.num_classes, draws, norm=variant.norm, **self.options)
        settings = Settings(
            fraction=1.0,
            epochs=None,
            steps=self.steps,
            batch_size=self.batch,
            lr=lr,
            batch_norm=variant.policy,
            seed=seed,
            evaluate_every=self.evaluate_every,
            lr_schedule=self.schedule,
            schedule_rounds=self.rounds,
            channels_last=self.model.startswith("resnet"),
        )
        return Federation(data, partition, model, settings.replace(**changes), variant.method, memory_mib=64)


MNIST = Setup("mnist", rounds=200)
CNN = MNIST.replace(model="small_cnn")
CIFAR = Setup("cifar10", examples=5000, model="resnet8", rounds=100, evaluate_every=20, schedule="cosine")


def label_blocks(labels: torch.Tensor, clients: int, skew: float, draws: torch.Generator) -> Partition:
    """Equal clients; a share `skew` of each one's examples is a block of the examples in order of their labels, the
    rest IID.

    At skew 1 and balanced labels it is the non-IID split of FedTAN's published code: sort by label, cut into K blocks.

    Args:
        labels: (n,).
        clients: K; sizes differ by at most one.
        skew: 0 (IID) to 1.
        draws: which examples belong to which share, and the order of equal labels.
    """
    if not 0 <= skew <= 1:
        raise ValueError(f"skew={skew}, accepted: 0 (IID) to 1 (blocks of labels)")
    n = len(labels)
    order = torch.randperm(n, generator=draws)
    free, bound = order[: round((1 - skew) * n)], order[round((1 - skew) * n) :]
    bound = bound[labels[bound].argsort(stable=True)]
    parts = [torch.cat(pair) for pair in zip(bound.tensor_split(clients), free.tensor_split(clients), strict=True)]
    sizes = torch.tensor([0, *(len(part) for part in parts)])
    return Partition(torch.cat(parts), sizes.cumsum(0), f"label blocks, skew {skew:g}, {clients} clients")


def first_of_each_class(data: Dataset, count: int) -> Dataset:
    """The first `count` training examples of each class; the test set is kept."""
    chosen = torch.cat([(data.y == label).nonzero()[:count, 0] for label in range(data.num_classes)]).sort().values
    notes = f"{data.notes}; the first {count} training examples of each class"
    return dataclasses.replace(data, x=data.x[chosen], y=data.y[chosen], groups=None, group_names=(), notes=notes)


def halved(data: Dataset) -> Dataset:
    """The images averaged over 2x2 pixels."""
    x, test_x = (F.avg_pool2d(images.float(), 2).round().to(torch.uint8) for images in (data.x, data.test_x))
    mean, std = channel_statistics(x)
    return dataclasses.replace(
        data, x=x, test_x=test_x, mean=mean, std=std, notes=f"{data.notes}; averaged over 2x2 pixels"
    )


def train(
    setup: Setup,
    name: str,
    seed: int = 0,
    lr: float = 0.1,
    data: Dataset | None = None,
    fixbn_factor: float = 0.3,
    device: str = "cpu",
) -> Federation:
    """A finished run of one of the `VARIANTS`; FixBN freezes at half of the rounds with a lower learning rate then."""
    federation = setup.build(VARIANTS[name], seed, lr, data, device=device)
    federation.past = dataclasses.replace(federation.past, name=name)
    if name == "FixBN":
        return fixbn(federation, setup.rounds, setup.rounds // 2, fixbn_factor * lr)
    return federation.run(setup.rounds)


def _trained(setup: Setup, name: str, seed: int, lr: float, data: Dataset, device: str) -> dict[str, Any]:
    return summary(train(setup, name, seed, lr, data, device=device))


def summary(federation: Federation) -> dict[str, Any]:
    """A run as plain data: accuracy against rounds, exchanges, bytes; for batch norm also with new statistics."""
    evaluated = [record for record in federation.history if "test_accuracy" in record.metrics]
    result = {
        "variant": federation.name,
        "seed": federation.settings.seed,
        "lr": federation.segments[0].settings.lr,
        "round": [record.round for record in evaluated],
        "test_accuracy": [round(record.metrics["test_accuracy"], 4) for record in evaluated],
        "exchanges": [record.total.exchanges for record in evaluated],
        "megabytes": [round(record.total.bytes / 1e6, 3) for record in evaluated],
        "final": round(evaluated[-1].metrics["test_accuracy"], 4),
        "seconds": round(sum(record.seconds for record in federation.history), 1),
    }
    if federation.settings.batch_norm is not None:
        again = federation.evaluate(reestimate(federation))["test_accuracy"]
        result["reestimated"] = round(again, 4)
    if federation.local_names:
        result["four_ways"] = {way: round(value, 4) for way, value in four_ways(federation).to_json().items()}
    return result


def compare(
    setup: Setup,
    names: Sequence[str] = tuple(VARIANTS),
    seeds: Sequence[int] = (0, 1, 2),
    lrs: Sequence[float] = LRS,
    folder: Path | None = None,
    device: str = "cpu",
) -> dict[str, dict[str, Any]]:
    """Variants side by side, each at its own best learning rate: the one with the best mean final accuracy over the
    seeds.

    Args:
        folder: where finished runs are kept; None keeps nothing.

    Returns:
        By variant: "lr", "mean" and "spread" (largest less smallest) of the final accuracy, "by_lr", "seconds" of
        all its runs, and the "runs" at
        the best rate (see `summary`).
    """
    data, result = setup.load(), {}
    for name in names:
        tried = {}
        for lr in lrs:
            key = "-".join(["batchnorm", setup.key, name.replace(" ", "_"), f"{lr:g}"])
            tried[lr] = [
                once(
                    f"{key}-{seed}",
                    partial(_trained, setup, name, seed, lr, data, device),
                    folder,
                )
                for seed in seeds
            ]
        means = {lr: sum(run["final"] for run in runs) / len(runs) for lr, runs in tried.items()}
        best = max(means, key=lambda lr: means[lr])
        finals = [run["final"] for run in tried[best]]
        result[name] = {
            "lr": best,
            "mean": means[best],
            "spread": max(finals) - min(finals),
            "seconds": round(sum(run["seconds"] for runs in tried.values() for run in runs), 1),
            "by_lr": {f"{lr:g}": round(mean, 4) for lr, mean in means.items()},
            "runs": tried[best],
        }
    return result
