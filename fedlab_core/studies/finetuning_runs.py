"""Federated fine-tuning runs: a start, a classifier, a method and a learning rate, and what they reach and cost; and
the records that are made of them.

Learning rates are the best of seven steps of about 10^(1/2) by accuracy on further pictures with seed 0; the record
names the grids.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fedlab_core.costs import count_flops
from fedlab_core.data import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.finetuning.accounts import classification_loss, payload
from fedlab_core.finetuning.classifiers import class_means, cosine_classifier, with_head
from fedlab_core.finetuning.shots import few_shot_clients
from fedlab_core.finetuning.tuning import tune
from fedlab_core.methods.fedavg import FedAvg, LocalOnly
from fedlab_core.models.clip import zero_shot_weights
from fedlab_core.models.weights.shipped import CAPTIONS, VOCABULARY, blank, load_backbone
from fedlab_core.partition import Partition
from fedlab_core.plots import finetuning as plots_finetuning
from fedlab_core.randomness import generator
from fedlab_core.round import while_finite
from fedlab_core.settings import Settings
from fedlab_core.state import State, parameter_names, set_state
from fedlab_core.studies.arms import Arm, Comparison, grouped
from fedlab_core.studies.units import Stop, full, heeding

NO_EVALUATION = 10**6  # rounds between two evaluations by the loop; the study has its own
OPTIONS: dict[str, dict[str, Any]] = {"vpt_deep": {"tokens": 4}, "vpt_shallow": {"tokens": 4}, "lora": {"rank": 4}}
"""Options of `tune` for networks of width 64."""
SCENES = Experiment(
    "scenes",
    {"per_class": 100, "test_per_class": 25},
    "dirichlet",
    {"alpha": 0.5, "min_size": 8},
    clients=8,
    settings=Settings(0.5, None, 4, 16, 0.03, momentum=0.9, evaluate_every=NO_EVALUATION, engine="loop"),
)
PHOTOGRAPHS = SCENES.replace(dataset="cifar10", dataset_options={}, steps=8, batch_size=32)
SIZES = (2000, 500)  # photographs handed out, and as many each to test with and to choose rates by


@dataclass(frozen=True)
class Way:
    """A way to begin and to fine-tune.

    Attributes:
        start: "random", or a name for `load_backbone`.
        method: a key of `TUNINGS`.
        head: "linear", "prototypes" (class means of the clients' training pictures; ViT), or a key of `HEADS` (CLIP).
        local: clients train alone and never send anything.
        shots: most examples of a class that a client keeps; None for all.
    """

    start: str = "vit_strong"
    method: str = "bias"
    head: str = "linear"
    local: bool = False
    shots: int | None = 16


@lru_cache(maxsize=4)
def _pictures(name: str, options: tuple[tuple[str, Any], ...]) -> tuple[Dataset, Dataset]:
    one = Experiment(name, dict(options))
    data = one.load_data()
    if name == "scenes":
        changes = {"per_class": one.dataset_options["test_per_class"], "seed": 1}
        return data, one.replace(dataset_options={**one.dataset_options, **changes}).load_data()
    own, others = SIZES
    order, small = torch.randperm(len(data.x), generator=generator(0, "pictures of the study")), data.subset(*SIZES)
    parts = [order[:own].sort().values, order[own : own + others].sort().values]
    first, second = (replace(small, x=data.x[part], y=data.y[part]) for part in parts)
    return first, second


def pictures(experiment: Experiment) -> tuple[Dataset, Dataset]:
    """The clients' data with the test pictures, and further ones, as a training part, to choose learning rates on."""
    return _pictures(experiment.dataset, tuple(experiment.dataset_options.items()))


def network(way: Way, data: Dataset, partition: Partition, seed: int) -> nn.Module:
    """The tuned model with its start; `data` as the backbone reads it."""
    head, draws = generator(seed, "head"), generator(seed, "tuning")
    options = OPTIONS.get(way.method, {})
    if way.start.startswith("clip"):
        clip: Any = load_backbone(way.start).model
        if way.method == "coop":
            return tune(clip, "coop", draws, tokenizer=VOCABULARY, classes=data.classes)
        weights = zero_shot_weights(clip, VOCABULARY, data.classes, CAPTIONS)
        return tune(
            cosine_classifier(clip.image, clip.logit_scale, weights, way.head, head), way.method, draws, **options
        )
    vit: Any = blank("vit_strong", 1, seed) if way.start == "random" else load_backbone(way.start).model
    if way.head == "prototypes":
        vit.head = nn.Identity()
        held = partition.indices
        with torch.no_grad():
            means = class_means(vit(data.prepare(data.x[held])), data.y[held], data.num_classes)
        scale = torch.tensor(math.log(10.0))
        return tune(cosine_classifier(vit, scale, means, "text_init", head), way.method, draws, **options)
    return tune(with_head(vit, data.num_classes, head), way.method, draws, **options)


def federation(experiment: Experiment, way: Way) -> Federation:
    """A federation that is ready to run."""
    scenes = experiment.dataset == "scenes"  # where further pictures are drawn for themselves
    data, seed = experiment.load_data() if scenes else pictures(experiment)[0], experiment.settings.seed
    statistics = "vit_strong" if way.start == "random" and scenes else way.start
    if statistics != "random":
        data = load_backbone(statistics).reads(data)
    partition = experiment.make_partition(data)
    if way.shots is not None:
        partition = few_shot_clients(partition, data.y, way.shots, seed)
    model, method = network(way, data, partition, seed), LocalOnly() if way.local else FedAvg()
    return Federation(data, partition, model, experiment.settings, method, name=way.method)


@torch.no_grad()
def predictions(run: Federation, state: State, x: Tensor) -> Tensor:
    """Predicted classes (n,) of images uint8 (n, C, H, W)."""
    model = copy.deepcopy(run.model).eval()
    set_state(model, state)
    return torch.cat([model(run.dataset.prepare(part)).argmax(1) for part in x.split(512)])


def accuracy(run: Federation, state: State, x: Tensor, y: Tensor) -> float:
    """Share of images whose class is predicted."""
    return float((predictions(run, state, x) == y).float().mean())


def at_clients(run: Federation, x: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy of the model that each client uses at the end, its mean over clients.

    Args:
        x, y: the pictures to test on, with some of every class.

    Returns:
        "test" on all of them, "own" on them weighted as the client's classes are, "train" on the client's own training
        pictures.
    """
    data, rows = run.dataset, []
    every = torch.bincount(y, minlength=data.num_classes)
    personal = isinstance(run.method, LocalOnly)
    for client in range(len(run.partition)):
        held = run.partition[client]
        if personal or not client:
            state = run.client_state(client) if personal else run.state
            right = predictions(run, state, x) == y
        by_class = torch.bincount(y[right], minlength=data.num_classes) / every
        shares = torch.bincount(data.y[held], minlength=data.num_classes) / len(held)
        train = accuracy(run, state, data.x[held], data.y[held])
        rows.append({"test": float(right.float().mean()), "own": float(by_class @ shares), "train": train})
    return {name: mean(row[name] for row in rows) for name in rows[0]}


def run(settings: Mapping[str, Any], stop: Stop, device: str) -> dict[str, Any]:
    """A unit: one run, evaluated after every so many rounds.

    Returns:
        Plain data; lists have an entry per evaluation: rounds, test accuracy of the global model, bytes and FLOPs of
        all clients so far. "held_out" (of clients that train alone on their own distribution) and "clients" are of the
        end.

    Raises:
        Stopped: it was asked to stop.
    """
    experiment, way, rounds = full(settings["experiment"]), Way(**settings["way"]), settings["rounds"]
    fed = federation(experiment.replace(device=device), way)
    data, held_out = fed.dataset, pictures(experiment)[1]
    loss = classification_loss(data.prepare(data.x[: fed.settings.batch_size]))
    step = count_flops(fed.model, loss) if parameter_names(fed.model) else 0
    first = accuracy(fed, fed.state, data.test_x, data.test_y)
    curve: dict[str, list[Any]] = {"round": [0], "test": [first], "bytes": [0], "flops": [0]}
    for record in heeding(while_finite(fed.rounds(rounds)), stop):
        if not way.local and (record.round % settings["every"] == 0 or record.round == rounds):
            curve["round"].append(record.round)
            curve["test"].append(accuracy(fed, fed.state, data.test_x, data.test_y))
            curve["bytes"].append(record.total.bytes)
            curve["flops"].append(record.total.steps * step)
    ends, unseen = (at_clients(fed, x, y) for x, y in ((data.test_x, data.test_y), (held_out.x, held_out.y)))
    count = payload(fed.model)
    return {
        "trained": count.trained,
        "head_numbers": count.head,
        **{name: [round(v, 4) if isinstance(v, float) else v for v in values] for name, values in curve.items()},
        "held_out": round(unseen["own" if way.local else "test"], 4),
        "clients": {name: round(value, 4) for name, value in ends.items()},
    }


def until(one: Mapping[str, Any], axis: str, target: float) -> float:
    """Rounds, bytes or FLOPs until the test accuracy first reaches a target, interpolated between two evaluations;
    infinity if it never does."""
    reached = next((i for i, value in enumerate(one["test"]) if value >= target), None)
    if reached is None:
        return math.inf
    if not reached:
        return 0.0
    low, high = one["test"][reached - 1 : reached + 1]
    before, after = one[axis][reached - 1 : reached + 1]
    return before + (after - before) * (target - low) / (high - low)


SEEDS = (0, 1, 2, 3, 4)
STARTS = {"random": "random", "weak": "vit_weak", "strong": "vit_strong"}
METHODS = ("full", "head", "bias", "layer_norm", "vpt_shallow", "vpt_deep", "adapter", "lora")
SHOTS = (1, 2, 4, 8, 16)
FAMILIES = {
    "CLIP, text head": Way("clip_tiny", "bias", "text_frozen"),
    "CLIP, text head, trained": Way("clip_tiny", "bias", "text_init"),
    "CLIP, random head": Way("clip_tiny", "bias", "random_init"),
    "CLIP, learnt prompt": Way("clip_tiny", "coop", "text_frozen"),
    "ViT, linear head": Way("vit_strong", "bias"),
    "ViT, prototype head": Way("vit_strong", "bias", "prototypes"),
}
"""CLIP-tiny and ViT-strong by classifier; the same network, the same pictures before, biases tuned."""
_STRENGTH = {  # learning rates in the order of METHODS
    "random": (0.03, 0.003, 0.1, 0.003, 1.0, 0.003, 0.001, 0.003),
    "weak": (0.03, 0.03, 0.03, 0.1, 0.1, 0.03, 0.03, 0.03),
    "strong": (0.03, 0.3, 0.1, 0.1, 0.3, 0.1, 0.1, 0.1),
}
_CLIP = {  # in the order of FAMILIES
    1: (0.0003, 0.003, 0.03, 0.01, 0.3, 0.03),
    2: (0.0003, 0.0003, 0.03, 0.01, 0.1, 0.003),
    4: (0.0003, 0.01, 0.03, 0.01, 0.03, 0.001),
    8: (0.001, 0.01, 0.01, 0.003, 0.03, 0.03),
    16: (0.001, 0.001, 0.01, 0.003, 0.1, 0.03),
}
_LOCAL = {
    "bias, federated": (Way(), 0.03),
    "bias, alone": (Way(local=True), 0.1),
    "full, federated": (Way(method="full"), 0.03),
    "full, alone": (Way(method="full", local=True), 0.03),
}
"""Rates that were found with 4 shots."""
_CALTECH = (
    ("random", "random", {"full": 0.01, "bias": 0.003, "head": 0.03}),
    ("Caltech-101", "vit_caltech", {"full": 0.003, "bias": 0.01, "head": 0.01}),
)


def arm(way: Way, lr: float | None, every: int = 2) -> Arm:
    """A way as an arm, evaluated after every so many rounds."""
    return Arm(lr=lr, more={"way": asdict(way), "every": every})


def study(
    name: str, title: str, draw: Callable[[Any], Figure], arms: Mapping[str, Arm], experiment: Experiment = SCENES,
    rounds: int = 12,
) -> Comparison:  # fmt: skip
    """Ways side by side, over the seeds of the study."""
    return Comparison(
        f"finetuning_{name}", title, experiment, rounds, arms, SEEDS, 0, make=run,
        picture=lambda data: draw(grouped(data)),
    )  # fmt: skip


COMPARISONS = (
    study("strength", "Scenes: methods over the strength of the start", plots_finetuning.strength, {
        f"{name}: {method}": arm(Way(start, method), lr)
        for name, start in STARTS.items()
        for method, lr in zip(METHODS, _STRENGTH[name], strict=True)
    }),
    study("clip", "Scenes: CLIP-tiny and a ViT of its size over shots", plots_finetuning.over_shots, {
        f"{shots}: {name}": arm(replace(way, shots=shots), lr)
        for shots in SHOTS
        for (name, way), lr in zip(FAMILIES.items(), _CLIP[shots], strict=True)
    }),
    study("local", "Scenes: together or alone over shots", plots_finetuning.federated_or_alone, {
        f"{shots}: {name}": arm(replace(way, shots=shots), lr) for shots in SHOTS for name, (way, lr) in _LOCAL.items()
    }),
    study("caltech_cifar", "CIFAR-10: from random weights and from photographs", plots_finetuning.strength, {
        f"{name}: {method}": arm(Way(start, method, shots=None), lr, 4)
        for name, start, rates in _CALTECH
        for method, lr in rates.items()
    }, PHOTOGRAPHS, 8),
)  # fmt: skip
