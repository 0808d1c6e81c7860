"""Federated fine-tuning runs: a start, a classifier, a method and a learning rate, and what they reach and cost."""

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from fedlab_core.costs import count_flops
from fedlab_core.data import Dataset, load_dataset
from fedlab_core.federation import Federation
from fedlab_core.finetuning.accounts import classification_loss, payload
from fedlab_core.finetuning.classifiers import class_means, cosine_classifier, with_head
from fedlab_core.finetuning.shots import few_shot_clients
from fedlab_core.finetuning.tuning import tune
from fedlab_core.methods import FedAvg, LocalOnly
from fedlab_core.models.clip import zero_shot_weights
from fedlab_core.models.weights.shipped import CAPTIONS, VOCABULARY, blank, load_backbone
from fedlab_core.partition import Partition, dirichlet
from fedlab_core.randomness import generator
from fedlab_core.round import while_finite
from fedlab_core.settings import Settings
from fedlab_core.state import State, set_state
from fedlab_core.studies.record import once

NO_EVALUATION = 10**6  # rounds between two evaluations by the loop; the study has its own
GRIDS = {
    "linear": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    "cosine": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
    "coop": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
}
"""Learning rates tried, equally many for every method: by the classifier, since scaled cosines need smaller steps."""
OPTIONS: dict[str, dict[str, Any]] = {"vpt_deep": {"tokens": 4}, "vpt_shallow": {"tokens": 4}, "lora": {"rank": 4}}
"""Options of `tune` for networks of width 64."""


@dataclass(frozen=True)
class Setup:
    """What the runs of a comparison have in common.

    Attributes:
        dataset, per_class, test_per_class: a name for `load_dataset`, with the sizes of "scenes"; of any other data
            set, `per_class` times the classes are the sizes of a random subset.
        clients, alpha: Dirichlet label partition.
        shots: most examples of a class that a client keeps; None for all.
        fraction, steps, batch_size, rounds: of the federated run; SGD with momentum 0.9.
        every: rounds between two evaluations.
    """

    dataset: str = "scenes"
    per_class: int = 100
    test_per_class: int = 25
    clients: int = 8
    alpha: float = 0.5
    shots: int | None = 16
    fraction: float = 0.5
    steps: int = 4
    batch_size: int = 16
    rounds: int = 12
    every: int = 2

    def data(self, root: str | Path | None = None) -> Dataset:
        """The clients' data and the test pictures, loaded once."""
        return _load(self.dataset, self.per_class, self.test_per_class, None if root is None else str(root))[0]

    def validation(self, root: str | Path | None = None) -> Dataset:
        """Further pictures, as its training part, to choose learning rates on."""
        return _load(self.dataset, self.per_class, self.test_per_class, None if root is None else str(root))[1]

    def partition(self, seed: int, labels: Tensor) -> Partition:
        """Who holds what."""
        made = dirichlet(labels, self.clients, self.alpha, generator(seed, "partition"), min_size=8)
        return made if self.shots is None else few_shot_clients(made, labels, self.shots, seed)


@lru_cache(maxsize=4)
def _load(name: str, per_class: int, test_per_class: int, root: str | None) -> tuple[Dataset, Dataset]:
    """Data of the clients with the test, and other pictures."""
    if name == "scenes":
        counts = ((per_class, 0), (test_per_class, 1))
        first, second = (
            load_dataset(name, per_class=count, test_per_class=test_per_class, seed=seed) for count, seed in counts
        )
        return first, second
    data = load_dataset(name, root)
    own, others = per_class * data.num_classes, test_per_class * data.num_classes
    order = torch.randperm(len(data.x), generator=generator(0, "pictures of the study"))
    parts = [order[:own].sort().values, order[own : own + others].sort().values]
    small = data.subset(own, others)
    first, second = (replace(small, x=data.x[part], y=data.y[part]) for part in parts)
    return first, second


@dataclass(frozen=True)
class Way:
    """A way to begin and to fine-tune.

    Attributes:
        start: "random", or a name for `load_backbone`.
        method: a key of `TUNINGS`.
        head: "linear", "prototypes" (class means of the clients' training pictures; ViT), or a key of `HEADS` (CLIP).
        local: clients train alone and never send anything.
    """

    start: str = "vit_strong"
    method: str = "bias"
    head: str = "linear"
    local: bool = False


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


