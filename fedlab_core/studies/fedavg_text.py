"""A character LSTM, one client per natural author: rounds FedAvg needs for FedSGD's best bits per character."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from fedlab_core.data.counts import table_bits
from fedlab_core.experiment import Experiment
from fedlab_core.settings import Settings
from fedlab_core.studies import tuning
from fedlab_core.studies.arms import by_arm, rates
from fedlab_core.studies.claim import Claim, Measured, Range, headlined
from fedlab_core.studies.fedavg_rounds import draw
from fedlab_core.studies.record import recorded
from fedlab_core.studies.statistics import ratios
from fedlab_core.studies.tuning import run, tune
from fedlab_core.studies.units import Record, Results, Stop, Unit, full, sparse

TEXT = Experiment(
    "python_docs",
    {"examples": 1500},
    "natural",
    {"min_size": 5},
    model="lstm",
    model_options={"hidden": 64, "layers": 1},
    settings=Settings(fraction=0.1, epochs=5, engine="loop"),
)
"""Quick size: 1,500 lines of Python's documentation, topics with 5 or more of them, one layer of 64."""

FEDSGD_GRID = (4.64, 10.0, 21.5)
FEDAVG_GRID = (2.15, 4.64, 10.0)
TABLES = {"bigram table: bits": 1, "trigram table: bits": 2}
"""References, by name: how many characters they look at, see `table_bits`."""
TIMES, SEEDS, ROUNDS, EVERY = "times fewer rounds", (0, 1, 2), 40, 5


@dataclass(frozen=True)
class Race:
    """FedAvg against FedSGD to the best loss that FedSGD reaches in a number of rounds.

    Attributes:
        bits: FedSGD's best bits per character, at the learning rate with the lowest mean over the seeds, per seed.
        fedsgd, fedavg: rounds to these bits, per seed; FedAvg's empty if no rate got there with every seed.
        fedsgd_lr, fedavg_lr: the best rates.
        edges: for FedSGD and FedAvg, whether the best rate is at the edge of its grid.
        rounds: of FedSGD.
        seeds: of partition, initial weights, sampling and batches.
    """

    bits: tuple[float, ...]
    fedsgd: tuple[float, ...]
    fedavg: tuple[float, ...]
    fedsgd_lr: float
    fedavg_lr: float | None
    edges: tuple[bool, bool]
    rounds: int
    seeds: tuple[int, ...]

    @property
    def ratios(self) -> list[float] | None:
        """FedSGD's rounds over FedAvg's, seed by seed; None if FedAvg did not get there with every seed."""
        return ratios(self.fedsgd, self.fedavg) if self.fedavg else None


def race(
    experiment: Experiment = TEXT,
    rounds: int = ROUNDS,
    *,
    fedsgd_grid: Sequence[float] = FEDSGD_GRID,
    fedavg_grid: Sequence[float] = FEDAVG_GRID,
    seeds: Sequence[int] = SEEDS,
    every: int = EVERY,
) -> Race:
    """Runs FedSGD for `rounds` rounds at each learning rate, then FedAvg until it has FedSGD's best loss.

    Both learning rates are tuned on the test loss, as the paper does (section 3). The loss of a seed is compared with
    the same seed's, on the same clients.

    Args:
        experiment: the setting of FedAvg's local work.
        rounds: FedSGD's budget; FedAvg has the same.
        every: rounds between two evaluations of FedSGD; in between the curve is interpolated.
    """
    slow = experiment.replace(method="fedsgd", evaluate_every=every)
    found = {
        lr: [run(slow.replace(lr=lr, seed=seed), 0.0, rounds, "test_loss") for seed in seeds] for lr in fedsgd_grid
    }
    best = min(found, key=lambda lr: sum(min(one["test_loss"]) for one in found[lr]))
    lows = [min(one["test_loss"]) for one in found[best]]
    targets = dict(zip(seeds, lows, strict=True))
    tuned, _ = tune(experiment, targets, rounds, grid=fedavg_grid, seeds=seeds, metric="test_loss")
    edges = best in (fedsgd_grid[0], fedsgd_grid[-1]), tuned.at_edge
    bits, spent = tuple(low / math.log(2) for low in lows), tuple(map(_lowest, found[best]))
    return Race(bits, spent, tuned.per_seed, best, tuned.lr, edges, rounds, tuple(seeds))


def _lowest(one: Mapping[str, Any]) -> int:
    """The round with the lowest loss."""
    return one["round"][one["test_loss"].index(min(one["test_loss"]))]


