"""The runs of the record of a start from ImageNet: searches of learning rates, and seeds with all that is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from fedlab_core import probes
from fedlab_core.data import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.pretraining.distillation import Distillation, distilled
from fedlab_core.pretraining.kept import Start
from fedlab_core.references import centralised
from fedlab_core.settings import Settings
from fedlab_core.studies.arms import SEARCHED, hold_out, trained
from fedlab_core.studies.tuning import climb
from fedlab_core.studies.units import Results, Stop, Unit, full, sparse

STARTS = ("random", "ImageNet")
SKEW = "Dir(0.1)"
SKEWS: dict[str, dict[str, Any]] = {
    SKEW: {"partition": "dirichlet", "partition_options": {"alpha": 0.1, "min_size": 2}},
    "IID": {"partition": "iid"},
    "pooled": {"partition": "iid"},
}
"""Who holds what; "pooled" is centralised training with as many steps as all clients take together."""
SEEDS = (0, 1, 2, 3, 4)
THETAS = tuple(i / 10 for i in range(11))
CIFAR10 = Experiment(
    "cifar10",
    {"download": False},
    clients=10,
    model="resnet8",
    norm="group",
    settings=Settings(1.0, epochs=2, batch_size=32, evaluate_every=3, engine="loop"),
)


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        unlabelled: training images that the start learns from, out of the task's reach.
        images: handed out to the clients.
        held_out: further images to choose rates by.
        tests: of the test set.
        rounds, search_rounds: of the record's runs, and of those that only choose a rate.
        mixtures: of the clients' models of the last round.
        probe_lr: rate at which clients drift for one round from a given model, the same for both starts.
        level: test accuracy at which drift is compared as well.
        first: exponent i of the rate 10^(i/2) at which each search begins.
    """

    unlabelled: int = 20_000
    images: int = 3000
    held_out: int = 1000
    tests: int = 5000
    rounds: int = 12
    search_rounds: int = 6
    mixtures: int = 12
    probe_lr: float = 0.1
    level: float = 0.2
    first: int = -2
    how: Distillation = Distillation()


SIZE = Size()


def unit(experiment: Experiment, size: Size, start: str, rates: Mapping[str, int], seed: int) -> Unit:
    """The runs of a start under some splits, at rates 10^(i/2); with all splits also what is measured in them."""
    lrs = {skew: float(f"{10 ** (exponent / 2):.3g}") for skew, exponent in rates.items()}
    arm = start if len(rates) == len(SKEWS) else f"{start}, {next(iter(rates))}"
    one = sparse(experiment.replace(seed=seed))
    size = replace(size, rounds=size.search_rounds) if seed == SEARCHED else size
    return Unit(arm, seed, {"experiment": one, "size": asdict(size), "start": start, "rates": lrs})


def plan(
    done: Results, experiment: Experiment = CIFAR10, size: Size = SIZE, seeds: Sequence[int] = SEEDS
) -> list[Unit]:
    """The searches of all rates, then seed by seed both starts."""
    units: list[Unit] = []
    best: dict[str, dict[str, int]] = {start: {} for start in STARTS}
    for skew, start in product(SKEWS, STARTS):

        def searching(exponent: int, _: float, start: str = start, skew: str = skew) -> Unit:
            return unit(experiment, size, start, {skew: exponent}, SEARCHED)

        def score(result: Mapping[str, Any], skew: str = skew) -> float:
            return float(result[skew]["held_out"])

        found, at = climb(size.first, searching, score, done)
        units += found
        if at is not None:
            best[start][skew] = at
    if any(len(rates) < len(SKEWS) for rates in best.values()):
        return units
    return units + [unit(experiment, size, start, best[start], seed) for seed in seeds for start in STARTS]


def prepare(experiment: Experiment, size: Size) -> tuple[Dataset, Dataset, Dataset]:
    """The clients' images, the same with held-out ones as their test set, and those that the start learns from."""
    whole = experiment.load_data().with_validation(size.unlabelled)
    x, y = whole.split("validation")
    rest = replace(whole, validation_x=None, validation_y=None)
    used = rest.subset(size.images + size.held_out, size.tests, seed=experiment.settings.seed)
    return *hold_out(used, size.held_out / len(used.x)), replace(rest, x=x, y=y, groups=None)


def run(settings: Mapping[str, Any], stop: Stop, device: str) -> dict[str, Any]:
    """A unit: by split the curve and the final accuracies; with all splits also drift, a line and mixtures.

    Raises:
        Stopped: it was asked to stop.
    """
    size = Size(**{**settings["size"], "how": Distillation(**settings["size"]["how"])})
    one = full(settings["experiment"]).replace(device=device)
    task, chooser, unlabelled = prepare(one, size)
    random = settings["start"] == "random"
    start = Start("random", {}, {}) if random else distilled(one.architecture, unlabelled, size.how)
    runs, found = {}, {}
    for skew, lr in settings["rates"].items():
        federation = one.replace(lr=lr, **SKEWS[skew]).begin(start, data=task)
        federation = centralised(federation) if skew == "pooled" else federation
        runs[skew] = trained(federation, size.rounds, stop)
        held = Federation(chooser, federation.partition, federation.model, federation.settings)
        seen = [record for record in federation.history if "test_accuracy" in record.metrics]
        found[skew] = {
            "round": [record.round for record in seen],
            "test_accuracy": [_short(record.metrics["test_accuracy"]) for record in seen],
            "test": _short(federation.evaluate()["test_accuracy"]),
            "held_out": _short(held.evaluate(federation.state)["test_accuracy"]),
        }
    return found if len(runs) < len(SKEWS) else found | _inside(runs, found[SKEW], size)


def _inside(runs: Mapping[str, Federation], curve: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Drift and mixtures of the skewed run, and the line from its model to the IID run's."""
    skewed, iid = runs[SKEW], runs["IID"]
    pairs = zip(curve["round"], curve["test_accuracy"], strict=True)
    reached = next((int(at) for at, accuracy in pairs if accuracy >= size.level), None)
    again = 512 if skewed.settings.batch_norm else None
    line = probes.line(skewed, iid.state, skewed.state, THETAS, split="test", recalibrate_with=again)
    mixtures = probes.spread(skewed, skewed.round, count=size.mixtures, recalibrate_with=again)
    return {
        "last": _drift(skewed, skewed.round, size.probe_lr),
        "level": None if reached is None else _drift(skewed, reached, size.probe_lr),
        "mixtures": {key: _short(value) for key, value in mixtures.items()},
        "line": {"barrier": _short(line.barrier)} | {key: [*map(_short, each)] for key, each in asdict(line).items()},
    }


def _drift(federation: Federation, at: int, lr: float) -> dict[str, float]:
    """How far and how much apart clients move in one round from the model after round `at`, at a given rate."""
    metrics = next(iter(federation.fork("probe", at=at, lr=lr).rounds(1))).metrics
    return {"round": at} | {key: _short(metrics[key]) for key in ("drift", "relative_drift", "cosine", "diversity")}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
