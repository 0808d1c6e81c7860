"""What the engines are worth, from the recorded `make bench` (figures/bench.json): claims and a picture."""

from collections.abc import Callable, Mapping
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.studies.claim import Claim, Measured, Range, exact
from fedlab_core.studies.record import recorded
from fedlab_core.studies.statistics import differences

TARGETS = {"cnn": 1.1, "resnet20": 1.1, "lite0": 1.3, "lstm": 1.5, "vit": 1.5}
"""Times faster than the fastest plain loop (of 1, 2 and all threads, either layout) that the best engine should be."""
PEAK = 65
"""Per cent of the matmul peak that a round of the 2NN should reach."""
LOADED = 1.3
"""Times longer than on one core that a round of the 2NN may take where another process keeps a core busy."""
FEDJAX = 0.45
"""Share of FedJAX's time that a round of the 2NN may take."""
NAMES = {
    "2nn": "2NN",
    "cnn": "CNN",
    "resnet8": "ResNet-8",
    "resnet20": "ResNet-20",
    "lite0": "Lite0, 64 px",
    "lstm": "LSTM",
    "vit": "ViT",
}
PLAIN, ENGINES = "plain", ("loop", "threads", "stacked", "auto")
SOURCE = "ours: figures/bench.json, the plain loop being benchmarks/tasks.py"


def rounds_claim() -> Claim:
    """How fast a round of the best engine is, by the fastest plain loop, the matmul peak, a busy machine and FedJAX."""
    bench = recorded("bench") or {"rows": []}
    rows = {(row["model"], row["engine"]): row for row in bench["rows"]}
    measured: dict[str, float | None] = {}
    for model, name in NAMES.items():
        best = [rows[model, engine] for engine in ENGINES if (model, engine) in rows]
        measured[f"{name}: x plain"] = max((row["ratio_to_plain"] for row in best), default=None)
        measured[f"{name}: % of the matmul peak"] = max((row["percent_of_peak"] for row in best), default=None)
        if best:
            measured[f"{name}: x plain, as auto chooses"] = rows[model, "auto"]["ratio_to_plain"]
        if model in bench.get("products_seconds", {}):
            measured[f"{name}: x plain, products alone"] = bound(bench, model)

    def against(engine: str, other: str) -> float | None:
        """Seconds of a 2NN round over those of another way."""
        both = [rows["2nn", way]["seconds_per_round"] for way in (engine, other) if ("2nn", way) in rows]
        return both[0] / both[1] if len(both) == 2 else None

    measured |= {
        "2NN: a core taken, against one core": against("auto, a core taken", "auto, 1 core"),
        "2NN: of FedJAX's time": against("auto", "FedJAX"),
    }
    return Claim(
        id="engines.rounds",
        text="Two cores, E = 1: a round with the best engine against the fastest plain PyTorch loop",
        source=SOURCE,
        size="standard",
        expected={f"{NAMES[model]}: x plain": Range(low=ratio) for model, ratio in TARGETS.items()}
        | {
            "2NN: % of the matmul peak": Range(low=PEAK),
            "2NN: a core taken, against one core": Range(high=LOADED),
            "2NN: of FedJAX's time": Range(high=FEDJAX),
        },
        measured=measured,
        registered="39868d7, before the record",
    )


def bound(bench: Mapping[str, Any], model: str) -> float:
    """How many times faster than the plain loop a round's matrix products and convolutions are by themselves."""
    plain = fastest(bench, model, PLAIN)
    assert plain is not None, "every model is timed with the plain loop"
    return plain / bench["products_seconds"][model]


def fastest(bench: Mapping[str, Any], model: str, way: str) -> float | None:
    """Seconds of a round, the fewest of the ways whose names begin so, such as those of several numbers of threads."""
    rows = [row for row in bench["rows"] if row["model"] == model and row["engine"].startswith(way)]
    return min((row["seconds_per_round"] for row in rows), default=None)


def costs_claim() -> Claim:
    """Memory, overhead, many clients, many states."""
    bench = recorded("bench") or {}
    memory = {row["engine"]: row["peak_mib"] for row in bench.get("rows", []) if row["model"] == "2nn"}
    overhead, many = bench.get("overhead_share", {}), bench.get("million_clients", {})
    scan, plane = bench.get("plane_scan_ratio", {}), bench.get("plane", {})
    faster = plane["seconds_point_by_point"] / plane["seconds"] if plane else None
    tuning = bench.get("head_tuning_seconds", {})
    once = tuning["every_time"] / tuning["once"] if tuning else None
    return exact(
        "engines.costs",
        "What a round costs besides the clients' work, a federation of 1,000,000 clients of whom 10 take part, and 625 "
        "points of a plane evaluated together against one by one",
        {
            "2NN: peak memory, MiB": (memory.get("auto"), Range(high=800)),
            "overhead of a 2NN round": (overhead.get("2nn, stacked"), Range(high=0.15)),
            "overhead of a CNN round": (overhead.get("cnn, threads"), Range(high=0.03)),
            "million clients: seconds to start": (many.get("start_seconds"), Range(high=5)),
            "million clients: MiB beyond the data": (many.get("mib_beyond_data"), Range(high=1024)),
            "625 points, 2NN: times faster": (scan.get("2nn"), Range(low=2)),
            "16 points, CNN: times faster": (scan.get("cnn"), None),
            "plane of 25 x 25 points, 2,000 images: times faster": (faster, Range(low=1)),
            "head tuning of EfficientNet-Lite0, frozen part once: times faster": (once, Range(low=20)),
            "plane of 25 x 25 points: seconds": (plane.get("seconds"), None),
            "plane of 25 x 25 points: % of the matmul peak": (plane.get("percent_of_peak"), None),
        },
        source=SOURCE,
        size="standard",
        registered="2133718, before the record (the plane: 2573722; head tuning: with this table)",
    )


