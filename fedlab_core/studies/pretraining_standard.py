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
from fedlab_core.studies.claim import Claim, Measured, Range
from fedlab_core.studies.pretraining_rows import best, chosen_lr, finals, gaps
from fedlab_core.studies.pretraining_standard_runs import SETUPS, SKEW, runs
from fedlab_core.studies.record import FIGURES, RUNS, recorded
from fedlab_core.studies.statistics import differences, ratios

PAPER = "Chen et al. 2023, abstract; our operationalisation"
SET = "ed78c45, before the record and after a pilot with two seeds; its one headline was picked with the record known"
Data = Mapping[str, Any]
Measures = dict[str, Measured]


@cache
def record() -> dict[str, Any] | None:
    """`figures/pretraining_standard.json`; None if it was not recorded."""
    return recorded("pretraining_standard")


def gap_measures(data: Data) -> Measures:
    """By how much the source narrows the gap to centralised training under each skew; accuracies and rates."""
    rows, source = data["rows"], data["source"]
    narrowed = {skew: differences(gaps(rows, "random", skew), gaps(rows, source, skew)) for skew in ("IID", SKEW)}
    result: Measures = {f"{skew}: gap narrowed by": values for skew, values in narrowed.items()}
    more = differences(narrowed[SKEW], narrowed["IID"])
    result[f"narrowed more under {SKEW} than IID by"] = more
    for skew in ("IID", SKEW, "pooled"):
        for start in ("random", source):
            result[f"{skew}: {start}"] = finals(rows, start=start, skew=skew)
            result[f"{skew}: {start}, lr"] = chosen_lr(rows, start=start, skew=skew)
    return result


def gain_measures(data: Data) -> Measures:
    """Gain over the random start under the skew, for every other start."""
    rows, base = data["rows"], finals(data["rows"], start="random", skew=SKEW)
    starts = list(data["starts"])[1:]
    return {f"{start}: gain": differences(finals(rows, start=start, skew=SKEW), base) for start in starts}


def basin_measures(data: Data) -> Measures:
    """Barriers on the test set between the IID and the skewed final models, and random's minus the source's."""
    barriers = {kind: [one[kind]["barrier"] for one in data["lines"]] for kind in data["lines"][0]}
    result: Measures = {f"{kind}: barrier": values for kind, values in barriers.items()}
    for end in ("", ", re-estimated"):
        if f"random{end}" in barriers:
            less = differences(barriers[f"random{end}"], barriers[f"{data['source']}{end}"])
            result[f"random minus {data['source']}{end}"] = less
    return result


def stability_measures(data: Data) -> Measures:
    """Dirichlet mixtures of the clients' models of the last round, the source against random, each at its own lr."""
    rows = data["rows"]
    result: Measures = {}
    found = {s: [row["mixtures"] for row in best(rows, start=s, skew=SKEW)] for s in (data["source"], "random")}
    for key in ("accuracy_mean", "accuracy_sd", "loss_sd", "size"):
        values = {start: [one[key] for one in seeds] for start, seeds in found.items()}
        result |= {f"{start}: {key.replace('_', ' ')}": values[start] for start in found}
        if key.startswith("accuracy"):
            label = "mean gains" if key == "accuracy_mean" else "sd changes by"
            result[label] = differences(*values.values())
    per_drift = ([one["loss_sd"] / one["size"] for one in seeds] for seeds in found.values())
    return result | {"loss sd per drift, ratio": ratios(*per_drift)}


_MNIST = "MNIST, 6,000 images, 10 clients, CNN, 20 rounds"
_CIFAR = "CIFAR-10, 1,500 images of 16 x 16, 10 clients, ResNet-8 with batch norm, 8 rounds"
_GAP = {"Dir(0.05): gap narrowed by": Range(low=0.02)}
_STABLE = {"sd changes by": Range(high=-0.005)}
_ROWS: dict[str, tuple[str, str, Callable[[Data], Measures], dict[str, Range]]] = {
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
        {"fractal pairs: gain": Range(low=0.005)},
    ),
    "pretraining.mnist_basin": (
        "mnist",
        f"{_MNIST}: IID and Dir(0.05) models from letters lie in one basin, while those from one random start have a "
        "larger barrier",
        basin_measures,
        {"letters: barrier": Range(high=0.02)},
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
        {"Caltech-101, re-estimated: barrier": Range(high=0.05)},
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
    references, tests = {}, {"mnist": 2_000, "cifar10": 1_000}[setup]
    if data is not None:
        source = data["source"]
        reached, central = (finals(data["rows"], start=source, skew=skew) for skew in (SKEW, "pooled"))
        references = {"chance": 0.1, "reached": statistics.fmean(reached), "centralised": statistics.fmean(central)}
    headline = next(iter(expected))
    return Claim(key, text, PAPER, "standard", expected, measured, seeds, headline, SET, tests, references)


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
