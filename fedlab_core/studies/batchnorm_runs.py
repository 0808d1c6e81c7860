"""Why batch normalisation damages federated learning on skewed labels, and what repairs it: the runs behind notebook
02."""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fedlab_core.batchnorm import LOCAL, FedTAN, UnionSGD, synchronised_gradients
from fedlab_core.batchnorm.measures import (
    deviation,
    deviation_by_source,
    fixed_batches,
    in_training,
    mean_gradient,
    mismatch,
    union_gradient,
)
from fedlab_core.batchnorm.neighbours import fixbn, four_ways, reestimate
from fedlab_core.data import Dataset, load_dataset
from fedlab_core.data.dataset import channel_statistics
from fedlab_core.federation import Federation
from fedlab_core.methods import FedAvg
from fedlab_core.models import build_model
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.studies.record import once

LRS = (0.03, 0.1, 0.3)
"""Learning rates tried for every variant; each is judged at its best one."""


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
            return first_of_each_class(data, self.examples // data.num_classes)
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
        )
        return Federation(data, partition, model, settings.replace(**changes), variant.method, memory_mib=64)


MNIST = Setup("mnist", rounds=200)
CNN = MNIST.replace(model="small_cnn")
CIFAR = Setup("cifar10", examples=5000, model="resnet8", rounds=300, evaluate_every=25)


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
    setup: Setup, name: str, seed: int = 0, lr: float = 0.1, data: Dataset | None = None, fixbn_factor: float = 0.3
) -> Federation:
    """A finished run of one of the `VARIANTS`; FixBN freezes at half of the rounds and lowers the learning rate
    then."""
    federation = setup.build(VARIANTS[name], seed, lr, data)
    federation.name = name
    if name == "FixBN":
        return fixbn(federation, setup.rounds, setup.rounds // 2, fixbn_factor * lr)
    return federation.run(setup.rounds)


def summary(federation: Federation) -> dict[str, Any]:
    """A run as plain data: accuracy against rounds, exchanges and bytes; for batch norm also with re-estimated
    statistics."""
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
) -> dict[str, dict[str, Any]]:
    """Variants side by side, each at its own best learning rate: the one with the best mean final accuracy over the
    seeds.

    Args:
        folder: where finished runs are kept; None keeps nothing.

    Returns:
        By variant: "lr", "mean" and "spread" (largest less smallest) of the final accuracy, "by_lr", and the "runs" at the
        best rate (see `summary`).
    """
    data, result = setup.load(), {}
    for name in names:
        tried = {}
        for lr in lrs:
            key = "-".join(["batchnorm", setup.key, name.replace(" ", "_"), f"{lr:g}"])
            tried[lr] = [
                once(f"{key}-{seed}", lambda n=name, s=seed, r=lr: summary(train(setup, n, s, r, data)), folder)
                for seed in seeds
            ]
        means = {lr: sum(run["final"] for run in runs) / len(runs) for lr, runs in tried.items()}
        best = max(means, key=lambda lr: means[lr])
        finals = [run["final"] for run in tried[best]]
        result[name] = {
            "lr": best,
            "mean": means[best],
            "spread": max(finals) - min(finals),
            "by_lr": {f"{lr:g}": round(mean, 4) for lr, mean in means.items()},
            "runs": tried[best],
        }
    return result


def identity(name: str, sizes: Sequence[int], image: tuple[int, int, int] = (1, 8, 8)) -> dict[str, float]:
    """Relative error of the clients' mean gradient against the union batch's, in float64, by what is left out.

    The batches are random images, brighter from client to client, with labels of their own: skewed in every respect.

    Args:
        name: of a model, see `build_model`.
        sizes: examples of each client's batch.
    """
    model = build_model(name, image, 10, generator(0, "identity weights"), norm="batch").double()
    draws = generator(0, "identity batches")
    batches = []
    for k, n in enumerate(sizes):
        x = torch.randn(n, *image, generator=draws, dtype=torch.float64) + k / 2
        batches.append((x, torch.randint(2 * k, 2 * k + 2, (n,), generator=draws)))
    union = union_gradient(model, batches)
    rules = {
        "FedTAN": (FedTAN(), None),
        "without exchange 1 (means)": (FedTAN(mean=False), None),
        "without exchange 2 (variances)": (FedTAN(variance=False), None),
        "without exchange 3 (gradients)": (FedTAN(gradients=False), None),
        "variances around own means": (FedTAN(around_global_mean=False), None),
        "statistics as constants": (FedTAN(differentiate=False), None),
        "without any (FedAvg+BN)": (LOCAL, None),
        "weights 1/K": (FedTAN(), [1 / len(sizes)] * len(sizes)),
    }
    return {
        what: deviation(mean_gradient(model, batches, rule, weights), union).total_size
        for what, (rule, weights) in rules.items()
    }


