"""What a panel may choose from: the registry's names, and what the reader brings along."""

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fedlab_core.check import checked
from fedlab_core.data import Dataset, dataset_names, missing_data
from fedlab_core.data.vision import SOURCES
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.finetuning.tuning import TUNINGS
from fedlab_core.layerwise.method import LayerWise
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.methods.named import build_method
from fedlab_core.models.build import MODELS
from fedlab_core.partition import Partition
from fedlab_core.pretraining.kept import Start
from fedlab_core.registry import METHODS, PARTITIONS, register
from fedlab_core.workbench.labels import MODEL_WORDS, PARTITION_WORDS, TUNING_WORDS
from fedlab_core.workbench.options import Option, options_from, options_of
from fedlab_core.workbench.runs import method_label

GIVEN = "given"  # name of what a federation brings along
CLIENT_EXAMPLES = 1000  # a band that is watched need not be as exact as a record
TYPED = {"folder:": "a folder of images …", "text:": "a text file …"}


@checked
@dataclass(frozen=True)
class Catalog:
    """Names and what they stand for.

    Attributes:
        datasets: own data sets by name.
        models: own models by name, with the weights that they have.
        methods: own methods by name, with the options that they have.
        partition: of the data set "given".
        root: the data root, see `data.data_root`.
    """

    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    models: Mapping[str, nn.Module] = field(default_factory=dict)
    methods: Mapping[str, FedAvg] = field(default_factory=dict)
    partition: Partition | None = None
    root: str | Path | None = None

    def extended(
        self, datasets: Mapping[str, Dataset], models: Mapping[str, Any], methods: Mapping[str, Any]
    ) -> "Catalog":
        """A catalog with a reader's own things: finished objects are kept in it, classes and functions are registered.

        Raises:
            ValueError: a name that is built in, or an entry that is not of its kind.
        """
        for name, entry in models.items():
            if not isinstance(entry, nn.Module):
                register("model", name, entry)
        for name, entry in methods.items():
            if not isinstance(entry, FedAvg):
                register("method", name, entry)
        modules = {name: entry for name, entry in models.items() if isinstance(entry, nn.Module)}
        rules = {name: entry for name, entry in methods.items() if isinstance(entry, FedAvg)}
        return dataclasses.replace(
            self,
            datasets={**self.datasets, **datasets},
            models={**self.models, **modules},
            methods={**self.methods, **rules},
        )

    @property
    def dataset_labels(self) -> list[tuple[str, str]]:
        """Labels and names of all data sets; those that are not at hand say so."""
        known = [name for name in dataset_names() if name not in self.datasets]
        missing = {name for name in known if missing_data(name, self.root)}
        found = [(f"{name} (not found)" if name in missing else name, name) for name in known]
        own = [(name, name) for name in self.datasets]
        return [*own, *found, *((label, prefix) for prefix, label in TYPED.items())]

    @property
    def partition_names(self) -> tuple[str, ...]:
        """Names of all partitions."""
        return tuple(PARTITIONS) if self.partition is None else (GIVEN, *PARTITIONS)

    @property
    def model_labels(self) -> list[tuple[str, str]]:
        """Labels and names of all models; those that read text say so."""
        there = {name: info for name, info in MODELS.items() if info.installed}
        found = [(f"{n} (text)" if info.kind == "text" else n, n) for n, info in there.items()]
        return [*((name, name) for name in self.models), *found]

    @property
    def method_labels(self) -> list[tuple[str, str]]:
        """Labels and names of all methods; those that no built-in model can do say so."""
        names = [*self.methods, *(name for name in METHODS if name not in self.methods)]
        staged = {name for name, kind in METHODS.items() if issubclass(kind, LayerWise)} - self.methods.keys()
        return [(f"{self.method_label(name)}{' (needs a staged model)' * (name in staged)}", name) for name in names]

    def method_label(self, name: str) -> str:
        """How a method is written for readers."""
        return name if name in self.methods else method_label(name)

    def norms(self, model: str) -> tuple[str, ...]:
        """The norms that a model may have."""
        return ("none",) if model in self.models else MODELS[model].norms

    def method_options(self, name: str) -> tuple[Option, ...]:
        """The options of a method with its own defaults."""
        return options_of(self.methods.get(name, METHODS.get(name)))

    def model_options(self, name: str) -> tuple[Option, ...]:
        """The options of a model with its own defaults."""
        return () if name in self.models else options_from(MODELS[name].options, MODEL_WORDS)

    def tuning_options(self, name: str) -> tuple[Option, ...]:
        """The options of a way to fine-tune with its own defaults."""
        return options_from(TUNINGS[name].options, TUNING_WORDS)

    def partition_options(self, name: str) -> tuple[Option, ...]:
        """The options of a partition with its own defaults."""
        if name == GIVEN:
            return ()
        parameters = list(inspect.signature(PARTITIONS[name]).parameters.items())[3:]
        return options_from({key: parameter.default for key, parameter in parameters}, PARTITION_WORDS)

    def load(self, experiment: Experiment) -> Dataset:
        """The data set of an experiment, never by a download that nobody asked for.

        Raises:
            FileNotFoundError: it is not in the data root; the message says which file goes where.
        """
        name = experiment.dataset
        if name in self.datasets:
            return self.datasets[name]
        if name in TYPED:
            raise ValueError(f"dataset={name!r}: type the path of {TYPED[name].removesuffix(' …')} into Path")
        if missing := "" if name.startswith(tuple(TYPED)) else missing_data(name, self.root):
            download = f", or download it: fedlab_core.data.load_dataset({name!r})" if name in SOURCES else ""
            raise FileNotFoundError(missing + download)
        return experiment.load_data(self.root)

    def divide(self, experiment: Experiment, dataset: Dataset) -> Partition:
        """Who holds what.

        Raises:
            ValueError: a request that the data cannot meet.
        """
        if experiment.partition != GIVEN:
            return experiment.make_partition(dataset)
        if self.partition is None or experiment.dataset != GIVEN:
            raise ValueError(f"partition='given' divides the data set 'given', accepted: {list(PARTITIONS)}")
        return self.partition

    def method(self, experiment: Experiment) -> FedAvg:
        """The method of an experiment.

        Raises:
            ValueError: options that it does not take.
        """
        given = self.methods.get(experiment.method)
        if given is None:
            return build_method(experiment.method, **experiment.method_options)
        try:
            return dataclasses.replace(given, **experiment.method_options)
        except TypeError as error:
            raise ValueError(f"method_options={dict(experiment.method_options)}: {error}") from None

    def build(self, experiment: Experiment, name: str | None = None, start: Start | None = None) -> Federation:
        """A federation that is ready to run.

        Args:
            name: of the run, by default the method's.
            start: what the experiment's start was learnt to be, if it was.

        Raises:
            ValueError: choices that do not go together.
            FileNotFoundError: a data set is missing.
        """
        dataset, method = self.load(experiment), self.method(experiment)
        partition, name = self.divide(experiment, dataset), name or method.name
        own = experiment.model in self.models
        if own and (experiment.start != "random" or experiment.tuning != "full" or experiment.norm != "none"):
            raise ValueError(f"model={experiment.model!r} is your own: start, norm and fine-tuning are its own too")
        if own:
            model = self.models[experiment.model]
        else:
            plain = experiment.replace(method="fedavg", method_options={}, partition="pooled", partition_options={})
            model = plain.begin(start or experiment.make_start(data=dataset, root=self.root), data=dataset).model
        return Federation(dataset, partition, method.fitted(model), experiment.settings, method, name=name)


