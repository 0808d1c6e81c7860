"""A character LSTM, one client per natural author: rounds FedAvg needs for FedSGD's best bits per character."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedlab_core.experiment import Experiment
from fedlab_core.settings import Settings
from fedlab_core.studies.claim import Claim, Measured, Range
from fedlab_core.studies.record import once, recorded
from fedlab_core.studies.statistics import ratios
from fedlab_core.studies.tuning import run, tune

TEXT = Experiment(
    "python_docs",
    {"examples": 1500},
    "natural",
    {"min_size": 5},
    model="lstm",
    model_options={"hidden": 64, "layers": 1},
    settings=Settings(fraction=0.1, epochs=5),
)
"""Quick size: 1,500 lines of Python's documentation, topics with 5 or more of them, one layer of 64."""

FEDSGD_GRID = (4.64, 10.0, 21.5)
FEDAVG_GRID = (2.15, 4.64, 10.0)
TIMES = "times fewer rounds"


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
        notes: which text it was, with its hash.
    """

    bits: tuple[float, ...]
    fedsgd: tuple[float, ...]
    fedavg: tuple[float, ...]
    fedsgd_lr: float
    fedavg_lr: float | None
    edges: tuple[bool, bool]
    rounds: int
    seeds: tuple[int, ...]
    notes: str

    @property
    def ratios(self) -> list[float] | None:
        """`ratio` seed by seed."""
        return ratios(self.fedsgd, self.fedavg) if self.fedavg else None

    @property
    def ratio(self) -> float | None:
        """FedSGD's rounds over FedAvg's, means over the seeds; None if FedAvg did not get there with every seed."""
        return sum(self.fedsgd) / sum(self.fedavg) if self.fedavg else None


def race(
    experiment: Experiment = TEXT,
    rounds: int = 40,
    *,
    fedsgd_grid: Sequence[float] = FEDSGD_GRID,
    fedavg_grid: Sequence[float] = FEDAVG_GRID,
    seeds: Sequence[int] = (0, 1, 2),
    every: int = 5,
    root: str | Path | None = None,
    folder: Path | None = None,
) -> tuple[Race, list[dict[str, Any]]]:
    """Runs FedSGD for `rounds` rounds at each learning rate, then FedAvg until it has FedSGD's best loss.

    Both learning rates are tuned on the test loss, as the paper does (section 3). The loss of a seed is compared with
    the same seed's, on the same clients.

    Args:
        experiment: the setting of FedAvg's local work.
        rounds: FedSGD's budget; FedAvg has the same.
        every: rounds between two evaluations of FedSGD; in between the curve is interpolated.
        folder: where finished runs are kept.

    Returns:
        The result, and the runs at the best rates: FedSGD's, then FedAvg's, one per seed each.
    """
    slow = {}
    for lr in fedsgd_grid:
        for seed in seeds:
            one = experiment.replace(method="fedsgd", lr=lr, seed=seed, evaluate_every=every)
            make = partial(run, one, 0.0, rounds, lower=True, metric="test_loss", root=root)
            slow[lr, seed] = once(f"{one.key}-fedsgd-{rounds}", make, folder)
    lows = {key: min(found["test_loss"]) for key, found in slow.items()}
    best = min(fedsgd_grid, key=lambda lr: sum(lows[lr, seed] for seed in seeds))
    chosen = [slow[best, seed] for seed in seeds]
    reached = [found["round"][found["test_loss"].index(min(found["test_loss"]))] for found in chosen]
    targets = {seed: lows[best, seed] for seed in seeds}
    options: dict[str, Any] = {"lower": True, "metric": "test_loss", "root": root, "folder": folder}
    tuned, found = tune(experiment, targets, rounds, grid=fedavg_grid, seeds=seeds, **options)
    result = Race(
        bits=tuple(low / math.log(2) for low in targets.values()),
        fedsgd=tuple(reached),
        fedavg=tuned.per_seed,
        fedsgd_lr=best,
        fedavg_lr=tuned.lr,
        edges=(best in (fedsgd_grid[0], fedsgd_grid[-1]), tuned.at_edge),
        rounds=rounds,
        seeds=tuple(seeds),
        notes=experiment.load_data(root).notes,
    )
    return result, chosen + found


def claim(result: Race | None = None) -> Claim:
    """Row 3: the ratio of rounds on the text that Python brings along."""
    result = race()[0] if result is None else result
    sizes = {"FedSGD": (result.fedsgd, result.fedsgd_lr), "FedAvg": (result.fedavg, result.fedavg_lr)}
    measured: dict[str, Measured] = {TIMES: result.ratios}
    for (name, (rounds, lr)), edge in zip(sizes.items(), result.edges, strict=True):
        measured[f"{name} at lr {lr}{', at the edge of the grid' if edge else ''}: rounds"] = list(rounds) or math.inf
    measured["bits per character"] = list(result.bits)
    return Claim(
        "fedavg.text",
        f"Python's documentation, one client per topic, small LSTM: rounds to the best bits per character of FedSGD "
        f"within {result.rounds} rounds; FedAvg (E=5, B=10) needs fewer",
        "McMahan et al. 2017: 95 times fewer on Shakespeare (table 2), 23 times on posts (figure 5)",
        "quick",
        {TIMES: Range(low=1)},
        measured,
        result.seeds,
        TIMES,
        "6897499, before the record",
    )


def shakespeare_claim() -> Claim:
    """Row 3 on Shakespeare, one client per speaking role, from the recorded run."""
    record = recorded("fedavg_text") or {}
    found = record.get("race", {})
    names = ("fedsgd", "fedavg", "fedsgd_lr", "fedavg_lr", "edges", "bits")
    fedsgd, fedavg, fedsgd_lr, fedavg_lr, edges, bits = (found.get(name) for name in names)
    return Claim(
        "fedavg.shakespeare",
        "Tiny Shakespeare (1,500 lines), one client per speaking role, the same small LSTM and the same race",
        "McMahan et al. 2017, table 2: 95 times fewer (866,578 parameters, all of Shakespeare, to 54 %)",
        "standard",
        {TIMES: Range(low=1)},
        {
            TIMES: ratios(fedsgd, fedavg) if fedavg else None,
            "bits per character": bits,
            "FedSGD: best lr": fedsgd_lr,
            "FedAvg: best lr": fedavg_lr,
            "a best rate at the edge of its grid": None if edges is None else float(any(edges)),
        },
        found.get("seeds", ()),
        TIMES,
        "6897499, before the record",
    )


def standard(folder: Path | None = None) -> dict[str, Any]:
    """The race on Shakespeare's roles, where the text is in the data root: 40 rounds of FedSGD, 3 seeds.

    Raises:
        FileNotFoundError: the text is not there.
    """
    roles = TEXT.replace(dataset="shakespeare", engine="auto")
    result, found = race(roles, folder=folder)
    works = {"fedsgd": "FedSGD", "fedavg": "FedAvg"}
    runs = [{"work": works[one["experiment"]["method"]], "partition": "natural", **one} for one in found]
    return {
        "title": "LSTM on the roles of Shakespeare",
        "metric": "test_loss",
        "race": asdict(result) | {"ratio": result.ratio},
        "runs": runs,
    }
