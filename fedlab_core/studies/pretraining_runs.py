"""The runs of the pre-training study: starts, methods, drift, basins and stability on the same federations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from fedlab_core import probes
from fedlab_core.data import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.pretraining.named import READ, recipe
from fedlab_core.pretraining.named import STARTS as NAMES
from fedlab_core.pretraining.starts import Start
from fedlab_core.references import centralised
from fedlab_core.round import while_finite
from fedlab_core.settings import Settings
from fedlab_core.studies.arms import hold_out
from fedlab_core.studies.pretraining_rows import chosen_lr, tuned
from fedlab_core.studies.record import once

SEEDS = (0, 1, 2)
SKEWS: dict[str, dict[str, Any]] = {
    "IID": {"partition": "iid"},
    "Dir(0.3)": {"partition": "dirichlet", "partition_options": {"alpha": 0.3}},
    "Dir(0.05)": {"partition": "dirichlet", "partition_options": {"alpha": 0.05}},
}
DIGITS = Experiment(
    "digits", clients=10, model="mlp", settings=Settings(1.0, epochs=2, batch_size=32, lr=0.3, evaluate_every=1)
)
ROUNDS, HELD_OUT = 15, 0.1  # the paper holds out 2 %, which would be 29 of the digits
GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SERVER_GRID = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Learning rates of the clients and, where a method has one, of the server; the search begins in their middle."""
SSL_ROUNDS = 5
LETTERS = recipe("letters", (1, 8, 8))[0]
IN_COLOUR = ("caltech101", *READ)
STARTS = {name: recipe(name, (1, 8, 8)) for name in NAMES if name not in IN_COLOUR}
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.1},
    "scaffold": {},
    "fednova": {},
    "feddyn": {"alpha": 0.1},
    "moon": {"mu": 1.0},
    "fedavgm": {"server_lr": SERVER_GRID},
    "fedadam": {"server_lr": SERVER_GRID},
    "fedyogi": {"server_lr": SERVER_GRID},
}
"""By name: options; a tuple is a grid that is searched together with that of the clients' learning rate."""
MEASURES = ("test_accuracy", "test_loss", "drift", "relative_drift", "cosine", "diversity")


def run_one(
    experiment: Experiment,
    start: Start,
    rounds: int,
    data: tuple[Dataset, Dataset],
    *,
    pooled: bool = False,
) -> dict[str, Any]:
    """One run, see `outcome`.

    Args:
        pooled: centralised training with as many gradient steps.
    """
    federation = experiment.begin(start, data=data[0])
    federation = centralised(federation) if pooled else federation
    return outcome(trained_while_finite(federation, rounds), start, data[1])


def trained_while_finite(federation: Federation, rounds: int) -> Federation:
    """The federation after so many rounds, or as many as are finite."""
    for _ in while_finite(federation.rounds(rounds)):
        pass
    return federation


def outcome(federation: Federation, start: Start, chooser: Dataset) -> dict[str, Any]:
    """A finished run as plain data: its curves, its final accuracy on the test set and on the held-out examples (the
    chooser's test set), its rounds and bytes, those of the start included."""
    held = Federation(chooser, federation.partition, federation.model, federation.settings, federation.method)
    history = federation.history
    curves = {key: [short(record.metrics.get(key)) for record in history] for key in MEASURES}
    accuracy = held.evaluate(federation.state)["test_accuracy"]
    return {
        "curves": curves,
        "test": short(federation.evaluate()["test_accuracy"]),
        "held_out": short(accuracy),
        "bytes": history[-1].total.bytes + start.bytes,
        "rounds": federation.round + start.rounds,
    }


def table(
    starts: Mapping[str, Sequence[Any]] = STARTS,
    skews: Sequence[str] = tuple(SKEWS),
    *,
    experiment: Experiment = DIGITS,
    rounds: int = ROUNDS,
    grid: Sequence[float] = GRID,
    seeds: Sequence[int] = SEEDS,
    methods: Mapping[str, Mapping[str, Any]] | None = None,
    pooled: bool = True,
    folder: Path | None = None,
) -> list[dict[str, Any]]:
    """Every start, skew and method, its rates searched with all seeds; "pooled" among the skews' names is centralised
    training.

    Returns:
        A row per run: start, skew, method, seed, the rates, and what `run_one` returns.
    """
    rows = []
    data = hold_out(experiment.load_data(), HELD_OUT)
    every = (methods or {"fedavg": {}}).items()
    for (name, steps), skew, (method, options) in product(starts.items(), [*skews, *(["pooled"] * pooled)], every):
        ladders = {"lr": grid} | {key: value for key, value in options.items() if isinstance(value, tuple)}
        fixed = {key: value for key, value in options.items() if key not in ladders}
        base = experiment.replace(method=method, method_options=fixed, **SKEWS.get(skew, SKEWS["IID"]))
        run = partial(_row, base, name, steps, rounds, data, skew == "pooled", folder)
        labels = {"start": name, "skew": skew, "method": method}
        rows += [labels | row for row in tuned(run, ladders, seeds, seeds)]
    return rows


