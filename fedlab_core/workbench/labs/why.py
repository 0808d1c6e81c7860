"""Notebook 08: why is there a gap?"""

from collections.abc import Iterator, Mapping
from typing import Any

from fedlab_core.experiment import Experiment
from fedlab_core.plots import attribution as plots_attribution
from fedlab_core.probes.attribution import Attribution, cells_of, curves, gathered
from fedlab_core.probes.cells import CAUSES
from fedlab_core.studies.attribution import SETTINGS
from fedlab_core.workbench.plan import Plan, Result

DIGITS = Experiment(
    partition="shards",
    partition_options={"per_client": 2},
    clients=10,
    model="mlp",
    norm="batch",
    settings=SETTINGS.replace(weighting="uniform", evaluate_every=1),
)
"""Ten clients with two label shards each, five of them per round; every setting that a cell can express."""


def growing(experiment: Experiment) -> Iterator[Attribution]:
    """All cells round by round, with one seed."""
    federation = experiment.build()  # whose clients a replay shows
    runs = cells_of(federation)
    while True:
        found = [curves(run.run(1)) for run in runs]
        yield gathered(CAUSES, (experiment.settings.seed,), [found], [experiment.settings.lr] * len(runs))


def federated(m: int, E: int, lr: float, labels: int, seed: int) -> Experiment:
    """The cell with all causes on: m of ten clients, E local steps."""
    return DIGITS.replace(fraction=m / 10, steps=E, lr=lr, partition_options={"per_client": labels}, seed=seed)


def causes(**settings: Any) -> Mapping[str, Iterator[Attribution]]:
    """The causes of the gap of that run."""
    return {"causes": growing(federated(**settings))}


def draw_causes(figure: Any, result: Result) -> None:
    """The waterfall, the cells behind it, and when each cause bites."""
    axes = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    if (found := result.last()) is not None:
        plots_attribution.waterfall(axes[0], found)
        plots_attribution.cells(axes[1], found)
        plots_attribution.over_rounds(axes[2], found)


def read_causes(result: Result) -> str:
    """The gap and its parts in points."""
    if (found := result.last()) is None:
        return "No round yet."
    parts = zip(found.causes, found.parts()[0, :, -1].tolist(), strict=True)
    said = ", ".join(f"{cause} {100 * part:+.1f}" for cause, part in parts)
    gap = 100 * found.gap()[0, -1].item()
    return f"Round {found.rounds[-1]}, one seed: {gap:+.1f} points of accuracy = {said}."


WHY = Plan(
    "Why is there a gap?",
    causes,
    {"m": (10, 5, 2, 1), "E": (1, 5, 10, 20), "labels": (1, 2, 5), "lr": (0.03, 0.1, 0.3), "seed": (0, 1, 2)},
    {"m": 5, "E": 10, "labels": 2, "lr": 0.1},
    rounds=6,
    draw=draw_causes,
    sentence=read_causes,
    experiment=federated,
    size=(10.6, 3.9),
    about={
        "m": "Clients that take part in a round, of ten",
        "E": "Local steps between two averages",
        "labels": "Label shards that a client holds: pieces of the examples in order of their labels",
    },
)