@checked
def of_federation(federation: Federation) -> tuple[Catalog, Experiment]:
    """A catalog of what a federation is made of, and the experiment that it is in these words."""
    first, data = federation.segments[0], {GIVEN: federation.dataset}
    name = next((n for n, kind in METHODS.items() if kind is type(first.method)), GIVEN)
    methods = {GIVEN: first.method} if name == GIVEN else {}
    options = {o.name: getattr(first.method, o.name) for o in options_of(first.method)} if name != GIVEN else {}
    catalog = Catalog(data, {GIVEN: federation.model}, methods, federation.partition)
    experiment = Experiment(
        dataset=GIVEN,
        partition=GIVEN,
        clients=len(federation.partition),
        model=GIVEN,
        method=name,
        method_options=options,
        settings=first.settings,
    )
    return catalog, experiment


@checked
def watched(experiment: Experiment, band: bool) -> Experiment:
    """An experiment as a panel begins with it: whether its clients' models are evaluated, on few examples unless it
    says on how many."""
    return experiment.replace(
        evaluate_clients=band, client_examples=experiment.settings.client_examples or CLIENT_EXAMPLES
    )


@checked
def what_there_is(
    given: Experiment | Federation | None,
    models: Mapping[str, Any],
    methods: Mapping[str, Any],
    data: Dataset | Mapping[str, Dataset] | None,
    root: str | Path | None,
) -> tuple[Catalog, Experiment]:
    """What a panel may choose from, and its first settings, from what it was given.

    Raises:
        TypeError: neither an experiment nor a federation.
        ValueError: a name that is built in, or an entry that is not of its kind.
    """
    if given is not None and not isinstance(given, Experiment | Federation):
        raise TypeError(f"experiment={given!r}, accepted: an Experiment or a Federation")
    datasets = {data.name: data} if isinstance(data, Dataset) else dict(data or {})
    usual = Experiment(dataset=next(iter(datasets))) if datasets else Experiment()
    own, first = of_federation(given) if isinstance(given, Federation) else (Catalog(root=root), given or usual)
    return own.extended(datasets, models, methods), first