def accuracy_claim() -> Claim:
    """Same accuracy after the same rounds, seed by seed."""
    found: Mapping[str, list[float]] = (recorded("bench") or {}).get("accuracy", {})
    others = ("threads", "stacked")
    measured: dict[str, Measured] = {}
    for name in others if found else ():
        measured[f"{name} minus loop, largest"] = max(map(abs, differences(found[name], found["loop"])))
    measured |= {f"{name}: accuracy": values for name, values in found.items()}
    return Claim(
        id="engines.accuracy",
        text="Digits, 2NN, Dirichlet 0.3, 10 rounds: every engine ends at the accuracy of loop, seed by seed",
        source=SOURCE,
        size="standard",
        expected={f"{name} minus loop, largest": Range(high=0.003) for name in others},
        measured=measured,
        seeds=range(len(found.get("loop", []))),
        registered="with this table, after the record (before it overlapping intervals were expected, 2133718)",
        test_size=360,
        references={"chance": 0.1, "reached": mean(found["loop"])} if found else {},
    )


def gpu_claim() -> Claim:
    """Stacked clients on a GPU; no record has one yet."""
    return Claim(
        id="engines.gpu",
        text="A GPU, 100 clients a round: stacked against the sequential loop",
        source=SOURCE,
        size="paper",
        expected={"2NN: x loop": Range(low=10), "small CNN: x loop": Range(low=10)},
        registered="2133718",
    )


CLAIMS: dict[str, Callable[[], Claim]] = {
    "engines.rounds": rounds_claim,
    "engines.costs": costs_claim,
    "engines.accuracy": accuracy_claim,
    "engines.gpu": gpu_claim,
}


def picture(bench: Mapping[str, Any]) -> Figure:
    """Rounds in the time of the fastest plain one: a group of marks per model, one per way, with lines from the slowest
    to the fastest repetition; above them what the matrix products and convolutions alone would allow."""
    models = [model for model in NAMES if any(row["model"] == model for row in bench["rows"])]
    fig, axes = plots.figure(1, 1, (9, 3.8))
    ax, peers = axes[0, 0], sorted(bench.get("peers", ()))
    shown = [*ENGINES, "auto, a core taken", *peers]
    for i, engine in enumerate(shown):
        same = str.startswith if engine in peers else str.__eq__  # a peer has a row per number of threads
        found = sorted((r for r in bench["rows"] if same(r["engine"], engine)), key=lambda r: r["ratio_to_plain"])
        rows = {row["model"]: row for row in found}
        if not rows:
            continue
        x = np.array([models.index(model) for model in models if model in rows]) + (i - len(shown) / 2 + 0.5) * 0.1
        chosen = [rows[model] for model in models if model in rows]
        ratio = np.array([row["ratio_to_plain"] for row in chosen])
        seconds = np.array([[row["seconds_per_round"], row["seconds_max"], row["seconds_min"]] for row in chosen]).T
        spread = ratio * np.abs(seconds[0] / seconds[1:] - 1)
        look = plots.Line(engine, (), index=i).style | {"linestyle": "none"}
        ax.errorbar(x, ratio, yerr=spread, elinewidth=0.8, label=engine, **look)
    bounds = {i: bound(bench, model) for i, model in enumerate(models) if model in bench.get("products_seconds", {})}
    if bounds:
        ends = [i - 0.42 for i in bounds], [i + 0.42 for i in bounds]
        ax.hlines(list(bounds.values()), *ends, color="0.3", linewidth=1.5, label="products alone")
    ax.axhline(1, color="0.3", linewidth=1, linestyle="--")
    ax.text(len(models) - 0.5, 1, " plain\n loop", va="center", fontsize=8)
    ax.set(xticks=range(len(models)), xticklabels=[NAMES[m] for m in models])
    ax.set(ylabel="rounds in the time of a plain one", xlim=(-0.55, len(models) - 0.45))
    plots.logarithmic(ax, "y", (1.0, 2.0, 5.0))
    plots.lines_across(ax)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig
