"""The runs a panel shows: their settings by segment, how they branch, how they differ, and how they are exported."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedlab_core.check import checked
from fedlab_core.engines import get_engine
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.history import Record, to_frame
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.plots import Line
from fedlab_core.pretraining.kept import Start
from fedlab_core.references import centralised
from fedlab_core.registry import METHODS

if TYPE_CHECKING:
    import pandas as pd

FEWEST, MOST_SNAPSHOTS = 2, 64  # of a run: of one among many, and of a single one
SHORT = {
    "dataset": "data set",
    "dataset_options": "data set's options",
    "settings.fraction": "C",
    "settings.epochs": "E",
    "settings.steps": "steps",
    "settings.batch_size": "B",
    "settings.lr": "lr",
    "settings.batch_norm": "batch norm",
    "settings.evaluate_clients": "client spread",
    "settings.client_examples": "clients' test examples",
    "settings.seed": "seed",
}
# Settings that a fork cannot change: data, partition and initial weights hang on them, or the numbers' type.
ROOTED = (
    "dataset",
    "partition",
    "clients",
    "model",
    "norm",
    "start",
    "tuning",
    "settings.seed",
    "settings.double",
    "settings.device",
)


@checked
@dataclass(eq=False)
class Run:
    """One run of a panel.

    Attributes:
        federation: the run itself.
        plan: (first round it holds after, experiment) in order: a fork adds one.
        origin: its start, None for a random one.
        index: number of the run in the panel, which chooses colour, dashes and marker.
        overlaid: all runs of the panel, this one among them.
        parent: the run it was forked from.
        goal: the round it is heading for, for the width of the figures.
        reference: the centralised reference of an unforked run, as far as it was asked for.
        reference_shown: whether it is to be drawn.
        other: the run that the view compares it with, None for its own beginning.
        stop: set where work in its views is to end; they then raise `Stopped` or `InterruptedError`.
        broke: the round that could not be finished, since a client handed back values that are not finite.
    """

    federation: Federation
    plan: list[tuple[int, Experiment]]
    origin: Start | None = None
    index: int = 0
    overlaid: list[Run] = field(default_factory=list)
    parent: Run | None = None
    goal: int = 0
    reference: Federation | None = None
    reference_shown: bool = True
    other: Run | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    broke: int | None = None

    @property
    def name(self) -> str:
        """What legends and files call it."""
        return self.federation.name

    @property
    def heeding(self) -> Federation:
        """The run for its views: what it replays or evaluates raises `Stopped` once `stop` is set."""
        return self.federation.heeding(self.stop)

    @property
    def label(self) -> str:
        """The name for figures, where Matplotlib would take a bare dollar sign for mathematics."""
        return self.name.replace("$", r"\$")

    @property
    def diverged(self) -> int | None:
        """The first round in which a loss, a weight or the size of the updates was no longer finite; None if none."""
        for record in self.federation.past.records[self.start :]:
            if any(not math.isfinite(record.metrics.get(key, 0.0)) for key in ("test_loss", "train_loss", "drift")):
                return record.round
        return self.broke

    @property
    def round(self) -> int:
        """Rounds done."""
        return self.federation.round

    @property
    def experiment(self) -> Experiment:
        """The settings of the next round."""
        return self.plan[-1][1]

    @property
    def root(self) -> Run:
        """The unforked run at the beginning of its past."""
        return self if self.parent is None else self.parent.root

    @property
    def start(self) -> int:
        """The first round of its own: its fork point, or where its parent now ends; 0 without a parent."""
        if self.parent is None or self.federation.parent is None or self.parent not in self.overlaid:
            return 0
        return min(self.federation.parent[1], self.parent.round, self.round)

    @property
    def line(self) -> Line:
        """What `plots.curves` draws of it."""
        return Line(self.label, self.federation.past.records, self.start, self.index)

    def take_over(self, memory_mib: float) -> None:
        """Before it trains: the panel's other runs give back what only training needs. Bounds its own snapshots by MiB
        and by number; rounds without one are replayed when needed."""
        for other in self.overlaid:
            if other is not self:
                settings = other.federation.settings
                other.federation.engine = get_engine(settings.engine, settings.cache_frozen)
        past, most = self.federation.past, max(FEWEST, MOST_SNAPSHOTS // max(1, len(self.overlaid)))
        timeline = replace(past.timeline, limit=int(memory_mib * 2**20), most=most)
        self.federation.past = replace(past, timeline=timeline)

    def at(self, round: int) -> Record | None:
        """The record of a round, None before anything was measured."""
        history = self.federation.past.records
        return history[min(round, len(history) - 1)] if history else None

    def rewind(self, round: int) -> None:
        """Forgets everything after a round; settings are again those of that round."""
        self.federation.rewind(round)
        self.plan = [part for part in self.plan if part[0] <= round]
        self.goal, self.broke = round, None

    def fork(self, name: str, at: int, experiment: Experiment, method: FedAvg) -> Run:
        """A branch that goes on with other settings after round `at`.

        Raises:
            ValueError: settings differ that data, partition or initial weights hang on.
        """
        fixed = [text for key, text in changes(self.experiment, experiment).items() if key.startswith(ROOTED)]
        if fixed:
            kept = "a fork keeps data, partition, model and seed. Put it back, or press Run for a new run"
            raise ValueError(f"{'; '.join(fixed)}: {kept}")
        federation = self.federation.fork(name, at=at, method=method, **experiment.settings.to_json())
        plan = [part for part in self.plan if part[0] < at] + [(at, experiment)]
        return Run(federation, plan, self.origin, overlaid=self.overlaid, parent=self, goal=at, stop=self.stop)

    def advance_reference(self, stop: threading.Event) -> None:
        """Trains the centralised reference of the run it goes back to, up to this run's round or until stopped."""
        root = self.root
        if root.reference is None:
            plain = centralised(root.federation)
            root.reference = Federation(
                plain.dataset,
                plain.partition,
                plain.model,
                plain.settings.replace(engine="loop"),
                name="centralised",
                memory_mib=0,
            )
        for _ in root.reference.rounds(max(0, self.round - root.reference.round), stop=stop):
            pass


