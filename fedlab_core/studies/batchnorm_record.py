"""The long runs of the batch-norm study, each recorded as figures/batchnorm_NAME.png and .json."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fedlab_core import plots
from fedlab_core.plots import batchnorm as plots_batchnorm
from fedlab_core.studies.batchnorm_exact import full_batch
from fedlab_core.studies.batchnorm_runs import CIFAR, CNN, LRS, MNIST, VARIANTS, Setup, compare
from fedlab_core.studies.record import FIGURES, RUNS, once

SEEDS = (0, 1, 2)
ONE_MODEL = [name for name in VARIANTS if name != "FedTAN, frozen later"]
COMPARISONS: Mapping[str, tuple[Setup, list[str], tuple[float, ...], tuple[int, ...]]] = {
    "mnist": (MNIST, ONE_MODEL, LRS, SEEDS),
    "mnist_one_digit": (
        MNIST.replace(clients=10, rounds=120),
        ["centralised BN", "FedTAN", "FedAvg+BN", "GroupNorm", "LayerNorm", "no normalisation"],
        LRS[1:],
        SEEDS,
    ),
    "mnist_iid": (MNIST.replace(skew=0.0), ["centralised BN", "FedTAN", "FedAvg+BN", "GroupNorm"], LRS[1:], SEEDS),
    "mnist_cnn": (
        CNN,
        ["centralised BN", "FedTAN", "FedAvg+BN", "GroupNorm", "LayerNorm", "weight standardised"],
        LRS[1:],
        SEEDS,
    ),
    "mnist_five_steps": (
        MNIST.replace(steps=5, rounds=80),
        [
            "centralised BN",
            "FedTAN",
            "FedTAN, frozen later",
            "FedAvg+BN",
            "FixBN",
            "GroupNorm",
            "LayerNorm",
            "no normalisation",
        ],
        LRS[1:],
        SEEDS,
    ),
    "cifar": (CIFAR, ["FedTAN", "FedAvg+BN", "GroupNorm", "FixBN", "FedBN"], LRS[1:], SEEDS),
}
"""By name: setup, variants, learning rates tried for each of them, seeds."""
RECORDS = [*COMPARISONS, "no_noise"]
UNDRAWN = ("FedAvg+BN, total variance", "SiloBN", "LayerNorm", "weight standardised")
"""Variants without a curve of their own, so that the others can be told apart; the table has them."""
NO_NOISE = (("FedAvg+BN", 0.2, 1.0), ("FedTAN", 0.2, 1.0), ("centralised BN", 0.2, 1.0), ("FedAvg+BN", 0.2, 0.999),
            ("FedTAN", 0.2, 0.999), ("FedAvg+BN", 0.05, 1.0))  # fmt: skip
"""Variant, learning rate and its factor per round of the runs without sampling noise."""


def record(name: str, folder: Path | None = RUNS, out: Path = FIGURES, device: str = "cpu") -> dict[str, Any]:
    """Makes one recording and writes it; returns what is written.

    Args:
        name: one of `RECORDS`.
        folder: where finished runs are kept.
        out: where the picture and its data go.
        device: where the comparisons compute; the runs without noise are float64 on the CPU.
    """
    if name == "no_noise":
        runs = [
            once(f"batchnorm-full-{v}-{lr:g}-{d:g}", partial(full_batch, v, 3000, lr, d), folder)
            for v, lr, d in NO_NOISE
        ]
        data: dict[str, Any] = {"runs": runs}
        fig, axes = plots.figure(1, 2, (9.5, 4))
        plots_batchnorm.without_noise(axes[0], runs)
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    else:
        if name not in COMPARISONS:
            raise ValueError(f"name={name!r}, accepted: {RECORDS}")
        setup, names, lrs, seeds = COMPARISONS[name]
        results = compare(setup, names, seeds, lrs, folder, device)
        data = {"setup": asdict(setup), "data": setup.load().notes, "lrs": lrs, "seeds": seeds, "results": results}
        fig, axes = plots.figure(1, 3, (13, 4))
        plots_batchnorm.finals(axes[0, 0], results)
        shown = {name: results[name] for name in results if name not in UNDRAWN}
        plots_batchnorm.accuracy_against(axes[0, 1], shown)
        plots_batchnorm.accuracy_against(axes[0, 2], shown, "exchanges")
        fig.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    seconds = sum(part.get("seconds", 0) for part in (*data.get("runs", []), *data.get("results", {}).values()))
    data |= {"name": name, "minutes": round(seconds / 60, 1), "device": device}
    plots.save(fig, out / f"batchnorm_{name}", data)
    return data
