"""What a start from ImageNet does to federated learning on CIFAR-10 (Chen et al. 2023), both starts far above chance.

EfficientNet-Lite0 itself is too deep for this: from random weights it stays at chance for as long as a CPU can wait. So
a ResNet-8 learns Lite0's ImageNet features of CIFAR-10 images without their labels, images that no client holds, and is
compared with the same ResNet-8 from random weights. A seed draws the clients' images, their split and the classifier,
alike for both starts.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from itertools import product
from typing import Any

from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.plots import probes as plots_probes
from fedlab_core.studies.arms import SEARCHED
from fedlab_core.studies.claim import Claim, Measured, Range, headlined
from fedlab_core.studies.pretraining_imagenet_runs import SEEDS, SIZE, SKEW, SKEWS, STARTS, plan, run
from fedlab_core.studies.record import recorded
from fedlab_core.studies.statistics import differences, ratios
from fedlab_core.studies.units import Record

Measures = dict[str, Measured]
Pairs = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
"""Seed by seed: the results of the random start and of ImageNet's."""


def paired(data: Mapping[str, Any] | None) -> dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """By seed: the results of the random start and of ImageNet's, of the seeds that have both."""
    units = {(one["arm"], one["seed"]): one["result"] for one in (data or {}).get("units", [])}
    seeds = sorted({seed for _, seed in units} - {SEARCHED})
    return {s: (units["random", s], units["ImageNet", s]) for s in seeds if all((name, s) in units for name in STARTS)}


def values(pairs: Pairs, *path: str) -> tuple[list[Any], list[Any]]:
    """A value of every seed by its path in the results: of the random start, and of ImageNet's."""
    found = [[reduce(lambda at, key: at[key], path, pair[i]) for pair in pairs] for i in (0, 1)]
    return found[0], found[1]


def gap_measures(pairs: Pairs) -> Measures:
    """By how much the start narrows the gap to centralised training; accuracies."""
    accuracy = {skew: values(pairs, skew, "test") for skew in SKEWS}
    result: Measures = {}
    for skew in (SKEW, "IID"):
        gaps = [differences(pooled, own) for pooled, own in zip(accuracy["pooled"], accuracy[skew], strict=True)]
        result[f"{skew}: gap narrowed by"] = differences(*gaps)
        result |= {f"{skew}: gap from {name}": gap for name, gap in zip(STARTS, gaps, strict=True)}
    return result | {f"{s}: {name}": both[i] for s, both in accuracy.items() for i, name in enumerate(STARTS)}


def drift_measures(pairs: Pairs) -> Measures:
    """Size and agreement of the clients' updates in one round at one rate, ImageNet's against random."""
    result: Measures = {}
    for key, label in (("last", "last round"), ("level", "equal accuracy")):
        chosen = [pair for pair in pairs if all(one[key] for one in pair)]
        for measure, name in (("relative_drift", "relative size"), ("drift", "size")):
            random, start = values(chosen, key, measure)
            result[f"{label}: {name}, ratio"] = ratios(start, random) or None
        random, start = values(chosen, key, "cosine")
        result[f"{label}: cosine, difference"] = differences(start, random) or None
    return result


def basin_measures(pairs: Pairs) -> Measures:
    """Barriers on the test set between the IID and the skewed final models of one start."""
    random, start = values(pairs, "line", "barrier")
    return {"ImageNet: barrier": start, "random: barrier": random, "random minus ImageNet": differences(random, start)}


def stability_measures(pairs: Pairs) -> Measures:
    """Dirichlet mixtures of the clients' models of the last round, each start at its own rate."""
    found = {key: values(pairs, "mixtures", key) for key in ("accuracy_sd", "accuracy_mean", "loss_sd", "size")}
    result: Measures = {}
    for key, label in (("accuracy_sd", "sd changes by"), ("accuracy_mean", "mean gains")):
        result[label] = differences(found[key][1], found[key][0])
    result |= {
        f"{name}: {key.replace('_', ' ')}": both[i] for key, both in found.items() for i, name in enumerate(STARTS)
    }
    random, start = (ratios(found["loss_sd"][i], found["size"][i]) for i in (0, 1))
    return result | {"loss sd per drift, ratio": ratios(start, random)}


