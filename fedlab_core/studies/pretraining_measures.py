"""What pre-training changes, computed from the units of the records: gaps, gains, drift, barriers, stability."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fedlab_core.studies.arms import Runs, by_arm, finals, grouped, rates
from fedlab_core.studies.claim import Measured
from fedlab_core.studies.pretraining_runs import GRIDS, METHODS, ROUNDS, SKEW, SKEWS, SSL_ROUNDS
from fedlab_core.studies.pretraining_standard import SOURCES
from fedlab_core.studies.statistics import differences, ratios
from fedlab_core.studies.units import full

Data = Mapping[str, Any]
Measures = dict[str, Measured]


def narrowed(runs: Runs, source: str, skews: Sequence[str]) -> dict[str, list[float]]:
    """By skew: the gap to centralised training from random weights minus that from the source, seed by seed."""

    def gaps(start: str, skew: str) -> list[float]:
        return differences(finals(runs, f"{start}, pooled"), finals(runs, f"{start}, {skew}"))

    return {skew: differences(gaps("random", skew), gaps(source, skew)) for skew in skews}


def gap_measures(data: Data) -> Measures:
    """By skew: by how much pre-training on letters narrows the gap to centralised training."""
    runs = by_arm(data)
    less, result = narrowed(runs, "letters", list(SKEWS)), Measures()
    for skew in SKEWS:
        result[f"{skew}: gap narrowed by"] = less[skew]
        result |= {f"{skew}: {start}": finals(runs, f"{start}, {skew}") for start in ("random", "letters")}
    result |= {f"centralised: {start}": finals(runs, f"{start}, pooled") for start in ("random", "letters")}
    for at in (1, 3, 5):
        early = [[one["test_accuracy"][at] for one in runs[f"{start}, {SKEW}"]] for start in ("letters", "random")]
        result[f"{SKEW}, round {at}: letters minus random"] = differences(*early)
    return result | {f"narrowed more under {SKEW} than IID by": differences(less[SKEW], less["IID"])}


def gains(runs: Runs, starts: Sequence[str]) -> Measures:
    """Gain over the random start under the skew, for some others."""
    base = finals(runs, f"random, {SKEW}")
    return {f"{start}: gain": differences(finals(runs, f"{start}, {SKEW}"), base) for start in starts}


def synthetic_measures(data: Data) -> Measures:
    """Gain over the random start under Dir(0.05), for every start that is not the clients' own data."""
    runs = by_arm(data)
    pairs, twins = (finals(runs, f"{start}, {SKEW}") for start in ("fractal pairs", "fractal twins"))
    starts = ("letters", "fractal pairs", "fractal labels", "fractal twins", "noise")
    return gains(runs, starts) | {"pairs above twins by": differences(pairs, twins)}


def decentralised_measures(data: Data) -> Measures:
    """Gain over the random start with the same total of rounds, and of bytes."""
    runs = by_arm(data)
    longer = runs["random, longer"]
    rounds, per_round = ROUNDS + SSL_ROUNDS, longer[0]["bytes"] / longer[0]["rounds"]
    sent = runs[f"decentralised, {SKEW}"][0]["bytes"]
    by_bytes = min(round(sent / per_round), longer[0]["rounds"])

    def gain(start: str, at: int) -> list[float]:
        return differences(finals(runs, f"{start}, {SKEW}"), [one["test_accuracy"][at] for one in longer])

    return {
        "gain at equal rounds": gain("decentralised", rounds),
        "equal rounds: rounds of random": rounds,
        "gain at equal bytes": gain("decentralised", by_bytes),
        "equal bytes: rounds of random": by_bytes,
        "pairs, then decentralised: gain at equal rounds": gain("pairs, decentralised", rounds),
    }


def method_measures(data: Data) -> Measures:
    """Under Dir(0.05): gain of each method over FedAvg from either start, and gain of both together; the rates of every
    method searched in its own grid, from either start."""
    runs = by_arm(data)
    base = finals(runs, f"random, {SKEW}")
    letters = differences(finals(runs, f"letters, {SKEW}"), base)
    result: Measures = {"letters alone: gain": letters}
    chosen, added, edges = _rates(data), 0, 0
    for method in METHODS:
        arms = [f"{start}, {SKEW}, {method}" for start in ("random", "letters")]
        alone, both = (differences(finals(runs, arm), base) for arm in arms)
        result |= {f"{method} alone: gain": alone, f"{method} with letters: gain": both}
        added += fmean(both) > max(fmean(alone), fmean(letters))
        edges += any(rate in (GRIDS[key][0], GRIDS[key][-1]) for arm in arms for key, rate in chosen[arm].items())
    counts = {"methods whose gain adds to pre-training's": added, "methods": len(METHODS)}
    return counts | result | {"best rates at an edge of their grid": edges}


def _rates(data: Data) -> dict[str, dict[str, float]]:
    """The rates of each arm, of the clients and of the server if it has one."""
    found = {}
    for unit in data["units"]:
        one = full(unit["settings"]["experiment"])
        server = {key: value for key, value in one.method_options.items() if key == "server_lr"}
        found[unit["arm"]] = {"lr": one.settings.lr} | server
    return found


