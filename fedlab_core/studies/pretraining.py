"""What pre-training does to federated learning (Chen et al. 2023): the claims, from the recorded runs.

The paper's settings are known in part only, so every measure here is our operationalisation, and the size is far below
the paper's: a small dense network on 8 x 8 digits. Learning rates are chosen per start, skew and method on held-out
examples.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import product
from typing import Any

from fedlab_core.plots import figure, save
from fedlab_core.plots import probes as plots_probes
from fedlab_core.studies import pretraining_standard
from fedlab_core.studies.claim import Claim, Measured, Range
from fedlab_core.studies.pretraining_rows import RATES, Row, best, finals, gaps
from fedlab_core.studies.pretraining_runs import SKEWS, SSL_ROUNDS
from fedlab_core.studies.record import FIGURES, RUNS, recorded
from fedlab_core.studies.statistics import differences, ratios

Measures = dict[str, Measured]
PAPER = "Chen et al. 2023, abstract; our operationalisation"


@cache
def record() -> dict[str, Any] | None:
    """`figures/pretraining.json`; None if it was not recorded."""
    return recorded("pretraining")


def gap_measures(data: Mapping[str, Any]) -> Measures:
    """By skew: by how much pre-training on letters narrows the gap to centralised training."""
    rows = data["rows"]
    narrowed = {skew: differences(gaps(rows, "random", skew), gaps(rows, "letters", skew)) for skew in SKEWS}
    result: Measures = {}
    for skew in SKEWS:
        result[f"{skew}: gap narrowed by"] = narrowed[skew]
        for start in ("random", "letters"):
            result[f"{skew}: {start}"] = finals(rows, start=start, skew=skew, method="fedavg")
    for start in ("random", "letters"):
        result[f"centralised: {start}"] = finals(rows, start=start, skew="pooled", method="fedavg")
    for at in (1, 3, 5):
        early = [
            [row["curves"]["test_accuracy"][at] for row in best(rows, start=start, skew="Dir(0.05)", method="fedavg")]
            for start in ("letters", "random")
        ]
        result[f"Dir(0.05), round {at}: letters minus random"] = differences(*early)
    more = differences(narrowed["Dir(0.05)"], narrowed["IID"])
    return result | {"narrowed more under Dir(0.05) than IID by": more}


def synthetic_measures(data: Mapping[str, Any]) -> Measures:
    """Gain over the random start under Dir(0.05), for every start."""
    rows, where = data["rows"], {"skew": "Dir(0.05)", "method": "fedavg"}
    base = finals(rows, start="random", **where)
    starts = ("letters", "fractal pairs", "fractal labels", "fractal twins", "noise")
    result: Measures = {f"{start}: gain": differences(finals(rows, start=start, **where), base) for start in starts}
    pairs, twins = (finals(rows, start=start, **where) for start in ("fractal pairs", "fractal twins"))
    return result | {"pairs above twins by": differences(pairs, twins)}


def decentralised_measures(data: Mapping[str, Any]) -> Measures:
    """Gain over the random start with the same total of rounds, and of bytes."""
    rows, where = data["rows"], {"skew": "Dir(0.05)", "method": "fedavg"}
    longer = best(data["longer"], start="random", **where)
    found, pairs = (best(rows, start=start, **where) for start in ("decentralised", "pairs, decentralised"))
    rounds = data["rounds"] + SSL_ROUNDS
    per_round = longer[0]["bytes"] / longer[0]["rounds"]
    by_bytes = min(round(found[0]["bytes"] / per_round), longer[0]["rounds"])

    def gain(chosen: Sequence[Row], at: int) -> list[float]:
        return differences([row["test"] for row in chosen], [row["curves"]["test_accuracy"][at] for row in longer])

    return {
        "gain at equal rounds": gain(found, rounds),
        "equal rounds: rounds of random": rounds,
        "gain at equal bytes": gain(found, by_bytes),
        "equal bytes: rounds of random": by_bytes,
        "pairs, then decentralised: gain at equal rounds": gain(pairs, rounds),
    }


def method_measures(data: Mapping[str, Any]) -> Measures:
    """Under Dir(0.05): gain of each method over FedAvg from either start, and gain of both together; the rates of every
    method searched in its own grid, from either start."""
    rows, where = data["rows"], {"skew": "Dir(0.05)"}
    base = finals(rows, start="random", method="fedavg", **where)
    letters = differences(finals(rows, start="letters", method="fedavg", **where), base)
    result: Measures = {"letters alone: gain": letters}
    added = edges = 0
    names = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "fedavg"))
    for method in names:
        chosen = {start: best(rows, start=start, method=method, **where) for start in ("random", "letters")}
        alone, both = (differences([r["test"] for r in chosen[start]], base) for start in ("random", "letters"))
        result |= {f"{method} alone: gain": alone, f"{method} with letters: gain": both}
        added += statistics.fmean(both) > max(map(statistics.fmean, (alone, letters)))
        edges += any(
            group[0][rate] in (data["grids"][rate][0], data["grids"][rate][-1])
            for group in chosen.values()
            for rate in RATES
            if rate in group[0]
        )
    counts = {"methods whose gain adds to pre-training's": added, "methods": len(names)}
    return counts | result | {"best rates at an edge of their grid": edges}


def drift_measures(data: Mapping[str, Any]) -> Measures:
    """Size and direction of the drift from letters relative to random, at equal lr and round, and at equal accuracy."""
    result: Measures = {}
    runs = {name: [one["curves"] for one in data["inside"][f"{name}, equal lr"]] for name in ("random", "letters")}
    pairs = list(zip(runs["random"], runs["letters"], strict=True))
    for key, label in (("relative_drift", "relative size"), ("drift", "size"), ("diversity", "diversity")):
        result[f"equal lr: {label}, ratio"] = [
            statistics.fmean(b[key][1:]) / statistics.fmean(a[key][1:]) for a, b in pairs
        ]
    result["equal lr: cosine, difference"] = [
        statistics.fmean(b["cosine"][1:]) - statistics.fmean(a["cosine"][1:]) for a, b in pairs
    ]
    matched = [matched_accuracy(a, b) for a, b in pairs]
    for i, label in enumerate(("relative size, ratio", "cosine, difference")):
        result[f"equal accuracy: {label}"] = [pair[i] for pair in matched]
    for name in runs:
        tops = [one["curvature"] for one in data["inside"][f"{name}, equal lr"]]
        result[f"top Hessian eigenvalue at the start: {name}"] = tops
    return result


def matched_accuracy(random: Row, letters: Row) -> tuple[float, float]:
    """Relative drift (ratio) and cosine (difference), letters against random, over rounds that begin at about the same
    accuracy: each of letters' with the round of random whose accuracy before it is nearest."""
    ratios, changes = [], []
    for t in range(1, len(letters["cosine"])):
        reached = letters["test_accuracy"][t - 1]
        s = min(range(1, len(random["cosine"])), key=lambda s: abs(random["test_accuracy"][s - 1] - reached))
        if abs(random["test_accuracy"][s - 1] - reached) <= 0.03:
            ratios.append(letters["relative_drift"][t] / random["relative_drift"][s])
            changes.append(letters["cosine"][t] - random["cosine"][s])
    return (statistics.fmean(ratios), statistics.fmean(changes)) if ratios else (float("nan"), float("nan"))


