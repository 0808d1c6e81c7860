"""The settings of a panel as widgets: from an experiment to widgets, and from widgets to an experiment."""

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import ipywidgets as widgets

from fedlab_core.data import dataset_names, missing_data
from fedlab_core.data.feature_skew import SkewKind
from fedlab_core.engines import ENGINES
from fedlab_core.experiment import PARTITIONS, Experiment
from fedlab_core.finetuning.tuning import TUNINGS
from fedlab_core.methods import METHODS
from fedlab_core.models import MODELS
from fedlab_core.pretraining.named import STARTS, installed
from fedlab_core.state import BATCH_NORM_POLICIES
from fedlab_core.workbench import fields
from fedlab_core.workbench.runs import method_label

PARTITION_LABELS = {
    "iid": "IID",
    "shards": "label shards",
    "dirichlet": "Dirichlet label skew",
    "quantity": "quantity skew",
    "natural": "natural groups",
    "pooled": "pooled (one client)",
}
POLICY_LABELS = {
    "average": "average everything (FedAvg)",
    "local_statistics": "local statistics (SiloBN)",
    "local": "local layer (FedBN)",
    "frozen": "frozen statistics (FixBN)",
    "total_variance": "average, total variance",
}
BATCH_SIZES = (1, 2, 5, 10, 20, 32, 50, 64, 100, 128, 200)


