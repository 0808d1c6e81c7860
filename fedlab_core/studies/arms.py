"""A comparison as data: arms are changes of one experiment, each with its own learning rate, made unit by unit.

    arms = {"FedAvg": Arm(), "FedProx": Arm({"method": "fedprox"})}
    RECORD = Comparison("name", "title", experiment, 100, arms).record

is a whole record for the queue. A share of the training images is held out from every run. With one seed of its own the
rate of each arm is searched on them, on a grid with steps of 10^(1/2) that has no edge; the test set is looked at
afterwards, at that rate, with the seeds of the record. An arm whose rate is given is not searched.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.batchnorm.neighbours import four_ways, reestimate
from fedlab_core.check import Natural, checked
from fedlab_core.data import Dataset
from fedlab_core.data.statistics import stratified_split
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.intervals import half_width
from fedlab_core.pretraining.kept import Start
from fedlab_core.randomness import generator
from fedlab_core.references import centralised
from fedlab_core.round import while_finite
from fedlab_core.studies.tuning import climb
from fedlab_core.studies.units import Record, Results, Run, Stop, Unit, full, heeding, sparse

SEARCHED = 100  # the seed of searches
Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""By arm: the results of its runs, in the order of their seeds."""


@checked
@dataclass(frozen=True)
class Arm:
    """What is compared.

    Attributes:
        changes: of the experiment, see `Experiment.replace`.
        start: exponent i of the rate 10^(i/2) at which the search begins.
        seeds: of the record; None for the comparison's own.
        then: changes of settings for a second half of the run, "lr" among them as a factor of the rate.
        lr: a rate that is known; None has it searched.
        more: settings of its units, for a comparison with a `make` of its own.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    start: int = -2
    seeds: tuple[int, ...] | None = None
    then: Mapping[str, Any] = field(default_factory=dict)
    lr: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


@checked
def hold_out(data: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """The data without a stratified share of the training examples, and the same with that share as its test set."""
    counts = data.y.bincount(minlength=data.num_classes)
    kept, held = stratified_split(data.y, (counts * share).round().long(), generator(0, "held out"))
    rest = replace(data, x=data.x[kept], y=data.y[kept], groups=None)
    return rest, replace(rest, test_x=data.x[held], test_y=data.y[held], test_groups=None)


@checked
def run(settings: Mapping[str, Any], stop: Stop, device: str) -> dict[str, Any]:
    """A unit: see `outcome`; with "held_out" among its settings also the final accuracy on the held-out images.

    Raises:
        Stopped: it was asked to stop.
    """
    one, chooser = full(settings["experiment"]).replace(device=device), None
    data = one.load_data()
    if settings.get("tests") is not None:
        data = data.subset(len(data.x), settings["tests"])
    if settings["held_out"]:
        data, chooser = hold_out(data, settings["held_out"])
    return compete(one, one.make_start(data=data), data, chooser, settings, stop)[0]


@checked
def compete(
    one: Experiment, start: Start, data: Dataset, chooser: Dataset | None, settings: Mapping[str, Any], stop: Stop
) -> tuple[dict[str, Any], Federation]:
    """A run from a start, see `outcome`, and its federation; bytes and rounds are with those of the start.

    Args:
        chooser: the data with the held-out images as its test set.
        settings: of the unit: "rounds", "then", and whether it is "pooled": centralised training with as many steps.
    """
    federation, rounds, then = one.begin(start, data=data), settings["rounds"], dict(settings.get("then", {}))
    federation = centralised(federation) if settings.get("pooled") else federation
    federation = trained(federation, rounds // 2 if then else rounds, stop)
    if then and federation.round == rounds // 2:
        then["lr"] = then.get("lr", 1.0) * one.settings.lr
        federation = trained(federation.fork("second half", **then), rounds, stop)
    found = outcome(federation)
    found |= {"bytes": found["bytes"] + start.bytes, "rounds": federation.round + start.rounds}
    if chooser is not None:
        held = Federation(chooser, federation.partition, federation.model, federation.settings, federation.method)
        found["held_out"] = round(held.evaluate(federation.state)["test_accuracy"], 4)
    return found, federation


@checked
def outcome(federation: Federation) -> dict[str, Any]:
    """A finished run as plain data: its curve and costs, and the final accuracy on the test set; with batch norm also
    with statistics estimated again, and where it is the clients' own in four ways."""
    seen = [record for record in federation.history if "test_accuracy" in record.metrics]
    found: dict[str, Any] = {
        "round": [record.round for record in seen],
        "test_accuracy": [round(record.metrics["test_accuracy"], 4) for record in seen],
        "exchanges": [record.total.exchanges for record in seen],
        "megabytes": [round(record.total.bytes / 1e6, 3) for record in seen],
        "test": round(federation.evaluate()["test_accuracy"], 4),
        "done": federation.round,
        "bytes": federation.history[-1].total.bytes,
    }
    if federation.settings.batch_norm is not None:
        found["reestimated"] = round(federation.evaluate(reestimate(federation))["test_accuracy"], 4)
    if federation.roles.local:
        found["four_ways"] = {way: round(value, 4) for way, value in four_ways(federation).to_json().items()}
    return found


@checked
def by_arm(data: Mapping[str, Any] | None) -> Runs:
    """The runs of a record that are there, without those of searches."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in sorted((data or {}).get("units", []), key=lambda one: one["seed"]):
        if one["seed"] != SEARCHED:
            found.setdefault(one["arm"], []).append(one["result"])
    return found


@checked
def trained(federation: Federation, rounds: Natural, stop: Stop = lambda: False) -> Federation:
    """The federation after so many rounds, or as many as are finite.

    Raises:
        Stopped: it was asked to stop.
    """
    for _ in heeding(while_finite(federation.rounds(rounds - federation.round)), stop):
        pass
    return federation


@checked
def grouped(data: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The runs of a record whose arms are called "group: name", by group and name."""
    found: dict[str, dict[str, Any]] = {}
    for arm, results in by_arm(data).items():
        group, _, name = arm.partition(": ")
        found.setdefault(group, {})[name] = results
    return found


