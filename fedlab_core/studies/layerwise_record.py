"""The long runs of the layer-wise study, each recorded as figures/layerwise_NAME.png and .json."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedlab_core import plots
from fedlab_core.layerwise.accounts import deepest, peak_memory
from fedlab_core.layerwise.method import LayerWise
from fedlab_core.plots import layerwise as plots_layerwise
from fedlab_core.studies.layerwise_runs import COMPARED, Setup, kept_run, supervised, tuned
from fedlab_core.studies.record import FIGURES, RUNS, once

SEEDS = (0, 1, 2)
GRID = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
"""Learning rates tried with seed 0 for each scheme; of the best one all seeds are run."""
SCHEMES = ("layer_wise", "progressive", "end_to_end")
RATES = (0.25, 0.5, 0.75)
PHOTOGRAPHS = Setup(examples=4000, test_examples=1000, views="photographs", stage=3)
RECORDS = {
    "digits": Setup(),
    "dropout": Setup(stage=2),
    "cifar10": replace(PHOTOGRAPHS, dataset="cifar10", model={**PHOTOGRAPHS.model, "patch": 8}),
    "caltech101": replace(PHOTOGRAPHS, dataset="caltech101", model={**PHOTOGRAPHS.model, "patch": 16}),
}
"""By name; the images of Caltech-101 are 64 pixels wide, those of CIFAR-10 32: 16 patches in both."""


def comparison(setup: Setup, folder: Path | None) -> dict[str, Any]:
    """All runs of `COMPARED` with the learning rate tuned per scheme, the small end-to-end network, and the ceiling."""
    rates = {scheme: tuned(setup, {"scheme": scheme}, GRID, folder) for scheme in SCHEMES}
    small = equal_memory(setup)
    compared = {**COMPARED, "end-to-end, small": {"scheme": "end_to_end", "depth": small}}
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in SEEDS:
        for name, options in compared.items():
            if name == "centralised" and seed:
                continue  # a reference, not a competitor: one seed
            began = time.perf_counter()
            one = kept_run(folder, setup, seed, rates[options["scheme"]], **options)
            runs.setdefault(name, []).append(one)
            print(f"{name:20} seed {seed} {one['knn'][-1]:.3f} {time.perf_counter() - began:6.1f} s", flush=True)
    ceiling = once(
        f"layerwise-{setup.dataset}-supervised-seed0", lambda: {"accuracy": supervised(setup, 0, 2e-3)}, folder
    )["accuracy"]  # a reference too
    return {"lr": rates, "grid": GRID, "seeds": SEEDS, "small_depth": small, "runs": runs, "supervised": [ceiling]}


def dropout(setup: Setup, folder: Path | None, lr: float = 2e-3) -> dict[str, Any]:
    """Layer-wise runs over dropout rates (mask per client and round), and at 0.5 with the other two masks.

    Args:
        lr: the rate that the comparison's layer-wise runs were tuned to.
    """
    kinds: dict[str, dict[str, Any]] = {"0": {}}
    kinds |= {f"{rate:g}": {"drop": rate} for rate in RATES}
    kinds |= {f"0.5, mask by {mask}": {"drop": 0.5, "mask": mask} for mask in ("step", "server")}
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in SEEDS:
        for name, options in kinds.items():
            if "mask" in options and seed:
                continue  # who draws the mask changes the costs; one seed shows the accuracy
            began = time.perf_counter()
            runs.setdefault(name, []).append(kept_run(folder, setup, seed, lr, scheme="layer_wise", **options))
            print(f"dropout {name:20} seed {seed} {time.perf_counter() - began:6.1f} s", flush=True)
    return {"lr": lr, "seeds": SEEDS, "runs": runs}


def equal_memory(setup: Setup) -> int:
    """Units of the deepest end-to-end network that needs no more memory than layer-wise training of the whole one."""
    data = setup.data()
    batch = torch.zeros(setup.batch_size, *data.input_shape)
    budget = peak_memory(setup.network(data, 0), LayerWise(), batch).total
    return deepest(budget, lambda units: setup.network(data, 0, depth=units), LayerWise(scheme="end_to_end"), batch)


def record(name: str, folder: Path | None = RUNS, out: Path = FIGURES) -> dict[str, Any]:
    """Runs one study and writes its picture and its data.

    Raises:
        ValueError: an unknown name.
    """
    if name not in RECORDS:
        raise ValueError(f"name={name!r} is unknown, accepted: {list(RECORDS)}")
    make, draw = comparison, plots_layerwise.three_budgets
    if name == "dropout":
        make, draw = dropout, plots_layerwise.dropout_rates
    data = make(RECORDS[name], folder)
    plots.save(draw(data), out / f"layerwise_{name}", data)
    return data
