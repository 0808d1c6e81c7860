"""Why is there a gap on MNIST and on CIFAR-10? The cells of two attributions, each a unit of the queue of records."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.experiment import Experiment
from fedlab_core.local.work import Stopped
from fedlab_core.plots import attribution as plots_attribution
from fedlab_core.probes.attribution import Attribution, gathered, run_cell, said
from fedlab_core.probes.cells import CAUSES, subsets
from fedlab_core.settings import Settings
from fedlab_core.studies.claim import Claim, Range, headlined
from fedlab_core.studies.record import recorded
from fedlab_core.studies.units import Record, Results, Stop, Unit, full, sparse

SEEDS = (0, 1, 2, 3, 4)
SETTINGS = Settings(
    fraction=0.5,
    epochs=None,
    steps=10,
    batch_size=16,
    lr=0.1,
    batch_norm="average",
    drop_last=True,
    evaluate_every=5,
    engine="loop",
)
SKEWED: dict[str, Any] = {"partition": "shards", "partition_options": {"per_client": 2}, "clients": 10, "norm": "batch"}
MNIST = Experiment("mnist", {"download": False, "examples": 10_000}, model="small_cnn", settings=SETTINGS, **SKEWED)
CIFAR10 = Experiment(
    "cifar10", {"download": False, "examples": 10_000}, model="resnet8", settings=SETTINGS.replace(evaluate_every=10),
    **SKEWED,
)  # fmt: skip


def plan(done: Results, experiment: Experiment, rounds: int) -> list[Unit]:
    """All cells of a seed before the next seed, so that each finished seed is a whole attribution."""
    return [unit(experiment, rounds, seed, on) for seed in SEEDS for on in subsets(CAUSES)]


def unit(experiment: Experiment, rounds: int, seed: int, on: Sequence[str]) -> Unit:
    """One cell of one seed."""
    settings = {"experiment": sparse(experiment.replace(seed=seed)), "on": list(on), "rounds": rounds}
    return Unit(said(on), seed, settings)


def run(settings: Mapping[str, Any], stop: Stop, device: str) -> dict[str, Any]:
    """A unit: what its cell measured."""
    federation = full(settings["experiment"]).replace(device=device).build()
    try:
        return run_cell(federation, settings["on"], settings["rounds"], stop=stop)
    except InterruptedError as error:
        raise Stopped from error


def attribution(data: Mapping[str, Any] | None) -> Attribution | None:
    """The attribution of a record's seeds of which every cell is there; None if there is none."""
    units = {(one["seed"], one["arm"]): one for one in (data or {}).get("units", [])}
    cells = subsets(CAUSES)
    whole = [seed for seed in SEEDS if all((seed, said(on)) in units for on in cells)]
    if not whole:
        return None
    lr = full(units[whole[0], said(())]["settings"]["experiment"]).settings.lr
    found = [[units[seed, said(on)]["result"] for on in cells] for seed in whole]
    return gathered(CAUSES, whole, found, [lr] * len(cells))


def draw(data: Mapping[str, Any]) -> Figure:
    """Waterfalls of accuracy and loss, the cells, and the parts over rounds.

    Raises:
        ValueError: no seed is whole.
    """
    if (found := attribution(data)) is None:
        raise ValueError(f"data: {len(data['units'])} units, accepted: all cells of at least one seed")
    fig, axes = plots.figure(2, 2, (9.6, 8))
    plots_attribution.waterfall(axes[0, 0], found)
    plots_attribution.waterfall(axes[0, 1], found, "test_loss")
    plots_attribution.cells(axes[1, 0], found)
    plots_attribution.over_rounds(axes[1, 1], found)
    fig.suptitle(f"{data['title']} ({len(found.seeds)} of {len(SEEDS)} seeds)")
    return fig


def _record(name: str, title: str, experiment: Experiment, rounds: int) -> Record:
    return Record(name, title, partial(plan, experiment=experiment, rounds=rounds), run, draw, SEEDS)


RECORDS = (
    _record("attribution_mnist", "Why is there a gap? MNIST, CNN, two shards a client, 5 of 10 clients", MNIST, 30),
    _record("attribution_cifar10", "Why is there a gap? CIFAR-10, ResNet-8, two shards a client, 5 of 10", CIFAR10, 40),
)

REGISTERED = {"mnist": "3d1d7eb, with the record known", "cifar10": "3d1d7eb, before the record"}
_CLAIMS = {
    "gap": ("federated training ends below centralised training", "the gap", Range(high=-0.05)),
    "gate": ("skew alone does nothing: it acts through the other causes", "skew alone", Range(-0.02, 0.02)),
    "skew": (
        "skew, which does nothing alone, has the largest part of the gap",
        "skew minus the next part",
        Range(high=0),
    ),
    "statistics": ("batch-norm statistics of single clients cost accuracy", "part of statistics", Range(high=0)),
}
"""Rows by the end of their id: text, headline, expected range in accuracy."""


def claim(name: str, experiment: str) -> Claim:
    """One row, from the seeds that are whole."""
    (text, headline, expected), record = _CLAIMS[name], RECORDS[experiment == "cifar10"]
    measured: dict[str, Sequence[float] | None] = {headline: None}
    references: dict[str, float] = {}
    seeds: tuple[int, ...] = ()
    if (found := attribution(recorded(record.name))) is not None:
        seeds, gap, parts = found.seeds, found.gap()[:, -1], found.parts()[..., -1]
        own, others = parts[:, 0], parts[:, 1:].amin(1)
        none = found.cell(())[:, -1]
        values = {"the gap": gap, "skew alone": found.cell(("skew",))[:, -1] - none}
        values |= {"skew minus the next part": own - others}
        values |= {f"part of {cause}": parts[:, i] for i, cause in enumerate(CAUSES)}
        measured |= {name: value.tolist() for name, value in values.items()}
        references = {"chance": 0.1, "reached": fmean(none.tolist())}
    return headlined(
        f"attribution.{experiment}_{name}",
        f"{record.title}: {text}",
        expected,
        measured,
        headline,
        source="ours: no earlier work that splits the gap like this is known to us",
        size="standard",
        seeds=seeds,
        registered=REGISTERED[experiment],
        test_size=10_000,
        references=references,
    )


CLAIMS: dict[str, Callable[[], Claim]] = {
    f"attribution.{experiment}_{name}": partial(claim, name, experiment)
    for experiment in REGISTERED
    for name in _CLAIMS
}
