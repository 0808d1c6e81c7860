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

TARGETS = {"2nn": 7.0, "cnn": 1.7, "resnet20": 1.4, "lstm": 1.5, "vit": 1.5}
"""Times faster than the plain loop that the best engine should be; set before measuring, on another machine."""
NAMES = {"2nn": "2NN", "cnn": "CNN", "resnet20": "ResNet-20", "lstm": "LSTM", "vit": "ViT"}
SOURCE = "ours: figures/bench.json, the plain loop being benchmarks/tasks.py"


def rounds_claim() -> Claim:
    """How many times faster than the plain loop, at its better number of threads, the best engine is."""
    bench = recorded("bench") or {"rows": []}
    measured: dict[str, float | None] = {f"{NAMES[model]}: x plain": None for model in TARGETS}
    for model in TARGETS:
        rows = [row for row in bench["rows"] if row["model"] == model and not row["engine"].startswith("plain")]
        if rows:
            measured[f"{NAMES[model]}: x plain"] = max(row["ratio_to_plain"] for row in rows)
            chosen = next(row for row in rows if row["engine"] == "auto")
            measured[f"{NAMES[model]}: x plain, as auto chooses"] = chosen["ratio_to_plain"]
            measured[f"{NAMES[model]}: % of the matmul peak"] = max(row["percent_of_peak"] for row in rows)
        if model in bench.get("products_seconds", {}):
            measured[f"{NAMES[model]}: x plain, products alone"] = bound(bench, model)
    return Claim(
        id="engines.rounds",
        text="Two cores, E = 1: a round with the best engine against a plain PyTorch loop",
        source=SOURCE,
        size="standard",
        expected={f"{NAMES[model]}: x plain": Range(low=ratio) for model, ratio in TARGETS.items()},
        measured=measured,
        registered="2133718, before the record",
    )


def bound(bench: Mapping[str, Any], model: str) -> float:
    """How many times faster than the plain loop a round's matrix products and convolutions are by themselves."""
    plain = (row for row in bench["rows"] if row["model"] == model and row["ratio_to_plain"] == 1)
    return next(plain)["seconds_per_round"] / bench["products_seconds"][model]


def costs_claim() -> Claim:
    """Memory, overhead, many clients, many states."""
    bench = recorded("bench") or {}
    memory = {row["engine"]: row["peak_mib"] for row in bench.get("rows", []) if row["model"] == "2nn"}
    overhead, many = bench.get("overhead_share", {}), bench.get("million_clients", {})
    scan, plane = bench.get("plane_scan_ratio", {}), bench.get("plane", {})
    faster = plane["seconds_point_by_point"] / plane["seconds"] if plane else None
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
            "plane of 25 x 25 points: seconds": (plane.get("seconds"), None),
            "plane of 25 x 25 points: % of the matmul peak": (plane.get("percent_of_peak"), None),
        },
        source=SOURCE,
        size="standard",
        registered="2133718, before the record (the plane: 2573722)",
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
    """Rounds per plain round: one group of bars per model, one bar per engine, lines from the slowest to the fastest
    repetition; above them what the matrix products and convolutions alone would allow."""
    models = [model for model in NAMES if any(row["model"] == model for row in bench["rows"])]
    fig, axes = plots.figure(1, 1, (9, 3.6))
    ax, engines = axes[0, 0], ("plain, 2 threads, channels_last", "loop", "threads", "stacked", "auto")
    for i, engine in enumerate(engines):
        rows = {row["model"]: row for row in bench["rows"] if row["engine"] == engine}
        if not rows:
            continue
        x = np.array([models.index(model) for model in models if model in rows]) + (i - 2) * 0.16
        chosen = [rows[model] for model in models if model in rows]
        ratio = np.array([row["ratio_to_plain"] for row in chosen])
        seconds = np.array([[row["seconds_per_round"], row["seconds_max"], row["seconds_min"]] for row in chosen]).T
        spread = ratio * np.abs(seconds[0] / seconds[1:] - 1)
        color = plots.OKABE_ITO[i if i < 3 else i + 1]
        ax.bar(x, ratio, 0.15, yerr=spread, color=color, label=engine, error_kw={"elinewidth": 0.8})
    bounds = {i: bound(bench, model) for i, model in enumerate(models) if model in bench.get("products_seconds", {})}
    if bounds:
        ends = [i - 0.42 for i in bounds], [i + 0.42 for i in bounds]
        ax.hlines(list(bounds.values()), *ends, color="0.3", linewidth=1.5, label="products alone")
    ax.axhline(1, color="0.3", linewidth=1, linestyle="--")
    ax.text(len(models) - 0.5, 1, " plain\n loop", va="center", fontsize=8)
    ax.set(
        xticks=range(len(models)), xticklabels=[NAMES[m] for m in models], ylabel="rounds in the time of a plain one"
    )
    ax.set_xlim(-0.55, len(models) - 0.45)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return fig
