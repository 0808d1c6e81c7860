"""Rounds to a target accuracy, FedAvg against FedSGD, on digits and on MNIST (McMahan et al. 2017, tables 1, 2, 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlab_core.experiment import Experiment
from fedlab_core.history import Record
from fedlab_core.settings import Settings
from fedlab_core.studies.statistics import ratios
from fedlab_core.studies.tuning import GRID, Tuned, tune

if TYPE_CHECKING:
    import pandas as pd

DIGITS = Experiment(clients=20, settings=Settings(fraction=0.25, epochs=5))
MNIST = Experiment("mnist", {"download": False}, clients=100, settings=Settings(fraction=0.1))
TARGET, MNIST_TARGET = 0.93, 0.97
WORK: dict[str, dict[str, Any]] = {
    "FedSGD": {"method": "fedsgd"},
    "E=5, B=all": {"epochs": 5, "batch_size": None},
    "E=1, B=10": {"epochs": 1, "batch_size": 10},
    "E=5, B=10": {"epochs": 5, "batch_size": 10},
    "E=20, B=10": {"epochs": 20, "batch_size": 10},
}
"""Local work per round: E passes in batches of B, as in tables 2 and 4 of the paper."""

Rounds = dict[tuple[str, str], Tuned]


def rounds_table(
    work: Mapping[str, Mapping[str, Any]] = WORK,
    partitions: Sequence[str] = ("iid", "shards"),
    *,
    experiment: Experiment = DIGITS,
    target: float = TARGET,
    most: int = 150,
    grid: Sequence[float] = GRID,
    seeds: Sequence[int] = (0, 1, 2),
    engine: str = "loop",
    folder: Path | None = None,
) -> tuple[Rounds, list[dict[str, Any]]]:
    """Rounds to a target per kind of local work and partition, the learning rate tuned for each cell (tables 2 and 4).

    Args:
        work: changes of the experiment by name, such as `WORK`.
        partitions: see `experiment.PARTITIONS`.
        most, grid, seeds, folder: see `tuning.tune`.

    Returns:
        The cells by (work, partition), and the runs of all of them at the best rate.
    """
    cells, runs = {}, []
    for partition in partitions:
        for name, changes in work.items():
            setting = experiment.replace(partition=partition, engine=engine, **changes)
            cells[name, partition], found = tune(setting, target, most, grid=grid, seeds=seeds, folder=folder)
            runs += [{"work": name, "partition": partition, **one} for one in found]
    return cells, runs


def speed_up(cells: Rounds, work: str, partition: str, baseline: str = "FedSGD") -> float:
    """How many times fewer rounds than the baseline; a baseline that never reached the target counts with the rounds it
    was given, a lower bound; 0 if the work itself never did."""
    fast, slow = cells[work, partition], cells[baseline, partition]
    return 0.0 if fast.lr is None else (slow.most if slow.lr is None else slow.rounds) / fast.rounds


def speed_ups(cells: Rounds, work: str, partition: str, baseline: str = "FedSGD") -> list[float]:
    """`speed_up` seed by seed; empty if the work never reached the target."""
    fast, slow = cells[work, partition], cells[baseline, partition]
    spent = slow.per_seed or (slow.most,) * len(slow.seeds)
    return ratios(spent, fast.per_seed) if fast.per_seed else []


def rounds_frame(cells: Rounds, baseline: str = "FedSGD") -> pd.DataFrame:
    """The cells as the paper prints them: rounds, and in brackets how many times fewer than the baseline. A star marks
    a best learning rate at the edge of the grid; a cell that never reached the target says so."""
    import pandas as pd

    frame: dict[str, dict[str, str]] = {}
    for (work, partition), cell in cells.items():
        known = work != baseline and cell.lr is not None and (baseline, partition) in cells
        times = f" ({speed_up(cells, work, partition, baseline):.1f}x)" if known else ""
        lr = f", lr {cell.lr:g}" if cell.lr is not None else ""
        frame.setdefault(partition, {})[work] = f"{cell}{times}{lr}"
    return pd.DataFrame(frame)


def compare(
    variants: Mapping[str, Mapping[str, Any]], rounds: int, experiment: Experiment = DIGITS
) -> dict[str, list[Record]]:
    """The histories of several variants of one experiment, each run for `rounds` rounds."""
    return {
        name: experiment.replace(**changes).build(name=name).run(rounds).history for name, changes in variants.items()
    }


def mnist_standard(folder: Path | None = None) -> dict[str, Any]:
    """The 2NN on MNIST to 97 % with C=0.1, E=1, B=10 on both of the paper's partitions (tables 1 and 4), 3 seeds.

    The paper does not say how pixels are scaled, so IID is also run without standardising them.
    """
    work = {"E=1, B=10": WORK["E=1, B=10"]}
    options: dict[str, Any] = {
        "target": MNIST_TARGET,
        "most": 1500,
        "grid": GRID[:4],
        "engine": "auto",
        "folder": folder,
    }
    cells, runs = rounds_table(work, experiment=MNIST, **options)
    raw = MNIST.replace(dataset_options={**MNIST.dataset_options, "standardise": False})
    more, found = rounds_table({"E=1, B=10, pixels in [0, 1]": work["E=1, B=10"]}, ("iid",), experiment=raw, **options)
    cells, runs = cells | more, runs + found
    return {
        "title": "MNIST, 2NN, 100 clients, C=0.1, E=1, B=10",
        "target": MNIST_TARGET,
        "metric": "test_accuracy",
        "cells": {f"{name}, {partition}": cell.to_json() for (name, partition), cell in cells.items()},
        "runs": runs,
    }
