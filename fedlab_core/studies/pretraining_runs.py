"""The runs of the pre-training study: starts, methods, drift, basins and stability on the same federations.

Digits with a small dense network; `pretraining_standard` has larger data and networks. Learning rates are the best by
the mean accuracy on held-out examples over all seeds, found by climbing the grids from their middle.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

from matplotlib.figure import Figure

from fedlab_core import plots, probes
from fedlab_core.data import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.plots import probes as plots_probes
from fedlab_core.pretraining.kept import Start
from fedlab_core.pretraining.named import READ, recipe
from fedlab_core.pretraining.named import STARTS as NAMES
from fedlab_core.pretraining.starts import Fractals, Supervised
from fedlab_core.settings import Settings
from fedlab_core.studies import arms
from fedlab_core.studies.arms import Arm, Comparison, by_arm, finals, hold_out
from fedlab_core.studies.units import Stop, full

SEEDS = (0, 1, 2, 3, 4)
SKEW = "Dir(0.05)"
SKEWS: dict[str, dict[str, Any]] = {
    "IID": {"partition": "iid"},
    "Dir(0.3)": {"partition": "dirichlet", "partition_options": {"alpha": 0.3}},
    SKEW: {"partition": "dirichlet", "partition_options": {"alpha": 0.05}},
}
DIGITS = Experiment(
    "digits",
    clients=10,
    model="mlp",
    settings=Settings(1.0, epochs=2, batch_size=32, lr=0.3, evaluate_every=1, engine="loop"),
)
ROUNDS, HELD_OUT = 15, 0.1  # the paper holds out 2 %, which would be 29 of the digits
GRIDS = {"lr": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), "server_lr": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)}
"""Learning rates of the clients and, where a method has one, of the server."""
SSL_ROUNDS = 5
LETTERS = recipe("letters", (1, 8, 8))[0]
STARTS = [name for name in NAMES if name not in ("caltech101", *READ)]
RECIPES: dict[tuple[str, str], tuple[Any, ...]] = {
    ("mnist", "fractal pairs"): (Fractals("pairs", images=4096, epochs=5),),
    ("cifar10", "Caltech-101"): (Supervised("caltech101", {"size": 16, "channels": 3}, epochs=6, lr=0.05),),
}
"""Starts by data set and name that differ from those that `Experiment.start` names."""
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "fedprox": ({"mu": 0.1}, {"lr": 0.3}, {"lr": 0.3}),
    "scaffold": ({}, {"lr": 0.1}, {"lr": 0.03}),
    "fednova": ({}, {"lr": 0.3}, {"lr": 0.1}),
    "feddyn": ({"alpha": 0.1}, {"lr": 0.1}, {"lr": 0.1}),
    "moon": ({"mu": 1.0}, {"lr": 0.3}, {"lr": 0.1}),
    "fedavgm": ({}, {"lr": 0.3, "server_lr": 0.3}, {"lr": 0.1, "server_lr": 1.0}),
    "fedadam": ({}, {"lr": 0.1, "server_lr": 0.1}, {"lr": 0.1, "server_lr": 0.03}),
    "fedyogi": ({}, {"lr": 0.1, "server_lr": 0.1}, {"lr": 0.3, "server_lr": 0.1}),
}
"""By name: options, and the rates found from random weights and from letters."""
MEASURES = ("test_accuracy", "test_loss", "drift", "relative_drift", "cosine", "diversity")


def trained(
    name: str,
    skew: str,
    seed: int,
    lr: float,
    rounds: int = ROUNDS,
    *,
    weights: int | None = None,
    order: int = 0,
    engine: str = "loop",
    experiment: Experiment = DIGITS,
    data: Dataset | None = None,
) -> Federation:
    """A finished run with everything that a probe needs.

    Args:
        name: of the start.
        weights: seed of the initial weights, where they are to differ from the run's own.
        order: other values give another order of the batches and nothing else.
        data: by default the experiment's, without the held-out examples.
    """
    data = hold_out(experiment.load_data(), HELD_OUT)[0] if data is None else data
    one = experiment.replace(seed=seed, lr=lr, engine=engine, **SKEWS[skew])
    drawn = one if weights is None else one.replace(seed=weights)
    start = start_of(drawn, name, data)
    model = drawn.begin(start, data=data).model
    settings = one.settings if not order else one.settings.replace(seed=seed + 1000 * order)
    federation = Federation(data, one.make_partition(data), model, settings, name=f"{name}, {skew}")
    return arms.trained(federation, rounds)


def start_of(experiment: Experiment, name: str, data: Dataset) -> Start:
    """The start of a name, by its entry in `RECIPES` or as `Experiment.start` knows it."""
    steps = RECIPES.get((experiment.dataset, name))
    if steps is None:
        return experiment.replace(start=name).make_start(data=data)
    return experiment.make_start(steps, name=name, data=data)


def basin(seed: int, lr: float = 0.3) -> dict[str, Any]:
    """Barriers between the final global models of an IID and a skewed run, and of two runs that differ in batch order.

    Four kinds of start: "letters" and "random" share initial weights between the two runs; "different random" does
    not; "batch order" is letters on IID data twice, the noise that a barrier has to exceed.
    """
    thetas = [i / 20 for i in range(21)]
    lines = {}
    for name in ("random", "letters"):
        one, other = (trained(name, skew, seed, lr) for skew in ("IID", SKEW))
        lines[name] = probes.line(one, one.state, other.state, thetas)
        again = trained(name, "IID", seed, lr, order=1)
        lines[f"{name}, batch order"] = probes.line(one, one.state, again.state, thetas)
        if name == "random":
            third = trained(name, SKEW, seed, lr, weights=seed + 100)
            lines["different random"] = probes.line(one, one.state, third.state, thetas)
    return {name: {"barrier": line.barrier, **asdict(line)} for name, line in lines.items()}


def rounds_inside(name: str, seed: int, lr: float, at: Sequence[int] = (1, 2, 3, 5, 8, 15)) -> dict[str, Any]:
    """Stability of the aggregation, local against global accuracy, and the gradients at the start of some rounds of one
    run; the curvature before the first."""
    federation = trained(name, SKEW, seed, lr)
    gradients = [probes.client_gradients(federation, federation.state_at(t - 1)).to_json() | {"round": t} for t in at]
    return {
        "stability": [probes.stability(federation, t) for t in at],
        "local": [probes.local_against_global(federation, t) | {"round": t} for t in at],
        "gradients": gradients,
        "curvature": probes.curvature(federation, federation.state_at(0), examples=500).top,
        "curves": {key: [short(r.metrics.get(key)) for r in federation.history] for key in MEASURES},
    }


def make(settings: Mapping[str, Any], stop: Stop, device: str) -> dict[str, Any]:
    """A unit on digits: a run (see `arms.run`), a basin, or what happens inside of the rounds of a run."""
    one = full(settings["experiment"])
    if settings.get("look") == "basin":
        return basin(one.settings.seed, one.settings.lr)
    if settings.get("look") == "inside":
        return rounds_inside(one.start, one.settings.seed, one.settings.lr)
    return arms.run(settings, stop, device)


def short(value: float | None) -> float | None:
    """Five digits of a number; None for one that JSON has no word for."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def draw(data: Mapping[str, Any]) -> Figure:
    """Accuracy by start and skew, lines between models of one seed, spread against drift."""
    fig, ((left, middle, right),) = plots.figure(1, 3, (11, 3.6))
    runs, names = by_arm(data), ("random", "letters")
    accuracy = {name: {skew: finals(runs, f"{name}, {skew}") for skew in SKEWS} for name in names}
    plots_probes.by_skew(left, accuracy, {name: finals(runs, f"{name}, pooled") for name in names})
    kinds = ("letters", "random", "different random")
    plots_probes.loss_lines(middle, {kind: runs["basin"][0][kind] for kind in kinds})
    found = {name: finals(runs, f"inside: {name}, equal lr", "stability") for name in names}
    plots_probes.spread_against_drift(right, found)
    return fig


