"""The pre-training study at size "standard".

MNIST with a CNN from letters and from fractals, CIFAR-10 with a batch-normalised ResNet-8 from Caltech-101, into
figures/pretraining_standard.png and .json. A killed recording goes on where it was. The limits of the claims were set
before the first of these runs, but after a pilot with letters and MNIST and two seeds.
"""

import statistics
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from fedlab_core.plots import figure, save
from fedlab_core.plots import probes as plots_probes
from fedlab_core.studies.claim import Claim, Range, differences
from fedlab_core.studies.pretraining_rows import best, chosen_lr, finals, gaps
from fedlab_core.studies.pretraining_standard_runs import SETUPS, SKEW, runs
from fedlab_core.studies.record import FIGURES, RUNS, recorded

TINY = 1e-9  # no spread is smaller
PAPER = "Chen et al. 2023, abstract; our operationalisation"
Data = Mapping[str, Any]


@cache
def record() -> dict[str, Any] | None:
    """`figures/pretraining_standard.json`; None if it was not recorded."""
    return recorded("pretraining_standard")


def gap_measures(data: Data) -> dict[str, float]:
    """By how much the source narrows the gap to centralised training under each skew, with its spread; accuracies."""
    rows, result, source = data["rows"], {}, data["source"]
    for skew in ("IID", SKEW):
        mean, sd = differences(gaps(rows, "random", skew), gaps(rows, source, skew))
        result |= {f"{skew}: gap narrowed by": mean, f"{skew}: sd over seeds": sd}
    narrowed = result[f"{SKEW}: gap narrowed by"]
    result[f"{SKEW}: gap narrowed, in sd"] = narrowed / max(result[f"{SKEW}: sd over seeds"], TINY)
    result[f"narrowed more under {SKEW} than IID by"] = narrowed - result["IID: gap narrowed by"]
    for skew in ("IID", SKEW, "pooled"):
        for start in ("random", source):
            values = finals(rows, start=start, skew=skew)
            result[f"{skew}: {start}"] = statistics.fmean(values)
            result[f"{skew}: {start}, sd"] = statistics.stdev(values)
            result[f"{skew}: {start}, lr"] = chosen_lr(rows, start=start, skew=skew)
    return result


def gain_measures(data: Data) -> dict[str, float]:
    """Gain over the random start under the skew, with its spread, for every other start."""
    rows, result = data["rows"], {}
    base = finals(rows, start="random", skew=SKEW)
    for start in list(data["starts"])[1:]:
        mean, sd = differences(finals(rows, start=start, skew=SKEW), base)
        result |= {f"{start}: gain": mean, f"{start}: sd over seeds": sd, f"{start}: gain, in sd": mean / max(sd, TINY)}
    return result


def basin_measures(data: Data) -> dict[str, float]:
    """Barriers on the test set between the IID and the skewed final models, mean over the seeds, their spread, and
    random's minus the source's."""
    result = {}
    for kind in data["lines"][0]:
        values = [one[kind]["barrier"] for one in data["lines"]]
        result |= {f"{kind}: barrier": statistics.fmean(values), f"{kind}: sd over seeds": statistics.stdev(values)}
    for end in ("", ", re-estimated"):
        if f"random{end}: barrier" in result:
            less = result[f"random{end}: barrier"] - result[f"{data['source']}{end}: barrier"]
            result[f"random minus {data['source']}{end}"] = less
    return result


def stability_measures(data: Data) -> dict[str, float]:
    """Dirichlet mixtures of the clients' models of the last round, the source against random, each at its own lr."""
    rows, result = data["rows"], {}
    found = {s: [row["mixtures"] for row in best(rows, start=s, skew=SKEW)] for s in ("random", data["source"])}
    for key in ("accuracy_mean", "accuracy_sd", "loss_sd", "size"):
        values = {start: [one[key] for one in seeds] for start, seeds in found.items()}
        for start in found:
            result[f"{start}: {key.replace('_', ' ')}"] = statistics.fmean(values[start])
        if key.startswith("accuracy"):
            label = "mean gains" if key == "accuracy_mean" else "sd changes by"
            result[label], result[f"{label}: sd over seeds"] = differences(values[data["source"]], values["random"])
    per_drift = {s: statistics.fmean(one["loss_sd"] / one["size"] for one in seeds) for s, seeds in found.items()}
    return result | {"loss sd per drift, ratio": per_drift[data["source"]] / per_drift["random"]}


