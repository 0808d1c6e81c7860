"""A federated experiment as plain data: what to load, how to split it, what to train and how."""

import hashlib
import inspect
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedlab_core.check import checked, checked_methods, choice
from fedlab_core.data.dataset import Dataset
from fedlab_core.data.prepared import load_prepared
from fedlab_core.federation import Federation
from fedlab_core.finetuning.tuning import tune
from fedlab_core.memory import fits
from fedlab_core.methods.named import build_method
from fedlab_core.models.build import Architecture
from fedlab_core.partition import Partition, with_feature_skew
from fedlab_core.pretraining.kept import Start
from fedlab_core.pretraining.named import named_start
from fedlab_core.pretraining.starts import Beginning, Step, make_start, transfer
from fedlab_core.randomness import generator
from fedlab_core.registry import PARTITIONS, TUNINGS
from fedlab_core.settings import Settings, plain_value


@checked_methods
@checked
@dataclass(frozen=True)
class Experiment:
    """Everything that defines a run, JSON-able, so that panels, studies and saved files speak of the same thing.

    Attributes:
        dataset: a name for `load_dataset`, with `dataset_options`; "examples" among them takes a random subset of
            that size, "validation" sets some of it aside, "scaling" says where models see the pixels: "standardised"
            (default), "unit" or "centred", see `data.prepared.load_prepared`.
        partition: a key of `registry.PARTITIONS`, with `partition_options` such as `{"alpha": 0.3}`,
            `{"per_client": 2}` or, for any of them, `{"feature_skew": "rotation", "strength": 30}`.
        clients: number of clients; "natural" and "pooled" have their own.
        model: a name for `build_model`, with `norm` and `model_options`.
        method: a key of `methods.named.METHODS`, with `method_options`.
        settings: see `Settings`; its seed also draws the partition and the initial weights.
        start: what the model below its classifier has learnt before, a key of `pretraining.named.STARTS`.
        tuning: which of its parameters are trained, a key of `finetuning.tuning.TUNINGS`, most of them for a "vit"; the
            others stay at the clients as they are.
        tuning_options: options of that way, such as `{"rank": 4}` of "lora".

    Names of one's own are registered with `registry.register`. Scalars of NumPy and torch become plain values at once.

    Raises:
        ValueError: an option that a file could not hold.
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
    tuning_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for own in fields(self):
            if own.name != "settings":
                object.__setattr__(self, own.name, _plain(getattr(self, own.name), own.name))

    def load_data(self, root: str | Path | None = None) -> Dataset:
        """The data set; loaded again only if its files have changed, see `load_prepared`."""
        return load_prepared(self.dataset, root, self.dataset_options)

    def make_partition(self, dataset: Dataset) -> Partition:
        """Who holds what.

        Raises:
            ValueError: an unknown partition or option, or a request the data cannot meet.
        """
        options = dict(self.partition_options)
        skew, strength = options.pop("feature_skew", None), options.pop("strength", None)
        if (skew is None) != (strength is None):
            raise ValueError(f"feature_skew={skew!r}, strength={strength!r}: the two go together")
        choice("partition", self.partition, PARTITIONS)
        maker = PARTITIONS[self.partition]
        known = [*list(inspect.signature(maker).parameters)[3:], "feature_skew", "strength"]
        if unknown := [option for option in options if option not in known]:
            raise ValueError(f"partition_options {unknown} do not fit {self.partition!r}, accepted: {known}")
        with fits(partition=self.partition, clients=self.clients, **options):
            made = maker(dataset, self.clients, generator(self.settings.seed, "partition"), **options)
            if skew is not None:
                made = with_feature_skew(made, skew, strength, generator(self.settings.seed, "feature skew"))
        return made

    @property
    def architecture(self) -> Architecture:
        """The network without its weights."""
        return Architecture(self.model, self.norm, self.model_options)

    def make_model(self, dataset: Dataset) -> nn.Module:
        """The model with its random initial weights."""
        draws = generator(self.settings.seed, "initial weights")
        return self.architecture.build(dataset.input_shape, dataset.outputs, draws)

    def make_start(
        self,
        steps: Sequence[Step] | None = None,
        *,
        name: str | None = None,
        data: Dataset | None = None,
        root: str | Path | None = None,
        keep: bool = True,
        stop: threading.Event | None = None,
    ) -> Start:
        """A start for this experiment's model, made or read from the cache; see `pretraining.starts.make_start`.

        Args:
            steps: a recipe, none of them for the random start; by default what `start` names.
            name: what it is called in legends; with steps only.
            data: used in place of the experiment's data set, a part of it for instance.
        """
        data = self.load_data(root) if data is None else data
        partition = self.make_partition(data) if steps or (steps is None and self.start != "random") else None
        beginning = Beginning(data, partition, self.architecture, self.settings.seed, self.settings.engine)
        if steps is None:
            return named_start(self.start, beginning, root=root, stop=stop)
        return make_start(beginning, steps, name=name, root=root, keep=keep, stop=stop)

    def begin(
        self,
        start: Start,
        *,
        data: Dataset | None = None,
        root: str | Path | None = None,
        name: str | None = None,
    ) -> Federation:
        """A federation that is ready to run from a start; its classifier is drawn as ever, from the seed alone.

        Args:
            data: used in place of the experiment's data set.
            name: of the run, by default the start's.
        """
        data = self.load_data(root) if data is None else data
        method = build_method(self.method, **self.method_options)
        model = self._tuned(transfer(start.state, self.make_model(data)))
        return Federation(data, self.make_partition(data), model, self.settings, method, name=name or start.name)

    def build(self, root: str | Path | None = None, *, name: str | None = None) -> Federation:
        """A federation that is ready to run, from the start that the experiment names.

        Args:
            name: of the run, by default the method's.
        """
        data = self.load_data(root)
        method = build_method(self.method, **self.method_options)  # says what is wrong before anything long begins
        return self.begin(self.make_start(data=data, root=root), data=data, name=name or method.name)

    def load(self, folder: str | Path, root: str | Path | None = None, **options: Any) -> Federation:
        """Read a saved run of this experiment back, ready to go on with the settings and the method that it had.

        Args:
            folder: where `Federation.save` wrote it; its weights are there, so the start is not made again.
            root: the data root, see `data.data_root`.
            options: methods, device, engine, memory_mib: see `checkpoint.read.read_run`, also for what is raised.
        """
        data = self.load_data(root)
        return Federation.load(folder, data, self.make_partition(data), self._tuned(self.make_model(data)), **options)

    def _tuned(self, model: nn.Module) -> nn.Module:
        """The model with what is trained of it chosen, and with layers of the method where it has some."""
        draws = generator(self.settings.seed, "tuning")
        choice("tuning", self.tuning, TUNINGS)
        plain = self.tuning == "full" and not self.tuning_options
        tuned = model if plain else tune(model, self.tuning, draws, **self.tuning_options)
        return build_method(self.method, **self.method_options).fitted(tuned)

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
    @checked
    def from_json(cls, data: Mapping[str, Any]) -> "Experiment":
        """The inverse of `to_json`."""
        return cls(**{**data, "settings": Settings(**data["settings"])})

    @property
    def key(self) -> str:
        """A short hash of everything, equal for equal experiments."""
        plain = self.to_json()
        for name, default in _ADDED_SETTINGS.items():  # unused, they leave the keys of earlier files as they are
            if plain["settings"][name] == default or (name == "channels_last" and not plain["settings"][name]):
                del plain["settings"][name]
        for name, unused in (("start", "random"), ("tuning", "full"), ("tuning_options", {})):  # likewise
            if plain[name] == unused:
                del plain[name]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


_FIRST_SETTINGS = (
    *("fraction", "epochs", "steps", "batch_size", "lr", "lr_schedule", "lr_decay", "schedule_rounds", "momentum"),
    *("weight_decay", "weighting", "batch_norm", "seed", "evaluate_every", "evaluate_clients", "double", "device"),
    "engine",
)
"""Settings that are part of every key; those that came later are part of it where they are used."""
_ADDED_SETTINGS = {f.name: f.default for f in fields(Settings) if f.name not in _FIRST_SETTINGS}


def _plain(value: Any, where: str) -> Any:
    """A value as JSON gives it back: scalars of NumPy and torch, devices and dtypes as plain values, tuples as lists.

    Raises:
        ValueError: something that JSON has no form for.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{where}[{key!r}]") for key, inner in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim:
        value = value.tolist()
    if isinstance(value, list | tuple | range):
        return [_plain(inner, f"{where}[{number}]") for number, inner in enumerate(value)]
    value = str(value) if isinstance(value, Path) else plain_value(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{where}={value!r}, accepted: numbers, texts, True, False, None, lists and dictionaries of these")
