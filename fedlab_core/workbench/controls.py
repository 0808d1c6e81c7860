"""The settings of a panel as widgets: from an experiment to widgets, and from widgets to an experiment."""

import importlib.util
import threading
from collections.abc import Callable, Iterable
from typing import Any, get_args

import ipywidgets as widgets

from fedlab_core.data.feature_skew import SkewKind
from fedlab_core.engines import ENGINES
from fedlab_core.experiment import Experiment
from fedlab_core.finetuning.tuning import TUNINGS
from fedlab_core.glossary import define
from fedlab_core.pretraining.named import STARTS, installed
from fedlab_core.state import BATCH_NORM_POLICIES
from fedlab_core.workbench import fields
from fedlab_core.workbench.catalog import GIVEN, TYPED, Catalog
from fedlab_core.workbench.forms import Forms
from fedlab_core.workbench.labels import PARTITION_LABELS, POLICY_LABELS

BATCH_SIZES = (1, 2, 5, 10, 20, 32, 50, 64, 100, 128, 200)
MOST = 1_000_000  # clients, epochs or steps


class Controls:
    """Widgets for an experiment.

    The options of what is chosen have fields of their own, see `Forms`. What has no field is kept from the experiment
    that was last loaded.

    Args:
        experiment: the first values.
        changed: called after a reader, or `load`, has changed a value; sliders call on release.
        catalog: what there is to choose from.

    Attributes:
        last: the experiment's field that was changed last, "" after `load` or where several were at once.
    """

    def __init__(self, experiment: Experiment, changed: Callable[[], None], catalog: Catalog | None = None) -> None:
        self.catalog = catalog or Catalog()
        self._base, self._changed, self._quiet, self.last = experiment, changed, True, ""
        self._lock = threading.RLock()  # changes may come from several threads of a kernel
        self._forms = Forms(self.catalog, self._on_change)
        dropdown = fields.dropdown
        self.dataset = dropdown("Data set", self.catalog.dataset_labels, "what the clients train on")
        self.path = fields.text("Path", "absolute, or relative to the data root", placeholder="folder or file")
        named = [(PARTITION_LABELS.get(name, name), name) for name in self.catalog.partition_names]
        self.partition = dropdown("Partition", named, "who holds which examples")
        self.clients = fields.whole("Clients K", 1, MOST, "number of clients that exist")
        kinds = [("none", ""), *((kind, kind) for kind in get_args(SkewKind))]
        self.skew = dropdown("Input skew", kinds, define("input skew"))
        self.strength = fields.number("Strength", "degrees of rotation, or strength of contrast or noise", 30.0)
        self.model = dropdown("Model", self.catalog.model_labels, "the network")
        self.norm = dropdown("Norm", ["none"], "its normalisation layers")
        policies = [("choose a policy", ""), *((POLICY_LABELS.get(p, p), p) for p in BATCH_NORM_POLICIES)]
        self.batch_norm = dropdown("Batch norm", policies, define("batch-norm policy"))
        self.start = dropdown("Start", [name for name in STARTS if installed(name)], define("start"))
        ways = [(f"{way.family}: {way.title}", name) for name, way in TUNINGS.items() if not way.of_clip]
        self.tuning = dropdown("Fine-tune", ways, f"{define('fine-tuning')} Of a vit.")
        self.method = dropdown("Method", self.catalog.method_labels, "the federated algorithm")
        self.fraction = fields.float_slider("Fraction C", 0, 1, 0.05, define("fraction C"))
        self.unit = dropdown("Local work", [("epochs E", "epochs"), ("steps", "steps")], "what counts local work")
        self.local_work = fields.whole("Number", 1, MOST, "local epochs or steps per client and round")
        self.batch_size = widgets.SelectionSlider(
            options=[*((str(b), b) for b in BATCH_SIZES), ("all", 0)], continuous_update=False, description="Batch B"
        )
        fields.finish(self.batch_size, define("batch size B"))
        self.lr = fields.log_slider("Learning rate", -4, 1, "of the clients' SGD, log scale", experiment.settings.lr)
        engines = [name for name in ENGINES if name != "ray" or importlib.util.find_spec("ray")]
        own = [experiment.settings.engine] if experiment.settings.engine not in engines else []
        self.engine = dropdown("Engine", [*engines, *own], define("engine"))
        self.seed = fields.whole("Seed", 0, 2**31 - 1, define("seed"), 0)
        self.band = fields.switch("Client spread", define("client spread"))
        self.reference = fields.switch("Centralised", define("centralised"))
        self.more = widgets.ToggleButton(False, description="More settings", icon="sliders")
        self.more.tooltip = "momentum, schedules, precision and all that is left"
        self.more.add_class("fedlab-more")
        self._slots = {name: widgets.VBox() for name in ("partition", "model", "tuning", "method", "settings")}
        fixed = [v for v in vars(self).values() if isinstance(v, widgets.ValueWidget)]
        for control in fixed:
            control.observe(self._on_change, "value")
        self.load(experiment)

    @property
    def view(self) -> widgets.Widget:
        """The widgets in groups."""
        measures = widgets.HBox([self.band, self.reference])
        measures.add_class("fedlab-pair")
        data = [self.dataset, self.path, self.partition, self._slots["partition"], self.clients, self.skew]
        data.append(self.strength)
        model = [self.model, self._slots["model"], self.norm, self.batch_norm, self.start, self.tuning]
        model.append(self._slots["tuning"])
        method = [self.method, self._slots["method"]]
        work = [self.fraction, self.unit, self.local_work, self.batch_size, self.lr, self.engine, self.seed, measures]
        groups = [("Method", method), ("Training", work), ("Data", data), ("Model", model)]
        rows = [row for title, members in groups for row in (fields.heading(title), *members)]
        return widgets.VBox([*rows, self.more, self._slots["settings"]])

    @property
    def experiment(self) -> Experiment:
        """What the controls say now.

        Raises:
            ValueError: a setting outside what `Settings` accepts.
        """
        with self._lock:
            return self._experiment()

    def _experiment(self) -> Experiment:
        base, model, method = self._base, self.model.value, self.method.value
        skew = {"feature_skew": self.skew.value, "strength": self.strength.value} if self.skew.value else {}
        partition = self.partition.value
        known = base.partition_options if partition == base.partition else {}
        known = {name: value for name, value in known.items() if name not in ("feature_skew", "strength")}
        same_model, same_method = model == base.model, method == base.method
        tuning = self.tuning.value if model == "vit" else "full"
        tuned = base.tuning_options if tuning == base.tuning else {}
        return base.replace(
            dataset=self.source_name,
            dataset_options=self.dataset_options,
            partition=partition,
            partition_options=self._forms.differing("partition", partition, known) | skew,
            clients=self.clients.value,
            model=model,
            norm=self.norm.value,
            start=self.start.value,
            tuning=tuning,
            tuning_options=self._forms.differing("tuning", tuning, tuned),
            model_options=self._forms.differing("model", model, base.model_options if same_model else {}),
            method=method,
            method_options=self._forms.differing("method", method, base.method_options if same_method else {}),
            fraction=round(self.fraction.value, 6),
            **{self.unit.value: self.local_work.value},
            batch_size=self.batch_size.value or None,
            lr=self.lr.value,
            batch_norm=(self.batch_norm.value or None) if self._may_have_batch_norm else None,
            engine=self.engine.value,
            seed=self.seed.value,
            evaluate_clients=self.band.value,
            **self._forms.differing("settings", "", {}),
        )

    @property
    def source_name(self) -> str:
        """The name of the data set, with the path where one is typed in."""
        chosen = self.dataset.value
        return chosen + self.path.value.strip() if chosen in TYPED else chosen

    @property
    def dataset_options(self) -> dict[str, Any]:
        """Options of the data set: those last loaded, while it is the same."""
        return dict(self._base.dataset_options) if self.source_name == self._base.dataset else {}

    @property
    def source(self) -> str:
        """What has to be loaded: equal texts, equal data."""
        return f"{self.source_name} {self.dataset_options}"

    def option(self, group: str, name: str) -> widgets.Widget:
        """The field of an option of what is chosen as method, model, tuning or partition, or of the settings."""
        chosen = "" if group == "settings" else getattr(self, group).value
        return self._forms.of(group, chosen)[name]

    def move(self, **values: Any) -> None:
        """Sets some controls, by the names that `Experiment.replace` takes; a new choice starts from its own defaults.

        Raises:
            ValueError: an unknown name, or a value that neither a control nor `Settings` accepts.
        """
        for choice in {"dataset", "method", "partition", "model", "tuning"} & values.keys():
            values.setdefault(f"{choice}_options", {})
        chosen = [name for name in values if not name.endswith("_options")]
        self.load(self.experiment.replace(**values), chosen[0] if len(chosen) == 1 else "")

    def load(self, experiment: Experiment, last: str = "") -> None:
        """Sets every control to an experiment's values, then reports one change.

        Args:
            last: the field that counts as changed last.

        Raises:
            ValueError: a value that a control cannot take; all controls are then as they were.
        """
        with self._lock:
            before, self.last = self._base, last
            try:
                self._set(experiment)
            except ValueError:
                self._set(before)
                raise
        self._changed()

    def _set(self, experiment: Experiment) -> None:
        settings = experiment.settings
        prefix = next((p for p in TYPED if experiment.dataset.startswith(p)), "")
        if not prefix and experiment.dataset not in [value for _, value in self.dataset.options]:
            raise ValueError(f"dataset={experiment.dataset!r}, accepted: {[v for _, v in self.dataset.options]}")
        options = dict(experiment.partition_options)
        unit = "steps" if settings.epochs is None else "epochs"
        values: dict[widgets.Widget, Any] = {
            self.dataset: prefix or experiment.dataset,
            self.path: experiment.dataset.removeprefix(prefix) if prefix else "",
            self.partition: experiment.partition,
            self.clients: experiment.clients,
            self.skew: options.get("feature_skew") or "",
            self.strength: options.get("strength", self.strength.value),
            self.model: experiment.model,
            self.start: experiment.start,
            self.tuning: experiment.tuning,
            self.method: experiment.method,
            self.fraction: settings.fraction,
            self.unit: unit,
            self.local_work: getattr(settings, unit),
            self.batch_size: settings.batch_size or 0,
            self.lr: settings.lr,
            self.engine: settings.engine,
            self.seed: settings.seed,
            self.band: settings.evaluate_clients,
            self.batch_norm: settings.batch_norm or "",
        }
        self._quiet, self._base = True, experiment
        try:
            if (settings.batch_size or 0) not in [value for _, value in self.batch_size.options]:
                sizes = sorted({*(v for _, v in self.batch_size.options if v), settings.batch_size})
                self.batch_size.options = [*((str(b), b) for b in sizes), ("all", 0)]
            for control, value in values.items():
                fields.set_value(control, value)
            for group in ("method", "partition", "model", "tuning"):
                self._forms.fill(group, getattr(experiment, group), getattr(experiment, f"{group}_options"))
            self._forms.fill("settings", "", {name: getattr(settings, name) for name in self._forms.of("settings", "")})
            self._arrange()
            fields.set_value(self.norm, experiment.norm)
            self._arrange()
        finally:
            self._quiet = False

    def _on_change(self, change: dict[str, Any]) -> None:
        with self._lock:
            if self._quiet:
                return
            self._quiet = True
            try:
                control = change["owner"]
                if isinstance(control, widgets.FloatLogSlider):
                    control.value = fields.tidy(control.value)
                last = next((name for name, widget in vars(self).items() if widget is control), "")
                self.last = "dataset" if last == "path" else last
                self._arrange()
            finally:
                self._quiet = False
        if control is not self.more:
            self._changed()

    def _arrange(self) -> None:
        """Shows the options that belong to the choices, and hides what has no meaning under them."""
        norms = self.catalog.norms(self.model.value)
        if tuple(self.norm.options) != tuple(norms):
            kept = self.norm.value if self.norm.value in norms else norms[0]
            self.norm.options = norms
            self.norm.value = kept
        shown = {
            self.path: self.dataset.value in TYPED,
            self.norm: len(norms) > 1,
            self.batch_norm: self._may_have_batch_norm,
            self.tuning: self.model.value == "vit",
            self.clients: self.partition.value not in ("natural", "pooled", GIVEN),
            self.strength: bool(self.skew.value),
        }
        for control, visible in shown.items():
            control.layout.display = "" if visible else "none"
        slots: dict[str, Iterable[widgets.Widget]] = {
            "partition": self._forms.of("partition", self.partition.value).values(),
            "method": self._forms.of("method", self.method.value).values(),
            "model": self._forms.of("model", self.model.value).values(),
            "tuning": self._forms.of("tuning", self.tuning.value).values() if self.model.value == "vit" else (),
            "settings": self._forms.of("settings", "").values() if self.more.value else (),
        }
        for slot, children in slots.items():
            if self._slots[slot].children != (children := tuple(children)):
                self._slots[slot].children = children
        self.method.tooltip = define(self.catalog.method_label(self.method.value)) or "the federated algorithm"

    @property
    def _may_have_batch_norm(self) -> bool:
        return self.norm.value == "batch" or self.model.value in self.catalog.models
