"""What goes together: choices are tried on a handful of examples, and a way out is searched where they do not."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fedlab_core.batchnorm.fedtan import FedTAN
from fedlab_core.batchnorm.hybrid import FBN
from fedlab_core.data import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.finetuning.lora import FedSALoRA, ResidualLoRA
from fedlab_core.layerwise.method import LayerWise
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.models.build import MODELS
from fedlab_core.partition import pooled
from fedlab_core.pretraining.named import SHIPPED, recipe
from fedlab_core.registry import METHODS
from fedlab_core.workbench.catalog import GIVEN, Catalog

EXAMPLES = 32  # of the trial
MOST_CHANGES = 3  # of a way out
MOST_TRIALS = 200  # in search of one
USUAL = {"image": "digits", "text": "python_docs"}  # data that are always there
FEWER = (50, 20, 10, 5, 2, 1)  # clients, where the data do not suffice for more
WORDS: dict[str, Callable[[Any], str]] = {
    "dataset": lambda name: f"the data {name}",
    "partition": lambda name: {"natural": "natural groups", "iid": "an IID partition"}.get(name, f"partition {name}"),
    "clients": lambda count: f"{count} clients" if count > 1 else "one client",
    "fraction": lambda _: "every client in every round",
    "model": lambda name: f"the model {name}",
    "norm": lambda kind: "no norm" if kind == "none" else f"the norm {kind}",
    "batch_norm": lambda policy: f"batch-norm policy {policy or 'none'}",
    "start": lambda _: "a random start",
    "tuning": lambda way: "full training" if way == "full" else "low-rank updates",
    "drop_last": lambda _: "full batches only",
    "momentum": lambda value: f"momentum {value:g}",
    "weight_decay": lambda value: f"weight decay {value:g}",
}
"""How a button calls what is changed."""


@dataclass(frozen=True)
class WayOut:
    """Changes under which an experiment works.

    Attributes:
        changes: as `Experiment.replace` takes them.
        words: for a button.
    """

    changes: dict[str, Any]
    words: str


class Trials:
    """Tries experiments, each combination of choices once.

    Args:
        catalog: what the names stand for.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._known: dict[str, Exception | None] = {}

    def check(self, experiment: Experiment) -> None:
        """Build the experiment, and let one client take one step on a few examples.

        Raises:
            ValueError: what does not go together, or whatever else training would raise.
        """
        dataset = self.catalog.load(experiment)
        self.catalog.divide(experiment, dataset)
        recipe(experiment.start, dataset.input_shape)  # raises where its images are not of that shape
        built_in = experiment.model in MODELS and MODELS[experiment.model].built_in
        key = _choices(experiment, whole=experiment.norm == "batch" or not built_in).key
        if key not in self._known:
            try:
                self._try(experiment, dataset)
                self._known[key] = None
            except Exception as error:
                self._known[key] = error
        if (known := self._known[key]) is not None:
            raise known

    def note(self, experiment: Experiment) -> str:
        """What a reader should know of an experiment that works; "" if there is nothing."""
        info = MODELS.get(experiment.model)
        bare = info is not None and info.built_in and experiment.norm != "batch"
        if bare and issubclass(METHODS.get(experiment.method, FedAvg), FedTAN):
            return "Ready. FedTAN exchanges what batch norm computes; without batch norm it trains as FedAvg does."
        return ""

    def ways_out(self, experiment: Experiment, chosen: str = "") -> list[WayOut]:
        """The smallest set of changes under which the experiment works, as one way out; none if there is none.

        Args:
            chosen: the field that the reader has set last; it is left alone if possible.
        """
        try:
            dataset = self.catalog.load(experiment)
        except Exception:
            return []
        if issubclass(METHODS.get(experiment.method, FedAvg), LayerWise) and not self.catalog.models:
            usual = {"method": "fedavg", "method_options": {}}  # no model of the menu is trained in stages
            if self._works(plain := experiment.replace(**usual)):
                return [WayOut(usual, self._words(usual))]
            found = [way.changes | usual for way in self.ways_out(plain, chosen)]
            return [WayOut(changes, self._words(changes)) for changes in found]
        possible = list(self._changes(experiment, dataset))
        for pool in ([c for c in possible if chosen not in c], possible):
            groups = (itertools.combinations(pool, count) for count in range(1, MOST_CHANGES + 1))
            for parts in itertools.islice(itertools.chain.from_iterable(groups), MOST_TRIALS):
                changes = {name: value for part in parts for name, value in part.items()}
                if len(changes) == sum(map(len, parts)) and self._works(experiment.replace(**changes)):
                    return [WayOut(changes, self._words(changes))]
        return []

    def _works(self, experiment: Experiment) -> bool:
        try:
            self.check(experiment)
        except Exception:
            return False
        return True

    def _try(self, experiment: Experiment, dataset: Dataset) -> None:
        n = min(EXAMPLES, len(dataset.x), len(dataset.test_x))
        tests: dict[str, Any] = {"test_x": dataset.test_x[:n], "test_y": dataset.test_y[:n]}
        few = replace(dataset, x=dataset.x[:n], y=dataset.y[:n], groups=None, test_groups=None, group_names=(), **tests)
        start = experiment.start if experiment.start in SHIPPED else "random"  # the others fit by being learnt
        built = self.catalog.build(experiment.replace(start=start))
        settings = experiment.settings.replace(
            fraction=0.0, steps=1, batch_size=n, engine="loop", evaluate_clients=False, evaluate_every=1
        )
        for _ in Federation(few, pooled(n), built.model, settings, built.method).rounds(1):
            pass

    def _changes(self, e: Experiment, data: Dataset) -> Iterator[dict[str, Any]]:
        """Single changes to try, the gentlest first."""
        s = e.settings
        if issubclass(METHODS.get(e.method, FedAvg), FedSALoRA | ResidualLoRA):
            delta = e.method != "fedsa_lora"
            there = e.tuning == "lora" and e.tuning_options.get("delta", False) == delta
            low_rank = {} if there else {"tuning": "lora", "tuning_options": {"delta": delta}}
            model = {"model": "vit", "model_options": {}} if e.model != "vit" else {}
            norm = {"norm": "none"} if e.norm not in ("none", *self.catalog.norms("vit")) else {}
            everyone = {"fraction": 1.0} if s.fraction < 1 and delta else {}
            if together := low_rank | model | everyone | norm:
                yield together
        if issubclass(METHODS.get(e.method, FedAvg), FBN):
            policy = {"norm": "batch", "batch_norm": "average"}
            yield (
                policy
                if e.norm != "batch" and "batch" in self.catalog.norms(e.model)
                else {"model": "mlp", "model_options": {}, **policy}
            )
        if e.start != "random":
            yield {"start": "random"}
        if e.tuning != "full":
            yield {"tuning": "full", "tuning_options": {}}
            if e.model != "vit":
                yield {"model": "vit", "model_options": {}}
        if s.batch_norm is None:
            yield {"batch_norm": "average"}
        elif s.batch_norm != "average":
            yield {"batch_norm": "average"}
            yield {"batch_norm": None}
        if e.norm == "batch" and not s.drop_last:  # else a client's last batch may be one example, without variance
            yield {"drop_last": True}
        if e.norm != "none":
            yield {"norm": "none"}
        kinds = [name for name in ("natural", "iid", GIVEN) if name in self.catalog.partition_names]
        yield from ({"partition": name, "partition_options": {}} for name in kinds if name != e.partition)
        if e.partition_options:
            yield {"partition_options": {}}
        yield from ({"clients": fewer} for fewer in FEWER if fewer < e.clients)
        for name in self._models(data):
            if name != e.model:
                yield {"model": name, "model_options": {}}
        if e.model_options:
            yield {"model_options": {}}
        if e.method_options:
            yield {"method_options": {}}
        if s.momentum or s.weight_decay:
            yield {"momentum": 0.0, "weight_decay": 0.0}
        if e.method != "fedavg":
            yield {"method": "fedavg", "method_options": {}}
        kind = "image" if e.model in self.catalog.models else MODELS[e.model].kind
        if kind in USUAL and kind != data.kind:
            yield {"dataset": USUAL[kind], "dataset_options": {}}

    def _models(self, data: Dataset) -> list[str]:
        """Models that read such data and are quick to build: a reader waits for the answer."""
        quick = {n: info for n, info in MODELS.items() if info.installed and (info.built_in or info.kind == "any")}
        return [*self.catalog.models, *(n for n, info in quick.items() if info.kind in (data.kind, "any"))]

    def _words(self, changes: dict[str, Any]) -> str:
        parts = []
        for name, value in changes.items():
            if name == "method":
                parts.append(self.catalog.method_label(value))
            elif name in WORDS:
                parts.append(WORDS[name](value))
            elif not changes.keys() & {name.removesuffix("_options")}:
                parts.append(f"the {name.removesuffix('_options')}'s own defaults")
        return "Use " + (" and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0])


def _choices(experiment: Experiment, whole: bool) -> Experiment:
    """The experiment without what cannot make choices fit or not fit: numbers of training, clients and partition.

    Args:
        whole: whether clients and their batches count too, as with batch normalisation: it cannot learn from a batch
            of one example.
    """
    if whole:
        return experiment.replace(lr=0.1, engine="loop", evaluate_clients=False)
    settings = experiment.settings
    every = settings.clients_per_round(experiment.clients) == experiment.clients  # some methods need that
    usual = {"fraction": float(every), "steps": 1, "batch_size": 1, "lr": 0.1, "engine": "loop", "seed": 0}
    return experiment.replace(**usual, evaluate_clients=False, clients=1, partition="iid", partition_options={})