_ARMS = {
    **{
        f"{start}, {skew}": Arm({"start": start, **SKEWS.get(skew, SKEWS["IID"])}, lr=0.3, more=more)
        for start, (skew, more) in product(
            ("random", "letters"), (*((skew, {}) for skew in SKEWS), ("pooled", {"pooled": True}))
        )
    },
    **{f"{start}, {SKEW}": Arm({"start": start, **SKEWS[SKEW]}, lr=0.3) for start in STARTS[1:] if start != "letters"},
    **{
        f"{start}, {SKEW}, {method}": Arm(
            {
                "start": start,
                **SKEWS[SKEW],
                "method": method,
                "method_options": {**options, **{key: value for key, value in found[i].items() if key != "lr"}},
            },
            lr=found[i]["lr"],
        )
        for method, (options, *found) in METHODS.items()
        for i, start in enumerate(("random", "letters"))
    },
    "random, longer": Arm(SKEWS[SKEW], lr=0.3, more={"rounds": ROUNDS + 2 * SSL_ROUNDS}),
    "basin": Arm(lr=0.3, more={"look": "basin"}),
    **{
        f"inside: {start}, {label} lr": Arm({"start": start, **SKEWS[SKEW]}, lr=lr, more={"look": "inside"})
        for start in ("random", "letters")
        for label, lr in (("tuned", 0.3), ("equal", 0.1))
    },
}
STUDY = Comparison(
    "pretraining", "Digits, 10 clients, dense network", DIGITS, ROUNDS, _ARMS, SEEDS, HELD_OUT, None, make, draw
)
