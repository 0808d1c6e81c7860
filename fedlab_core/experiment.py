"""A federated experiment as plain data: what to load, how to split it, what to train and how."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedlab_core import partition as partitions
from fedlab_core.data import Dataset, load_dataset
from fedlab_core.federation import Federation
from fedlab_core.methods import build_method
from fedlab_core.models import build_model
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator
from fedlab_core.registry import METHODS  # noqa: F401
from fedlab_core.settings import Settings

PARTITIONS = ("iid", "shards", "dirichlet", "quantity", "natural", "pooled")


@dataclass(frozen=True)
class Experiment:
    """Everything that defines a run, JSON-able, so that panels, studies and saved files speak of the same thing.

    Attributes:
        dataset: a name for `load_dataset`, with `dataset_options`; "examples" among them takes a random subset of
            that size, "standardise": False gives models pixels in [0, 1] instead of standardised ones.
        partition: one of `PARTITIONS`, with `partition_options` such as `{"alpha": 0.3}`, `{"per_client": 2}` or, for
            any of
            them, `{"feature_skew": "rotation", "strength": 30}`.
        clients: number of clients; "natural" and "pooled" have their own.
        model: a name for `build_model`, with `norm` and `model_options`.
        method: a key of `methods.METHODS`, with `method_options`.
        settings: see `Settings`; its seed also draws the partition and the initial weights.
        start: what the model below its classifier has learnt before, a key of `pretraining.STARTS`.
        tuning: which of its numbers are trained, a key of `finetuning.TUNINGS` for a "vit"; the others stay at the
            clients as they are.
    """

    dataset: str = "digits"
    dataset_options: Mapping[str, Any] = field(default_factory=dict)
    partition: str = "iid"
    partition_options: Mapping[str, Any] = field(default_factory=dict)
    clients: int = 20
    model: str = "2nn"
    norm: str = "none"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    method: str = "fedavg"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    settings: Settings = Settings()
    start: str = "random"
    tuning: str = "full"

    def load_data(self, root: str | Path | None = None) -> Dataset:
        """The data set, loaded once per process."""
        return _load(
            self.dataset, None if root is None else str(root), json.dumps(dict(self.dataset_options), sort_keys=True)
        )

    def make_partition(self, dataset: Dataset) -> Partition:
        """Who holds what.

        Raises:
            ValueError: an unknown partition or option, or a request the data cannot meet.
        """
        draws = generator(self.settings.seed, "partition")
        options = {"shards": {"per_client": 2}, "dirichlet": {"alpha": 0.3}}.get(self.partition, {})
        options = {**options, **self.partition_options}
        skew, strength = options.pop("feature_skew", None), options.pop("strength", None)
        if (skew is None) != (strength is None):
            raise ValueError(f"feature_skew={skew!r}, strength={strength!r}: the two go together")
        labels, n, clients = dataset.y, len(dataset.x), self.clients
        if self.partition in ("shards", "dirichlet") and labels.ndim != 1:
            raise ValueError(f"partition={self.partition!r} needs one label per example, {dataset.name} has none")
        makers = {
            "iid": lambda: partitions.iid(n, clients, draws, **options),
            "shards": lambda: partitions.shards(labels, clients, generator=draws, **options),
            "dirichlet": lambda: partitions.dirichlet(labels, clients, generator=draws, **options),
            "quantity": lambda: partitions.quantity(n, clients, draws, **options),
            "natural": lambda: partitions.natural(dataset.groups, **options),
            "pooled": lambda: partitions.pooled(n, **options),
        }
        if self.partition not in makers:
            raise ValueError(f"partition={self.partition!r} is unknown, accepted: {list(makers)}")
        try:
            made = makers[self.partition]()
        except TypeError as error:
            raise ValueError(f"partition_options={options} do not fit {self.partition!r}: {error}") from None
        if skew is not None:
            made = partitions.with_feature_skew(made, skew, strength, generator(self.settings.seed, "feature skew"))
        return made

    def make_model(self, dataset: Dataset) -> nn.Module:
        """The model with its random initial weights."""
        draws = generator(self.settings.seed, "initial weights")
        return build_model(
            self.model, dataset.input_shape, dataset.num_classes, draws, norm=self.norm, **self.model_options
        )

    def build(self, root: str | Path | None = None, *, name: str | None = None) -> Federation:
        """A federation that is ready to run, from its start."""
        dataset = self.load_data(root)
        method = build_method(self.method, **self.method_options)
        model = self.make_model(dataset)
        if self.start != "random":
            from fedlab_core.pretraining.named import named_start  # they are made of experiments themselves
            from fedlab_core.pretraining.starts import transfer  # they are made of experiments themselves

            transfer(named_start(self, data=dataset, root=root).state, model)
        if self.tuning != "full":
            from fedlab_core.finetuning.tuning import tune  # it is made of starts and measures of other methods

            model = tune(model, self.tuning, generator(self.settings.seed, "tuning"))
        return Federation(
            dataset,
            self.make_partition(dataset),
            model,
            self.settings,
            method,
            name=name or method.name,
        )

    def replace(self, **changes: Any) -> "Experiment":
        """A copy with other values; names of settings are passed on to the settings."""
        own = {f.name for f in fields(self)}
        settings = changes.pop("settings", self.settings)
        inner = {name: changes.pop(name) for name in list(changes) if name not in own}
        return replace(self, settings=settings.replace(**inner), **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Experiment":
        """The inverse of `to_json`."""
        return cls(**{**data, "settings": Settings(**data["settings"])})

    @property
    def key(self) -> str:
        """A short hash of everything, equal for equal experiments."""
        plain = self.to_json()
        for later in ("channels_last", "mixed_precision"):
            if not plain["settings"][later]:  # unused, it leaves the keys of earlier files as they are
                del plain["settings"][later]
        for name, unused in (("start", "random"), ("tuning", "full")):  # likewise
            if plain[name] == unused:
                del plain[name]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


@functools.lru_cache(maxsize=4)
def _load(name: str, root: str | None, options: str) -> Dataset:
    chosen = json.loads(options)
    examples = chosen.pop("examples", None)
    standardise = chosen.pop("standardise", True)
    dataset = load_dataset(name, root, **chosen)
    if not standardise:
        dataset = dataclasses.replace(dataset, mean=(0.0,) * len(dataset.mean), std=(1.0,) * len(dataset.std))
    return dataset if examples is None else dataset.subset(examples)


def run_to_target(federation: Federation, target: float, most: int, metric: str = "test_accuracy") -> None:
    """Runs until a metric reaches a target or `most` rounds are done, or the loss is no longer finite."""
    for record in federation.rounds(most - federation.round):
        if record.metrics.get(metric, 0.0) >= target or not torch.tensor(record.metrics["train_loss"]).isfinite():
            return