def drift_measures(data: Data) -> Measures:
    """Size and direction of the drift from letters relative to random, at equal lr and round, and at equal accuracy."""
    result: Measures = {}
    looks = {name: by_arm(data)[f"inside: {name}, equal lr"] for name in ("random", "letters")}
    pairs = [(a["curves"], b["curves"]) for a, b in zip(*looks.values(), strict=True)]
    for key, label in (("relative_drift", "relative size"), ("drift", "size"), ("diversity", "diversity")):
        result[f"equal lr: {label}, ratio"] = [fmean(b[key][1:]) / fmean(a[key][1:]) for a, b in pairs]
    result["equal lr: cosine, difference"] = [fmean(b["cosine"][1:]) - fmean(a["cosine"][1:]) for a, b in pairs]
    matched = [matched_accuracy(a, b) for a, b in pairs]
    for i, label in enumerate(("relative size, ratio", "cosine, difference")):
        result[f"equal accuracy: {label}"] = [pair[i] for pair in matched]
    for name, found in looks.items():
        result[f"top Hessian eigenvalue at the start: {name}"] = [one["curvature"] for one in found]
    return result


def matched_accuracy(random: Data, letters: Data) -> tuple[float, float]:
    """Relative drift (ratio) and cosine (difference), letters against random, over rounds that begin at about the same
    accuracy: each of letters' with the round of random whose accuracy before it is nearest."""
    sizes, changes = [], []
    for t in range(1, len(letters["cosine"])):
        reached = letters["test_accuracy"][t - 1]
        s = min(range(1, len(random["cosine"])), key=lambda s: abs(random["test_accuracy"][s - 1] - reached))
        if abs(random["test_accuracy"][s - 1] - reached) <= 0.03:
            sizes.append(letters["relative_drift"][t] / random["relative_drift"][s])
            changes.append(letters["cosine"][t] - random["cosine"][s])
    return (fmean(sizes), fmean(changes)) if sizes else (float("nan"), float("nan"))


def barriers(looks: Sequence[Data], source: str, ends: Sequence[str] = ("",)) -> Measures:
    """Barriers between IID and Dir(0.05) models by kind of start, and random's minus the source's."""
    found = {kind: [one[kind]["barrier"] for one in looks] for kind in looks[0]}
    result: Measures = {f"{kind}: barrier": values for kind, values in found.items()}
    return result | {
        f"random minus {source}{end}": differences(found[f"random{end}"], found[f"{source}{end}"])
        for end in ends
        if f"random{end}" in found
    }


def basin_measures(data: Data) -> Measures:
    """Barriers between IID and Dir(0.05) models, by kind of start."""
    return barriers(by_arm(data)["basin"], "letters")


def stability_measures(data: Data) -> Measures:
    """Dirichlet mixtures of the clients' models, letters against random at the tuned lr and at an equal one."""
    result: dict[str, Any] = {}
    for label in ("tuned", "equal"):
        looks = {
            name: finals(by_arm(data), f"inside: {name}, {label} lr", "stability") for name in ("random", "letters")
        }
        for key in ("accuracy_mean", "accuracy_sd", "loss_sd"):
            for name, seeds in looks.items():
                values = [fmean(r["dirichlet"][key] for r in rounds) for rounds in seeds]
                result[f"{label} lr, {name}: {key.replace('_', ' ')}"] = values
        per_drift = (
            [fmean(r["dirichlet"]["loss_sd"] / r["size"] for r in rounds) for rounds in looks[name]]
            for name in ("letters", "random")
        )
        result[f"{label} lr: loss sd per drift, ratio"] = ratios(*per_drift)
    for key, label in (("accuracy_mean", "mean gains"), ("accuracy_sd", "sd changes by")):
        both = (result[f"tuned lr, {name}: {key.replace('_', ' ')}"] for name in ("letters", "random"))
        result[label] = differences(*both)
    return result


def standard_gap(data: Data, name: str) -> Measures:
    """By how much the source narrows the gap to centralised training under each skew; accuracies and rates."""
    runs, lrs, source = grouped(data)[name], rates(data), SOURCES[name]
    less = narrowed(runs, source, ("IID", SKEW))
    result: Measures = {f"{skew}: gap narrowed by": values for skew, values in less.items()}
    result[f"narrowed more under {SKEW} than IID by"] = differences(less[SKEW], less["IID"])
    for skew in ("IID", SKEW, "pooled"):
        for start in ("random", source):
            result[f"{skew}: {start}"] = finals(runs, f"{start}, {skew}")
            result[f"{skew}: {start}, lr"] = lrs[f"{name}: {start}, {skew}"]
    return result


def standard_gains(data: Data, name: str) -> Measures:
    """Gain over the random start under the skew, for every other start."""
    return gains(grouped(data)[name], [SOURCES[name], "fractal pairs"])


def standard_basin(data: Data, name: str) -> Measures:
    """Barriers on the test set between the IID and the skewed final models, and random's minus the source's."""
    return barriers(grouped(data)[name]["lines"], SOURCES[name], ("", ", re-estimated"))


def standard_stability(data: Data, name: str) -> Measures:
    """Dirichlet mixtures of the clients' models of the last round, the source against random, each at its own lr."""
    runs, result = grouped(data)[name], Measures()
    found = {start: finals(runs, f"{start}, {SKEW}", "mixtures") for start in (SOURCES[name], "random")}
    for key in ("accuracy_mean", "accuracy_sd", "loss_sd", "size"):
        values = {start: [one[key] for one in seeds] for start, seeds in found.items()}
        result |= {f"{start}: {key.replace('_', ' ')}": values[start] for start in found}
        if key.startswith("accuracy"):
            label = "mean gains" if key == "accuracy_mean" else "sd changes by"
            result[label] = differences(*values.values())
    per_drift = ([one["loss_sd"] / one["size"] for one in seeds] for seeds in found.values())
    return result | {"loss sd per drift, ratio": ratios(*per_drift)}