def claim(result: Race | None = None) -> Claim:
    """Row 3: the ratio of rounds on the text that Python brings along."""
    result = race() if result is None else result
    sizes = {"FedSGD": (result.fedsgd, result.fedsgd_lr), "FedAvg": (result.fedavg, result.fedavg_lr)}
    measured: dict[str, Measured] = {TIMES: result.ratios}
    for (name, (rounds, lr)), edge in zip(sizes.items(), result.edges, strict=True):
        measured[f"{name} at lr {lr}{', at the edge of the grid' if edge else ''}: rounds"] = list(rounds) or math.inf
    data = TEXT.load_data()
    return headlined(
        "fedavg.text",
        f"Python's documentation, one client per topic, small LSTM: rounds to the best bits per character of FedSGD "
        f"within {result.rounds} rounds; FedAvg (E=5, B=10) needs fewer",
        Range(low=1),
        measured | {"bits per character": list(result.bits)},
        source="McMahan et al. 2017: 95 times fewer on Shakespeare (table 2), 23 times on posts (figure 5)",
        size="quick",
        seeds=result.seeds,
        registered="6897499, before the record",
        references={name: table_bits(data, order) for name, order in TABLES.items()},
    )


def shakespeare_claim() -> Claim:
    """Row 3 on Shakespeare, one client per speaking role, from the recorded run."""
    data = recorded("fedavg_text")
    runs, lrs = by_arm(data), rates(data)
    slow, fast = runs.get(FEDSGD, ()), runs.get(FEDAVG, ())
    edges = {FEDSGD: FEDSGD_GRID, FEDAVG: FEDAVG_GRID}
    return headlined(
        "fedavg.shakespeare",
        "Tiny Shakespeare (1,500 lines), one client per speaking role, the same small LSTM and the same race",
        Range(low=1),
        {
            TIMES: ratios([*map(_lowest, slow)], [one["reached"] for one in fast]) if fast else None,
            "bits per character": [min(one["test_loss"]) / math.log(2) for one in slow] or None,
            "FedSGD: best lr": lrs.get(FEDSGD),
            "FedAvg: best lr": lrs.get(FEDAVG),
            "a best rate at the edge of its grid": None
            if not lrs
            else float(any(lrs[arm] in (grid[0], grid[-1]) for arm, grid in edges.items())),
        },
        source="McMahan et al. 2017, table 2: 95 times fewer (866,578 parameters, all of Shakespeare, to 54 %)",
        size="standard",
        seeds=SEEDS if data else (),
        registered="6897499, before the record",
        references=dict(runs[COUNTS][0]) if COUNTS in runs else {},
    )


FEDSGD, FEDAVG, COUNTS = "natural: FedSGD", "natural: FedAvg", "tables of counts"
ROLES = TEXT.replace(dataset="shakespeare", engine="auto", lr=10.0)


def _unit(arm: str, seed: int, target: float) -> Unit:
    """One run on Shakespeare's roles, at the best rate of its grid for both."""
    one = ROLES.replace(seed=seed)
    one = one.replace(method="fedsgd", evaluate_every=EVERY) if arm == FEDSGD else one
    settings = {"experiment": sparse(one), "target": target, "rounds": ROUNDS, "metric": "test_loss"}
    return Unit(arm, seed, settings)


def plan(done: Results) -> list[Unit]:
    """Tables of counts, FedSGD's runs, and FedAvg's to the best loss that these had."""
    counts = Unit(COUNTS, 0, {"experiment": sparse(ROLES), "orders": TABLES})
    slow = [_unit(FEDSGD, seed, 0.0) for seed in SEEDS]
    if any(unit.key not in done for unit in slow):
        return [counts, *slow]
    return [counts, *slow, *(_unit(FEDAVG, unit.seed, min(done[unit.key]["test_loss"])) for unit in slow)]


def make(settings: Mapping[str, Any], stop: Stop, device: str) -> dict[str, Any]:
    """A unit: a run, see `tuning.run`, or the bits per character of tables of counts."""
    if "orders" not in settings:
        return tuning.make(settings, stop, device)
    data = full(settings["experiment"]).load_data()
    return {name: round(table_bits(data, order), 4) for name, order in settings["orders"].items()}


def picture(data: Mapping[str, Any]) -> Figure:
    """The recorded curves, and the tables of counts as lines across."""
    fig = draw({**data, "units": [unit for unit in data["units"] if unit["arm"] != COUNTS]})
    for i, (name, bits) in enumerate(next(iter(by_arm(data).get(COUNTS, ())), {}).items()):
        fig.axes[0].axhline(
            bits * math.log(2), color="0.35", linewidth=1, linestyle=(":", "--")[i], label=name.partition(":")[0]
        )
    fig.axes[0].legend()
    return fig


RECORD = Record("fedavg_text", "LSTM on the roles of Shakespeare", plan, make, picture, SEEDS)