class Controls:
    """Widgets for an experiment. What has no widget (momentum, model options, ...) is kept from the one last loaded.

    Args:
        experiment: the first values.
        changed: called after a reader, or `load`, has changed a value; sliders call on release.
        root: the data root, to say which data sets are missing.
    """

    def __init__(self, experiment: Experiment, changed: Callable[[], None], root: str | Path | None = None) -> None:
        self._base, self._changed, self._quiet = experiment, changed, True
        settings = experiment.settings
        datasets = [*dataset_names(), *([experiment.dataset] if experiment.dataset not in dataset_names() else [])]
        missing = {name for name in dataset_names() if missing_data(name, root)}
        names = [(f"{name} (not found)" if name in missing else name, name) for name in datasets]
        self.dataset = fields.dropdown("Data set", names, "what the clients train on")
        named = [(PARTITION_LABELS.get(name, name), name) for name in PARTITIONS]
        self.partition = fields.dropdown("Partition", named, "who holds which examples")
        self.partition_options: dict[str, widgets.Widget] = {
            "per_client": fields.slider("Shards each", 1, 20, "shards of one label per client", value=2),
            "alpha": fields.log_slider(
                "Alpha", -2, 2, "Dirichlet concentration: small gives each client few labels", 0.3
            ),
            "sigma": fields.float_slider("Sigma", 0, 3, 0.1, "spread of log-normal client sizes; 0: all equal", 1.0),
        }
        self.clients = fields.slider("Clients K", 1, max(200, experiment.clients), "number of clients that exist")
        self.skew = fields.dropdown(
            "Input skew",
            [("none", ""), *((kind, kind) for kind in get_args(SkewKind))],
            "how clients see images differently",
        )
        self.strength = fields.number("Strength", "degrees of rotation, or strength of contrast or noise", 30.0)
        self.strength.style.description_width = "52px"
        self.model = fields.dropdown("Model", [name for name, info in MODELS.items() if info.installed], "the network")
        self.norm = fields.dropdown("Norm", ["none"], "its normalisation layers")
        policies = [("choose a policy", ""), *((POLICY_LABELS.get(p, p), p) for p in BATCH_NORM_POLICIES)]
        self.batch_norm = fields.dropdown("Batch norm", policies, "what happens to batch normalisation in a federation")
        starts = [name for name in STARTS if installed(name)]
        self.start = fields.dropdown("Start", starts, "what the network has learnt before; learnt once, then kept")
        ways = [(f"{way.family}: {way.title}", name) for name, way in TUNINGS.items() if not way.of_clip]
        self.tuning = fields.dropdown(
            "Fine-tune", ways, "what is trained besides the classifier, and travels; of a vit"
        )
        methods = [(method_label(name), name) for name in METHODS]
        self.method = fields.dropdown("Method", methods, "the federated algorithm")
        self.method_options: dict[str, widgets.Widget] = {}
        self.fraction = fields.float_slider("Fraction C", 0, 1, 0.05, "share of the clients that take part in a round")
        self.work = "epochs" if settings.steps is None else "steps"
        most = max(20 if self.work == "epochs" else 200, getattr(settings, self.work) or 1)
        self.local_work = fields.slider(
            "Epochs E" if self.work == "epochs" else "Local steps", 1, most, f"local {self.work} per client and round"
        )
        sizes = sorted({*BATCH_SIZES, settings.batch_size or 1})
        self.batch_size = widgets.SelectionSlider(
            options=[*((str(b), b) for b in sizes), ("all", 0)], continuous_update=False, description="Batch B"
        )
        fields.finish(self.batch_size, "examples per local step; all: the client's whole data")
        self.lr = fields.log_slider("Learning rate", -4, 1, "of the clients' SGD, log scale", settings.lr)
        own = [] if settings.engine in ENGINES else [settings.engine]
        engines = [name for name in ENGINES if name != "ray" or importlib.util.find_spec("ray")]
        self.engine = fields.dropdown(
            "Engine", [*engines, *own], "where clients run; the round line says what auto has chosen"
        )
        self.seed = widgets.BoundedIntText(min=0, max=2**31 - 1, description="Seed", continuous_update=False)
        fields.finish(self.seed, "root of every random draw: partition, weights, sampling, batches")
        self.band = fields.checkbox("Client spread", "evaluate each sampled client's own model on the global test set")
        self.reference = fields.checkbox("Centralised", "also train on all data pooled, with as many gradient steps")
        self._nothing = widgets.Label("no option to set")
        self._nothing.add_class("fedlab-nothing")
        self._slots = {"partition": widgets.Box(), "method": widgets.Box()}
        for slot in self._slots.values():
            slot.add_class("fedlab-slot")
        fixed = [v for v in vars(self).values() if isinstance(v, widgets.ValueWidget) and v is not self._nothing]
        for control in (*fixed, *self.partition_options.values()):
            control.observe(self._on_change, "value")
        self.load(experiment)

    @property
    def view(self) -> widgets.Widget:
        """The widgets in groups, in the order in which the Tab key visits them."""
        skew = widgets.HBox([self.skew, self.strength])
        skew.add_class("fedlab-pair")
        measures = widgets.HBox([self.band, self.reference])
        measures.add_class("fedlab-pair")
        data = [self.dataset, self.partition, self._slots["partition"], self.clients, skew]
        model = [self.model, self.norm, self.batch_norm, self.start, self.tuning]
        method = [self.method, self._slots["method"], self.fraction, self.local_work, self.batch_size, self.lr]
        groups = [("Data", data), ("Model", model), ("Training", [*method, self.engine, self.seed, measures])]
        rows = [row for title, members in groups for row in (fields.heading(title), *members)]
        return widgets.VBox(rows)

    @property
    def experiment(self) -> Experiment:
        """What the controls say now.

        Raises:
            ValueError: a setting outside what `Settings` accepts.
        """
        base, partition_options = self._base, self._kept_skew()
        for name in self._options_of_partition():
            partition_options[name] = self.partition_options[name].value
        same_method = self.method.value == base.method
        method_options = dict(base.method_options) if same_method else {}
        for name in self._options_of_method():
            method_options[name] = self._method_option(name).value
        same_model = self.model.value == base.model
        return base.replace(
            dataset=self.dataset.value,
            dataset_options=self.dataset_options,
            partition=self.partition.value,
            partition_options=partition_options,
            clients=self.clients.value,
            model=self.model.value,
            norm=self.norm.value,
            start=self.start.value,
            tuning=self.tuning.value if self.model.value == "vit" else "full",
            model_options=base.model_options if same_model else {},
            method=self.method.value,
            method_options=method_options,
            fraction=round(self.fraction.value, 6),
            **{self.work: self.local_work.value},
            batch_size=self.batch_size.value or None,
            lr=self.lr.value,
            batch_norm=(self.batch_norm.value or None) if self.norm.value == "batch" else None,
            engine=self.engine.value,
            seed=self.seed.value,
            evaluate_clients=self.band.value,
        )

    @property
    def dataset_options(self) -> dict[str, Any]:
        """Options of the data set: those last loaded, while it is the same."""
        return dict(self._base.dataset_options) if self.dataset.value == self._base.dataset else {}

    @property
    def source(self) -> str:
        """What has to be loaded: equal texts, equal data."""
        return f"{self.dataset.value} {self.dataset_options}"

    def move(self, **values: Any) -> None:
        """Sets some controls, by the names that `Experiment.replace` takes; a new choice starts from its own defaults.

        Raises:
            ValueError: an unknown name, or a value that neither a control nor `Settings` accepts.
        """
        for choice in {"dataset", "method", "partition", "model"} & values.keys():
            values.setdefault(f"{choice}_options", {})
        self.load(self.experiment.replace(**values))

    def load(self, experiment: Experiment) -> None:
        """Sets every control to an experiment's values, then reports one change.

        Raises:
            ValueError: a value that a control cannot take.
        """
        settings = experiment.settings
        if (settings.steps is None) != (self.work == "epochs"):
            raise ValueError(f"epochs={settings.epochs}, steps={settings.steps}: this panel counts {self.work}")
        self._quiet, self._base = True, experiment
        try:
            options = dict(experiment.partition_options)
            skew = options.pop("feature_skew", None)
            self.clients.max = max(self.clients.max, experiment.clients)
            self.local_work.max = max(self.local_work.max, getattr(settings, self.work))
            values: dict[widgets.Widget, Any] = {
                self.dataset: experiment.dataset,
                self.partition: experiment.partition,
                self.clients: experiment.clients,
                self.skew: skew or "",
                self.model: experiment.model,
                self.start: experiment.start,
                self.tuning: experiment.tuning,
                self.method: experiment.method,
                self.fraction: settings.fraction,
                self.local_work: getattr(settings, self.work),
                self.batch_size: settings.batch_size or 0,
                self.lr: settings.lr,
                self.engine: settings.engine,
                self.seed: settings.seed,
                self.band: settings.evaluate_clients,
                self.batch_norm: settings.batch_norm or "",
            }
            if skew is not None:
                values[self.strength] = options.get("strength", self.strength.value)
            values |= {w: options[name] for name, w in self.partition_options.items() if name in options}
            values |= {self._method_option(name): v for name, v in experiment.method_options.items()}
            if (settings.batch_size or 0) not in [value for _, value in self.batch_size.options]:
                sizes = sorted({*(v for _, v in self.batch_size.options if v), settings.batch_size})
                self.batch_size.options = [*((str(b), b) for b in sizes), ("all", 0)]
            for control, value in values.items():
                fields.set_value(control, value)
            self._arrange()
            fields.set_value(self.norm, experiment.norm)
            self._arrange()
        finally:
            self._quiet = False
        self._changed()

    def _on_change(self, change: dict[str, Any]) -> None:
        if self._quiet:
            return
        self._quiet = True
        try:
            control = change["owner"]
            if isinstance(control, widgets.FloatLogSlider):
                control.value = fields.tidy(control.value)
            self._arrange()
        finally:
            self._quiet = False
        self._changed()

    def _arrange(self) -> None:
        """Shows the options that belong to the choices, and switches off what has no meaning under them."""
        norms = MODELS[self.model.value].norms
        if tuple(self.norm.options) != tuple(norms):
            kept = self.norm.value if self.norm.value in norms else norms[0]
            self.norm.options = norms
            self.norm.value = kept
        self.norm.disabled = len(norms) == 1
        self.batch_norm.disabled = self.norm.value != "batch"
        self.tuning.disabled = self.model.value != "vit"
        self.clients.disabled = self.partition.value in ("natural", "pooled")
        self.strength.disabled = not self.skew.value
        shown = {
            "partition": [self.partition_options[name] for name in self._options_of_partition()],
            "method": [self._method_option(name) for name in self._options_of_method()][:1],
        }
        for slot, options in shown.items():
            children = tuple(options) or (self._nothing,)
            if self._slots[slot].children != children:
                self._slots[slot].children = children

    def _options_of_partition(self) -> Sequence[str]:
        return {"shards": ("per_client",), "dirichlet": ("alpha",), "quantity": ("sigma",)}.get(
            self.partition.value, ()
        )

    def _options_of_method(self) -> list[str]:
        return [f.name for f in dataclasses.fields(METHODS[self.method.value]) if isinstance(f.default, int | float)]

    def _method_option(self, name: str) -> widgets.Widget:
        """A number field for an option of the methods, made when first needed."""
        if name not in self.method_options:
            defaults = (f.default for kind in METHODS.values() for f in dataclasses.fields(kind) if f.name == name)
            control = fields.number(name, f"{name} of the method", next(defaults, 0.0))
            control.observe(self._on_change, "value")
            self.method_options[name] = control
        return self.method_options[name]

    def _kept_skew(self) -> dict[str, Any]:
        return {} if not self.skew.value else {"feature_skew": self.skew.value, "strength": self.strength.value}