def at_skews(
    setup: Setup, skews: Sequence[float] = (0, 0.25, 0.5, 0.75, 1), rounds: Sequence[int] = (0, 100), size: int = 64
) -> list[dict[str, Any]]:
    """Mismatch and gradient deviation at frozen models over label skew, before and after centralised training.

    The model of a round is the same at every skew: that of centralised training with IID batches.

    Args:
        rounds: when to look.
        size: examples of each client's fixed batch.

    Returns:
        One row per round and skew: `layers`, `mean` and `variance` (layers x clients) mismatch, the `between` share,
        and by source of the deviation (see `deviation_by_source`) `size`, `cosine` over all parameters and `sizes` by
        tensor.
    """
    data = setup.load()
    trained = setup.replace(skew=0.0).build(VARIANTS["centralised BN"], data=data, double=True)
    trained.run(max(rounds))
    rows = []
    for skew in skews:
        holders = setup.replace(skew=skew).build(VARIANTS["FedAvg+BN"], data=data, double=True)
        batches = fixed_batches(holders, size)
        for number in rounds:
            model = in_training(trained, trained.state_at(number))
            found, sources = mismatch(model, batches), deviation_by_source(model, batches)
            rows.append(
                {
                    "skew": skew,
                    "round": number,
                    "layers": list(found.layers),
                    "mean": found.mean.tolist(),
                    "variance": found.variance.tolist(),
                    "between": found.between.tolist(),
                    "tensors": list(sources["local"].names),
                    "deviation": {
                        source: {"size": d.total_size, "cosine": d.total_cosine, "sizes": d.size.tolist()}
                        for source, d in sources.items()
                    },
                }
            )
    return rows


def full_batch(
    name: str,
    rounds: int = 3000,
    lr: float = 0.2,
    lr_decay: float = 1.0,
    data: Dataset | None = None,
    per_client: int = 200,
    points: int = 60,
) -> dict[str, Any]:
    """Training without any sampling noise: one step on all data per round, L2 0.01, float64, two classes per client.

    Args:
        name: "FedAvg+BN", "FedTAN" or "centralised BN".
        lr, lr_decay: lr * lr_decay ** round.
        data: halved MNIST by default.
        per_client: examples of each of the 5 clients.
        points: how many rounds to look at, evenly spaced.

    Returns:
        Per round looked at, the objective F of centralised training (mean loss of the union batch with its own batch
        statistics, and the L2 term) and the norm of its gradient, at the run's global model.
    """
    data = data or halved(load_dataset("mnist", download=False))
    data = first_of_each_class(data, per_client // 2)
    setup = Setup(data.name, options={"hidden": (32, 32)}, batch=None, rounds=rounds, evaluate_every=rounds)
    decay = {"lr_schedule": "exponential", "lr_decay": lr_decay} if lr_decay < 1 else {}
    federation = setup.build(VARIANTS[name], 0, lr, data, double=True, weight_decay=0.01, **decay)
    everything = fixed_batches(federation, None)
    result: dict[str, Any] = {
        "variant": name,
        "lr": lr,
        "lr_decay": lr_decay,
        "round": [],
        "objective": [],
        "gradient": [],
    }
    for number in [round(i * rounds / points) for i in range(points + 1)]:
        federation.run(number - federation.round)
        value, norm = objective(federation, everything)
        result["round"].append(number)
        result["objective"].append(round(value, 6))
        result["gradient"].append(round(norm, 6))
    return result


def objective(federation: Federation, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """F = loss of the union batch + weight_decay / 2 ||w||^2 at the global model, and the norm of its gradient."""
    model, decay = in_training(federation, federation.state), federation.settings.weight_decay
    loss = synchronised_gradients([model], [tuple(torch.cat(part) for part in zip(*batches, strict=True))], LOCAL)[
        0
    ].item()
    squares = sum(p.detach().square().sum().item() for p in model.parameters())
    gradient = sum((p.grad + decay * p.detach()).square().sum().item() for p in model.parameters())
    return loss + decay / 2 * squares, gradient**0.5


def versions() -> dict[str, str]:
    """What a recorded run was made with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, CPU, 1 thread",
    }