REGISTERED = "aeb22f1, before the record (a pilot of one other seed had been seen)"
_ROWS: dict[str, tuple[str, Callable[[Pairs], Measures], str, Range]] = {
    "gap": (
        "a start from ImageNet narrows the gap between centralised training and FedAvg on skewed clients",
        gap_measures,
        f"{SKEW}: gap narrowed by",
        Range(low=0.0),
    ),
    "drift": (
        "it does not alleviate drift: at one rate, in the last round, clients' updates are as large beside the weights",
        drift_measures,
        "last round: relative size, ratio",
        Range(low=0.95),
    ),
    "direction": (
        "it does not alleviate drift: at one rate, in the last round, clients' updates agree no more in direction",
        drift_measures,
        "last round: cosine, difference",
        Range(high=0.02),
    ),
    "basin": (
        f"models from it, one trained on IID and one on {SKEW} clients, lie in one basin",
        basin_measures,
        "ImageNet: barrier",
        Range(high=0.05),
    ),
    "stability": (
        "with it, mixtures of the clients' models spread less",
        stability_measures,
        "sd changes by",
        Range(high=-0.005),
    ),
}
"""Rows by the end of their id: text, how the record is measured, headline, range."""


def claim(name: str) -> Claim:
    """One row, from the seeds that are there."""
    text, measure, headline, expected = _ROWS[name]
    pairs = paired(recorded(RECORD.name))
    references: dict[str, float | None] = {}
    if pairs:
        random, start = (
            {s: statistics.fmean(r[s]["test"] for r in rs) for s in SKEWS} for rs in zip(*pairs.values(), strict=True)
        )
        references = {"chance": 0.1, "reached": start[SKEW], "random": random[SKEW]}
        references |= {"centralised": start["pooled"], "centralised, random": random["pooled"]}
    return headlined(
        f"pretraining.imagenet_{name}",
        f"CIFAR-10, {SIZE.images:,} images, 10 clients, ResNet-8 with group norm, {SIZE.rounds} rounds, features of "
        f"ImageNet's EfficientNet-Lite0 distilled into it: {text}",
        expected,
        measure(list(pairs.values())) if pairs else {},
        headline,
        source="Chen et al. 2023, abstract; our operationalisation",
        size="standard",
        seeds=list(pairs),
        registered=REGISTERED,
        test_size=SIZE.tests,
        references=references,
    )


def draw(data: Mapping[str, Any]) -> Figure:
    """Accuracy by split and over rounds, a line between two splits, spread of mixtures, of the seeds that are there."""
    pairs = list(paired(data).values())
    fig, ((first, second), (third, fourth)) = plots.figure(2, 2, (9.6, 7))
    fig.suptitle(f"{data['title']} ({len(pairs)} of {len(data['seeds'])} seeds)")
    if not pairs:
        return fig
    looks = {start: plots.look(index) for start, index in plots.places(STARTS).items()}
    final = {skew: values(pairs, skew, "test") for skew in SKEWS}
    by = {start: {skew: final[skew][i] for skew in ("IID", SKEW)} for i, start in enumerate(STARTS)}
    plots_probes.by_skew(first, by, dict(zip(STARTS, final["pooled"], strict=True)))
    for (i, start), (skew, dash) in product(enumerate(STARTS), ((SKEW, "-"), ("pooled", ":"))):
        rounds, curves = (values(pairs, skew, key)[i] for key in ("round", "test_accuracy"))
        split = "centralised" if skew == "pooled" else skew
        mean = [statistics.fmean(each) for each in zip(*curves, strict=False)]
        second.plot(rounds[0][: len(mean)], mean, dash, color=looks[start]["color"], label=f"{start}, {split}")
    second.set(xlabel="round", ylabel="test accuracy (mean of the seeds)")
    second.legend()
    plots_probes.loss_lines(third, dict(zip(STARTS, (one["line"] for one in pairs[0]), strict=True)))
    third.set(title=f"from {SKEW} (0) to IID (1), one seed", ylabel="test loss (nats)")
    size, spread = (values(pairs, "mixtures", key) for key in ("size", "accuracy_sd"))
    for i, start in enumerate(STARTS):
        fourth.plot(size[i], spread[i], label=start, **looks[start] | {"linestyle": "none"})
    fourth.set(xlabel=r"mean size of the updates $\Vert w_k - w_t \Vert$", ylabel="sd of the mixtures' accuracy")
    fourth.legend()
    return fig


RECORD = Record(
    "pretraining_imagenet", "CIFAR-10, ResNet-8: random weights against ImageNet's features", plan, run, draw, SEEDS
)
CLAIMS: Mapping[str, Callable[[], Claim]] = {f"pretraining.imagenet_{name}": partial(claim, name) for name in _ROWS}