def federation(setup: Setup, way: Way, seed: int, lr: float, root: str | Path | None = None) -> Federation:
    """A federation that is ready to run."""
    statistics = "vit_strong" if way.start == "random" and setup.dataset == "scenes" else way.start
    data = setup.data(root)
    if statistics != "random":
        data = load_backbone(statistics).reads(data)
    partition = setup.partition(seed, data.y)
    settings = Settings(
        setup.fraction,
        None,
        setup.steps,
        setup.batch_size,
        lr,
        momentum=0.9,
        seed=seed,
        evaluate_every=NO_EVALUATION,
    )
    model = network(way, data, partition, seed)
    return Federation(data, partition, model, settings, LocalOnly() if way.local else FedAvg(), name=way.method)


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


def run(setup: Setup, way: Way, seed: int, lr: float, root: str | Path | None = None) -> dict[str, Any]:
    """One run, evaluated after every `setup.every` rounds.

    Returns:
        Plain data; lists have an entry per evaluation: rounds, test accuracy of the global model, bytes and FLOPs of
        all clients so far. "validation" and "clients" are of the end.
    """
    fed = federation(setup, way, seed, lr, root)
    data, held_out = fed.dataset, setup.validation(root)
    loss = classification_loss(data.prepare(data.x[: setup.batch_size]))
    step = count_flops(fed.model, loss) if parameters(fed) else 0
    curve: dict[str, list[Any]] = {
        "round": [0],
        "test": [accuracy(fed, fed.state, data.test_x, data.test_y)],
        "bytes": [0],
        "flops": [0],
    }
    for record in while_finite(fed.rounds(setup.rounds)):
        if not way.local and (record.round % setup.every == 0 or record.round == setup.rounds):
            curve["round"].append(record.round)
            curve["test"].append(accuracy(fed, fed.state, data.test_x, data.test_y))
            curve["bytes"].append(record.total.bytes)
            curve["flops"].append(record.total.steps * step)
    ends = at_clients(fed, data.test_x, data.test_y)
    count = payload(fed.model)
    unseen = at_clients(fed, held_out.x, held_out.y)["own" if way.local else "test"]
    return {
        "setup": asdict(setup),
        "way": asdict(way),
        "seed": seed,
        "lr": lr,
        "trained": count.trained,
        "head_numbers": count.head,
        **{name: [round(v, 4) if isinstance(v, float) else v for v in values] for name, values in curve.items()},
        "validation": round(unseen, 4),
        "clients": {name: round(value, 4) for name, value in ends.items()},
    }


def parameters(fed: Federation) -> bool:
    """Whether anything is trained."""
    return any(p.requires_grad for p in fed.model.parameters())


def kept_run(
    folder: Path | None, setup: Setup, way: Way, seed: int, lr: float, root: str | Path | None = None
) -> dict[str, Any]:
    """Call `run` once per folder, and read its result afterwards."""
    plain = json.dumps([asdict(setup), asdict(way)], sort_keys=True)
    short = hashlib.sha256(plain.encode()).hexdigest()[:8]
    key = f"finetuning-{way.start}-{way.method}-{way.head}-lr{lr:g}-seed{seed}-{short}"
    return once(key, lambda: run(setup, way, seed, lr, root), folder)


def tuned(folder: Path | None, setup: Setup, way: Way, root: str | Path | None = None) -> float:
    """The learning rate of the way's grid with the best accuracy on further pictures at the end of a run with seed 0;
    clients alone are judged by their own distribution."""
    kind = "coop" if way.method == "coop" else "linear" if way.head == "linear" else "cosine"
    return max(GRIDS[kind], key=lambda lr: kept_run(folder, setup, way, 0, lr, root)["validation"])


def compared(
    folder: Path | None,
    setup: Setup,
    ways: Mapping[str, Way],
    seeds: Sequence[int],
    tuned_at: Setup | None = None,
    root: str | Path | None = None,
) -> dict[str, Any]:
    """Runs of every way over seeds, each at its best rate.

    Args:
        tuned_at: the setup in which rates are searched; by default that of the runs.
    """
    rates, runs = {}, {}
    for name, way in ways.items():
        rates[name] = tuned(folder, tuned_at or setup, way, root=root)
        runs[name] = [kept_run(folder, setup, way, seed, rates[name], root) for seed in seeds]
        ends = [one["clients"]["test"] for one in runs[name]]
        print(f"{name:32} lr {rates[name]:<6g} {mean(ends):.3f}  {min(ends):.3f} to {max(ends):.3f}", flush=True)
    return {"lr": rates, "runs": runs}


def shots_of(setup: Setup, shots: int) -> Setup:
    """The setup with another number of examples per class and client."""
    return replace(setup, shots=shots)


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