def basin_measures(data: Mapping[str, Any]) -> Measures:
    """Barriers between IID and Dir(0.05) models, by kind of start."""
    barriers = {kind: [one[kind]["barrier"] for one in data["basins"]] for kind in data["basins"][0]}
    result: Measures = {f"{kind}: barrier": values for kind, values in barriers.items()}
    return result | {"random minus letters": differences(barriers["random"], barriers["letters"])}


def stability_measures(data: Mapping[str, Any]) -> Measures:
    """Dirichlet mixtures of the clients' models, letters against random at the tuned lr and at an equal one."""
    result: dict[str, Any] = {}
    for label in ("tuned", "equal"):
        inside = {name: data["inside"][f"{name}, {label} lr"] for name in ("random", "letters")}
        for key in ("accuracy_mean", "accuracy_sd", "loss_sd"):
            for name, seeds in inside.items():
                values = [statistics.fmean(r["dirichlet"][key] for r in one["stability"]) for one in seeds]
                result[f"{label} lr, {name}: {key.replace('_', ' ')}"] = values
        per_drift = (
            [statistics.fmean(r["dirichlet"]["loss_sd"] / r["size"] for r in one["stability"]) for one in inside[name]]
            for name in ("letters", "random")
        )
        result[f"{label} lr: loss sd per drift, ratio"] = ratios(*per_drift)
    for key, label in (("accuracy_mean", "mean gains"), ("accuracy_sd", "sd changes by")):
        both = (result[f"tuned lr, {name}: {key.replace('_', ' ')}"] for name in ("letters", "random"))
        result[label] = differences(*both)
    return result