@checked
def rates(data: Mapping[str, Any] | None) -> dict[str, float]:
    """The learning rate of each arm's runs."""
    units = [one for one in (data or {}).get("units", []) if one["seed"] != SEARCHED]
    return {one["arm"]: full(one["settings"]["experiment"]).settings.lr for one in units}


@checked
def finals(runs: Runs, name: str, measure: str = "test") -> list[Any]:
    """A measure of an arm's runs, seed by seed; empty if there are none."""
    return [result[measure] for result in runs.get(name, ())]


@checked
@dataclass(frozen=True)
class Comparison:
    """A record that compares arms, see the module's text.

    Attributes:
        name, title, seeds: see `units.Record`.
        experiment: without seed and learning rate.
        rounds: of every run.
        arms: by name, in the order in which they are made. "group: name" draws an arm as a point of line `name` over
            `group`.
        held_out: share of the training examples that rates are chosen on; 0 where none is searched.
        tests: examples of the test set that are looked at, drawn at random; None for all.
        make: makes a unit.
        picture: of the record's data; by default that of `draw`.
    """

    name: str
    title: str
    experiment: Experiment
    rounds: int
    arms: Mapping[str, Arm]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    held_out: float = 0.1
    tests: int | None = None
    make: Run = run
    picture: Callable[[Mapping[str, Any]], Figure] | None = None

    @property
    def record(self) -> Record:
        """The comparison as the queue takes it."""
        return Record(self.name, self.title, self.plan, self.make, self.picture or self.draw, self.seeds)

    def unit(self, name: str, exponent: int | None, seed: int) -> Unit:
        """One run at the rate 10^(exponent / 2), or at the arm's own."""
        arm = self.arms[name]
        rate = {"lr": arm.lr} if exponent is None else {"lr": float(f"{10 ** (exponent / 2):.3g}")}
        one = self.experiment.replace(**arm.changes).replace(**rate, seed=seed)
        settings = {"experiment": sparse(one), "rounds": self.rounds, "held_out": self.held_out}
        more = {**arm.more, **({"then": dict(arm.then)} if arm.then else {})}
        return Unit(name, seed, settings | more | ({} if self.tests is None else {"tests": self.tests}))

    def plan(self, done: Results) -> list[Unit]:
        """The search of each arm, then its seeds at the best rate."""
        units = []
        for name, arm in self.arms.items():

            def searching(exponent: int, _: float, name: str = name) -> Unit:
                return self.unit(name, exponent, SEARCHED)

            best: int | None = None
            if arm.lr is None:
                found, best = climb(arm.start, searching, lambda result: float(result["held_out"]), done)
                units += found
            if best is not None or arm.lr is not None:
                units += [self.unit(name, best, seed) for seed in self._seeds(name)]
        return units

    def here(self, *names: str) -> Runs:
        """Arms whose rates are known, all of them by default, run on the spot: for what is small."""
        return {
            name: [self.make(self.unit(name, None, seed).settings, lambda: False, "cpu") for seed in self._seeds(name)]
            for name in names or self.arms
        }

    def _seeds(self, name: str) -> tuple[int, ...]:
        return self.arms[name].seeds or self.seeds

    def finals(self, data: Mapping[str, Any] | None, name: str, measure: str = "test") -> list[float]:
        """A measure of an arm's runs that are there, in the order of their seeds."""
        return finals(by_arm(data), name, measure)

    def paired(self, data: Mapping[str, Any] | None, a: str, b: str) -> list[float] | None:
        """Accuracy of a minus b over the seeds that both have; None if there are none."""
        first, second = ({o["seed"]: o["result"]["test"] for o in (data or {}).get("units", []) if o["arm"] == arm}
                         for arm in (a, b))  # fmt: skip
        seeds = sorted((first.keys() & second.keys()) - {SEARCHED})
        return [first[seed] - second[seed] for seed in seeds] or None

    def draw(self, data: Mapping[str, Any]) -> Figure:
        """Final accuracy of every arm that has runs, mean and 95 % interval, over the groups."""
        found = {arm: values for arm in self.arms if (values := self.finals(data, arm))}
        groups = list(dict.fromkeys(arm.rpartition(": ")[0] for arm in found))
        lines = list(dict.fromkeys(arm.rpartition(": ")[2] for arm in found))
        fig, axes = plots.figure(1, 1, (max(7.2, 1.5 + 1.3 * len(groups)), 3.6))
        ax = axes[0, 0]
        for index, (line, place) in enumerate(plots.places(lines).items()):
            style = plots.look(place) | {"linestyle": "", "elinewidth": 1}
            ax.errorbar([], [], **style, label=line)
            for arm, values in found.items():
                if arm.rpartition(": ")[2] == line:
                    x = groups.index(arm.rpartition(": ")[0]) + 0.12 * index - 0.06 * (len(lines) - 1)
                    ax.errorbar(x, fmean(values), half_width(values), **style)
        ax.set(xticks=range(len(groups)), xticklabels=groups, ylabel="test accuracy (mean, 95 % interval)")
        ax.set_xlim(-0.6, len(groups) - 0.4)
        fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        whole = sum(len(values) == len(self._seeds(arm)) for arm, values in found.items())
        note = data["note"] if whole == len(self.arms) else f"{whole} of {len(self.arms)} arms with all of their seeds"
        ax.set_title(f"{data['title']}\n{note}")
        return fig