@checked
def method_label(name: str) -> str:
    """How a method is written for readers; one of a reader's own by its name in the panel."""
    return str(getattr(METHODS.get(name), "name", name))


@checked
def changes(old: Experiment, new: Experiment) -> dict[str, str]:
    """What differs between two experiments: {"settings.lr": "lr 0.1 → 0.05"}. Another data set, partition, model,
    tuning or method stands for its options too."""
    before, after = _flat(old.to_json()), _flat(new.to_json())
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    covered = tuple(f"{key}_options" for key in ("dataset", "partition", "model", "tuning", "method") if key in keys)
    listed = (key for key in keys if not key.startswith(covered))
    return {key: f"{_short(key)} {_text(key, before.get(key))} → {_text(key, after.get(key))}" for key in listed}


@checked
def describe(experiment: Experiment, old: Experiment | None = None) -> str:
    """A short name: the method, and where there was a run before, what differs from it."""
    label = method_label(experiment.method)
    if old is None:
        return label
    after = _flat(experiment.to_json())
    differing = (key for key in changes(old, experiment) if key != "method" and key in after)
    return ", ".join([label, *(f"{_short(key)} {_text(key, after[key])}" for key in differing)])


@checked
def unique(name: str, taken: Iterable[str]) -> str:
    """The name, with a number behind it if it is taken."""
    taken = set(taken)
    numbered = (name if i == 1 else f"{name} ({i})" for i in range(1, len(taken) + 2))
    return next(candidate for candidate in numbered if candidate not in taken)


@checked
def runs_to_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """A table with one row per run and round; a fork's rows begin at round 0, its shared past included."""
    import pandas as pd  # it takes half a second, and a panel without an export needs none of it

    frames = []
    for run in runs:
        frame = to_frame(run.federation.history)
        parent = run.federation.parent or ("", None)
        for position, (name, value) in enumerate((("run", run.name), ("parent", parent[0]), ("forked_at", parent[1]))):
            frame.insert(position, name, value)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["run", "round"])


@checked
def runs_to_json(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The runs as plain data: settings by segment and every record."""
    return [
        {
            "name": run.name,
            "parent": run.federation.parent,
            "segments": [{"after_round": start, "experiment": e.to_json(), "key": e.key} for start, e in run.plan],
            "partition": run.federation.partition.description,
            "data": {"fingerprint": run.federation.dataset.fingerprint, "notes": run.federation.dataset.notes},
            "records": [record.to_json() for record in run.federation.history],
            "centralised": [record.to_json() for record in run.reference.history] if run.reference else [],
        }
        for run in runs
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _short(key: str) -> str:
    return SHORT.get(key, key.rsplit(".", 1)[-1].replace("_", " "))


def _text(key: str, value: Any) -> str:
    if key == "settings.batch_size" and value is None:
        return "all"
    if key == "method":
        return method_label(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