_ROWS: dict[str, tuple[str, str, Callable[[Mapping[str, Any]], Measures], dict[str, Range]]] = {
    "pretraining.gap": (
        "Digits, 10 clients, 15 rounds: starting from letters narrows the gap between centralised training and FedAvg, "
        "and the more the more skewed the data",
        PAPER,
        gap_measures,
        {"Dir(0.05): gap narrowed by": Range(low=0.005)},
    ),
    "pretraining.synthetic": (
        "The same, Dir(0.05): pre-training on fractals lifts FedAvg without real data, and pairs lift it more than the "
        "same image twice",
        f"{PAPER} (10^6 pairs x 100 epochs in the released script, 3,000 x 5 here)",
        synthetic_measures,
        {"fractal pairs: gain": Range(low=0.005)},
    ),
    "pretraining.decentralised": (
        "The same: self-supervised rounds on the clients' own images, then supervised ones, beat as many supervised "
        "rounds and bytes from random weights",
        PAPER,
        decentralised_measures,
        {"gain at equal rounds": Range(low=0.0)},
    ),
    "pretraining.methods": (
        "The same, Dir(0.05): a better method and pre-training add up (both together beat either alone) for three "
        "methods of four",
        "ours; learning rates of clients and server searched per method and start",
        method_measures,
        {"methods whose gain adds to pre-training's": Range(low=6)},
    ),
    "pretraining.drift": (
        "The same: pre-training does not alleviate drift: at equal lr its clients' updates are not smaller, and agree "
        "no more",
        f"{PAPER}; Nguyen et al. 2023 report the opposite for the direction",
        drift_measures,
        {"equal lr: relative size, ratio": Range(low=0.95)},
    ),
    "pretraining.basin": (
        "The same: IID and Dir(0.05) models from letters lie in one basin (no barrier beyond that of another batch "
        "order), while those from one random start have a larger barrier",
        PAPER,
        basin_measures,
        {"letters: barrier": Range(high=0.01)},
    ),
    "pretraining.stability": (
        "The same: from letters, mixtures of the clients' models are better and spread less, also per unit of drift",
        f"{PAPER}; mixtures drawn as in FedBE",
        stability_measures,
        {"sd changes by": Range(high=-0.005)},
    ),
}


def claim(key: str) -> Claim:
    """One row, from the recorded runs; not run without them."""
    text, source, measure, expected = _ROWS[key]
    data = record()
    measured, seeds = ({}, ()) if data is None else (measure(data), data["seeds"])
    headline = "" if key == "pretraining.methods" else next(iter(expected))
    set_at = "ed78c45" if key == "pretraining.methods" else "93ad8dd"
    references = {}
    if data is not None:
        reached = finals(data["rows"], start="letters", skew="Dir(0.05)", method="fedavg")
        central = finals(data["rows"], start="letters", skew="pooled", method="fedavg")
        references = {"chance": 0.1, "reached": statistics.fmean(reached), "centralised": statistics.fmean(central)}
    registered = f"{set_at}, together with the record"
    return Claim(key, text, source, "quick", expected, measured, seeds, headline, registered, 360, references)


CLAIMS: dict[str, Callable[[], Claim]] = {key: partial(claim, key) for key in _ROWS} | pretraining_standard.CLAIMS


def overview(data: Mapping[str, Any]) -> Any:
    """The recorded runs in one picture: accuracy by start and skew, lines between models, spread against drift."""
    fig, ((left, middle, right),) = figure(1, 3, (11, 3.6))
    rows, names = data["rows"], ("random", "letters")
    accuracy: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for name, skew in product(names, SKEWS):
        accuracy[name][skew] = finals(rows, start=name, skew=skew, method="fedavg")
    pooled = {name: finals(rows, start=name, skew="pooled", method="fedavg") for name in names}
    plots_probes.by_skew(left, accuracy, pooled)
    kinds = ("letters", "random", "different random")
    plots_probes.loss_lines(middle, {kind: data["basins"][0][kind] for kind in kinds})
    found = {name: [one["stability"] for one in data["inside"][f"{name}, equal lr"]] for name in names}
    plots_probes.spread_against_drift(right, found)
    return fig


def write_record() -> None:
    """Runs everything and writes the picture and its data; finished runs are kept in `runs/`."""
    from fedlab_core.studies.pretraining_runs import everything

    data = everything(RUNS / "pretraining")
    save(overview(data), FIGURES / "pretraining", data)