def _row(
    base: Experiment,
    name: str,
    steps: Sequence[Any],
    rounds: int,
    data: tuple[Dataset, Dataset],
    pooled: bool,
    folder: Path | None,
    seed: int,
    rates: Mapping[str, float],
) -> dict[str, Any]:
    """`run_one` of a seed at the rates, kept in the folder."""
    options = {**base.method_options, **{key: rate for key, rate in rates.items() if key != "lr"}}
    one = base.replace(seed=seed, lr=rates["lr"], method_options=options)
    start = one.make_start(steps, name=name, data=data[0], keep=folder is not None)
    make = partial(run_one, one, start, rounds, data, pooled=pooled)
    return once(f"{one.key}-{start.fingerprint}-{rounds}{'-pooled' * pooled}", make, folder)


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
) -> Federation:
    """One of the runs again, with everything a probe needs.

    Args:
        weights: seed of the initial weights, where they are to differ from the run's own.
        order: other values give another order of the batches and nothing else.
    """
    data = hold_out(DIGITS.load_data(), HELD_OUT)[0]
    one = DIGITS.replace(seed=seed, lr=lr, engine=engine, **SKEWS[skew])
    start = one.make_start(STARTS[name], name=name, data=data)
    federation = one.begin(start, data=data)
    model = federation.model
    if weights is not None:
        model = one.replace(seed=weights).begin(start, data=data).model
    settings = one.settings if not order else one.settings.replace(seed=seed + 1000 * order)
    return Federation(data, federation.partition, model, settings, name=f"{name}, {skew}").run(rounds)


def basin(
    seed: int, rates: Mapping[tuple[str, str], float], thetas: int = 21, skew: str = "Dir(0.05)"
) -> dict[str, Any]:
    """Barriers between the final global models of an IID and a skewed run, and of two runs that differ in batch order.

    Four kinds of start: "letters" and "random" share initial weights between the two runs; "different random" does
    not; "batch order" is letters on IID data twice, the noise that a barrier has to exceed.
    """
    grid = [i / (thetas - 1) for i in range(thetas)]
    lines = {}
    for name in ("random", "letters"):
        one, other = (trained(name, where, seed, rates[name, where]) for where in ("IID", skew))
        again = trained(name, "IID", seed, rates[name, "IID"], order=1)
        lines[name] = probes.line(one, one.state, other.state, grid)
        lines[f"{name}, batch order"] = probes.line(one, one.state, again.state, grid)
        if name == "random":
            third = trained(name, skew, seed, rates[name, skew], weights=seed + 100)
            lines["different random"] = probes.line(one, one.state, third.state, grid)
    return {name: {"barrier": line.barrier, **asdict(line)} for name, line in lines.items()}


def rounds_inside(
    name: str, seed: int, lr: float, at: Sequence[int] = (1, 2, 3, 5, 8, 15), skew: str = "Dir(0.05)"
) -> dict[str, Any]:
    """Stability of the aggregation, local against global accuracy, and the gradients at the start of some rounds of one
    run; the curvature before the first."""
    federation = trained(name, skew, seed, lr)
    return {
        "stability": [probes.stability(federation, t) for t in at],
        "local": [probes.local_against_global(federation, t) | {"round": t} for t in at],
        "gradients": [
            probes.client_gradients(federation, federation.state_at(t - 1)).to_json() | {"round": t} for t in at
        ],
        "curvature": probes.curvature(federation, federation.state_at(0), examples=500).top,
        "curves": {key: [short(r.metrics.get(key)) for r in federation.history] for key in MEASURES},
    }


def everything(folder: Path | None = None) -> dict[str, Any]:
    """All runs at size "quick", as `figures/pretraining.json` keeps them."""
    main = {name: STARTS[name] for name in ("random", "letters")}
    others = {name: steps for name, steps in STARTS.items() if name not in main}
    rows = table(main, folder=folder)
    rows += table(others, ("Dir(0.05)",), pooled=False, folder=folder)
    more = {name: options for name, options in METHODS.items() if name != "fedavg"}
    rows += table(main, ("Dir(0.05)",), methods=more, pooled=False, folder=folder)
    longer = table({"random": ()}, ("Dir(0.05)",), rounds=ROUNDS + 2 * SSL_ROUNDS, pooled=False, folder=folder)
    rates = {
        (name, skew): chosen_lr(rows, start=name, skew=skew, method="fedavg")
        for name, skew in product(("random", "letters"), SKEWS)
    }
    basins = {seed: once(f"basin-{seed}", partial(basin, seed, rates), folder) for seed in SEEDS}
    inside: dict[str, Any] = {}
    for name, seed in product(("random", "letters"), SEEDS):
        for label, lr in (("tuned", rates[name, "Dir(0.05)"]), ("equal", 0.1)):
            make = partial(rounds_inside, name, seed, lr)
            inside.setdefault(f"{name}, {label} lr", []).append(once(f"inside-{name}-{seed}-{lr}", make, folder))
    return {
        "experiment": DIGITS.to_json(),
        "rounds": ROUNDS,
        "grids": {"lr": GRID, "server_lr": SERVER_GRID},
        "seeds": list(SEEDS),
        "rows": [_kept(row) for row in rows],
        "longer": [_kept(row) for row in longer],
        "rates": {f"{name}, {skew}": lr for (name, skew), lr in rates.items()},
        "basins": [basins[seed] for seed in SEEDS],
        "inside": inside,
    }


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the accuracy's curve only; the other curves are kept for the runs that are looked into."""
    return row | {"curves": {"test_accuracy": row["curves"]["test_accuracy"]}}


def short(value: float | None) -> float | None:
    """Five digits of a number; None for one that JSON has no word for."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None