_MNIST = "MNIST, 6,000 images, 10 clients, CNN, 20 rounds"
_CIFAR = "CIFAR-10, 1,500 images of 16 x 16, 10 clients, ResNet-8 with batch norm, 8 rounds"
_GAP = {
    "Dir(0.05): gap narrowed by": Range(low=0.02),
    "Dir(0.05): gap narrowed, in sd": Range(low=1.0),
    "narrowed more under Dir(0.05) than IID by": Range(low=0.01),
}
_STABLE = {
    "mean gains": Range(low=0.01),
    "sd changes by": Range(high=-0.005),
    "loss sd per drift, ratio": Range(high=0.95),
}
_ROWS: dict[str, tuple[str, str, Callable[[Data], dict[str, float]], dict[str, Range]]] = {
    "pretraining.mnist": (
        "mnist",
        f"{_MNIST}: starting from letters narrows the gap between centralised training and FedAvg, and the more the "
        "more skewed the data",
        gap_measures,
        _GAP,
    ),
    "pretraining.mnist_fractals": (
        "mnist",
        f"{_MNIST}, Dir(0.05): pre-training on fractal pairs lifts FedAvg without real data",
        gain_measures,
        {"fractal pairs: gain": Range(low=0.005), "fractal pairs: gain, in sd": Range(low=1.0)},
    ),
    "pretraining.mnist_basin": (
        "mnist",
        f"{_MNIST}: IID and Dir(0.05) models from letters lie in one basin, while those from one random start have a "
        "larger barrier",
        basin_measures,
        {"letters: barrier": Range(high=0.02), "random minus letters": Range(low=0.01)},
    ),
    "pretraining.mnist_stability": (
        "mnist",
        f"{_MNIST}, Dir(0.05): from letters, mixtures of the clients' models are better and spread less, also per unit "
        "of drift",
        stability_measures,
        _STABLE,
    ),
    "pretraining.cifar10": (
        "cifar10",
        f"{_CIFAR}: starting from Caltech-101 narrows the gap between centralised training and FedAvg, and the more "
        "the more skewed the data",
        gap_measures,
        _GAP,
    ),
    "pretraining.cifar10_basin": (
        "cifar10",
        f"{_CIFAR}: with statistics re-estimated, IID and Dir(0.05) models from Caltech-101 lie in one basin, while "
        "those from one random start have a larger barrier",
        basin_measures,
        {
            "Caltech-101, re-estimated: barrier": Range(high=0.05),
            "random minus Caltech-101, re-estimated": Range(low=0.05),
        },
    ),
    "pretraining.cifar10_stability": (
        "cifar10",
        f"{_CIFAR}, Dir(0.05), statistics re-estimated: from Caltech-101, mixtures of the clients' models are better "
        "and spread less, also per unit of drift",
        stability_measures,
        _STABLE,
    ),
}


def claim(key: str) -> Claim:
    """One row, from the recorded runs; not run without them."""
    setup, text, measure, expected = _ROWS[key]
    data = (record() or {}).get(setup)
    measured, seeds = ({}, ()) if data is None else (measure(data), data["seeds"])
    return Claim(key, text, PAPER, "standard", expected, measured, seeds)


CLAIMS: dict[str, Callable[[], Claim]] = {key: partial(claim, key) for key in _ROWS}


def overview(data: Mapping[str, Data]) -> Any:
    """The recorded runs in one picture: per data set accuracy by start and skew, and lines between models."""
    fig, axes = figure(len(data), 2, (9, 3.4 * len(data)))
    for row, (name, found) in zip(axes, data.items(), strict=True):
        starts = ("random", found["source"])
        accuracy = {s: {k: finals(found["rows"], start=s, skew=k) for k in ("IID", SKEW)} for s in starts}
        plots_probes.by_skew(row[0], accuracy, {s: finals(found["rows"], start=s, skew="pooled") for s in starts})
        plots_probes.loss_lines(row[1], found["lines"][0])
        row[0].set_title(name)
        row[1].set(title=f"{name}, seed 0", ylabel="test loss (nats)")
        row[1].set_ylim(0, 1.15 * row[1].get_ylim()[1] if len(found["lines"][0]) > 3 else None)  # room for the legend
        if len(found["lines"][0]) > 3:  # the room is below the lines then
            row[1].legend(loc="lower center")
    return fig


def write_record() -> None:
    """Runs everything and writes the picture and its data; finished runs are kept in `runs/`."""
    data = {name: runs(setup, RUNS / "pretraining_standard") for name, setup in SETUPS.items()}
    save(overview(data), FIGURES / "pretraining_standard", data)
