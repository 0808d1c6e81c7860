"""The runs of the pre-training study on MNIST, with a CNN from letters and from fractals, and on CIFAR-10, with a
batch-normalised ResNet-8 from Caltech-101.

Learning rates are the best by the mean accuracy on held-out examples with the first seed, found by climbing the grids
from their middle.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import product
from typing import Any

from matplotlib.figure import Figure

from fedlab_core import plots, probes
from fedlab_core.data import Dataset
from fedlab_core.data.prepared import averaged
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.plots import probes as plots_probes
from fedlab_core.settings import Settings
from fedlab_core.studies import arms
from fedlab_core.studies.arms import Arm, Comparison, finals, grouped, hold_out
from fedlab_core.studies.pretraining_runs import SEEDS, SKEW, SKEWS, short, start_of, trained
from fedlab_core.studies.units import Stop, full

SOURCES = {"mnist": "letters", "cifar10": "Caltech-101"}
MNIST = Experiment(
    "mnist",
    clients=10,
    model="small_cnn",
    settings=Settings(1.0, epochs=2, batch_size=32, evaluate_every=2, channels_last=True, engine="loop"),
)


def prepare(experiment: Experiment, held_out: float, images: int, tests: int, pixels: int) -> tuple[Dataset, Dataset]:
    """The images to hand out and to test with, drawn at random and averaged down to so many pixels; and the images to
    hand out once more, with the held-out ones as their test set, to choose rates by."""
    rest, held = hold_out(experiment.load_data(), held_out)
    used = rest.subset(images, tests)
    chooser = replace(used, test_x=held.test_x, test_y=held.test_y, test_groups=None)
    return averaged(used, pixels), averaged(chooser, pixels)


def make_standard(settings: Mapping[str, Any], stop: Stop, device: str) -> dict[str, Any]:
    """A unit on MNIST or CIFAR-10: a run and, unless centralised, the spread of mixtures of the clients' models of its
    last round; or lines between final models."""
    one, again = full(settings["experiment"]).replace(device=device), settings["again"]
    data, chooser = prepare(one, settings["held_out"], **settings["size"])
    if settings.get("look") == "lines":
        return lines(one, settings["rates"], settings["rounds"], data, again)
    found, federation = arms.compete(one, start_of(one, settings["from"], data), data, chooser, settings, stop)
    if not settings.get("pooled"):
        spread = probes.spread(federation, federation.round, count=settings["mixtures"], recalibrate_with=again)
        found["mixtures"] = {key: short(value) for key, value in spread.items()}
    return found


def lines(
    experiment: Experiment, rates: Mapping[str, float], rounds: int, data: Dataset, again: int | None
) -> dict[str, Any]:
    """Test loss on the lines from the IID to the skewed final model, from each start and from different random weights;
    with batch normalisation also with its statistics re-estimated at every point.

    Args:
        rates: by "start, skew".
        again: training examples that statistics are re-estimated with; None for none.
    """
    seed, ends = experiment.settings.seed, {}

    def final(name: str, skew: str, weights: int | None = None) -> Federation:
        lr = rates[f"{name}, {skew}"]
        return trained(name, skew, seed, lr, rounds, weights=weights, experiment=experiment, data=data)

    for name in dict.fromkeys(key.rpartition(", ")[0] for key in rates):
        ends[name] = [final(name, skew) for skew in ("IID", SKEW)]
    ends["different random"] = [ends["random"][0], final("random", SKEW, seed + 100)]
    thetas, found = tuple(i / 10 for i in range(11)), {}
    for (name, (one, other)), statistics in product(ends.items(), dict.fromkeys((None, again))):
        line = probes.line(one, one.state, other.state, thetas, split="test", recalibrate_with=statistics)
        label = name if statistics is None else f"{name}, re-estimated"
        found[label] = {"barrier": line.barrier, **asdict(line)}
    return found


def draw_standard(data: Mapping[str, Any]) -> Figure:
    """Per data set accuracy by start and skew, and lines between models of one seed."""
    sets = grouped(data)
    fig, axes = plots.figure(len(sets), 2, (9, 3.4 * len(sets)))
    for row, (name, runs) in zip(axes, sets.items(), strict=True):
        starts, shown = ("random", SOURCES[name]), runs["lines"][0]
        accuracy = {s: {skew: finals(runs, f"{s}, {skew}") for skew in ("IID", SKEW)} for s in starts}
        plots_probes.by_skew(row[0], accuracy, {s: finals(runs, f"{s}, pooled") for s in starts})
        plots_probes.loss_lines(row[1], shown)
        row[0].set_title(name)
        row[1].set(title=f"{name}, seed 0", ylabel="test loss (nats)")
        row[1].set_ylim(0, 1.15 * row[1].get_ylim()[1] if len(shown) > 3 else None)  # room for the legend
        if len(shown) > 3:  # the room is below the lines then
            row[1].legend(loc="lower center")
    return fig


def _arms(name: str, changes: Mapping[str, Any], rates: Mapping[str, float], **more: Any) -> dict[str, Arm]:
    """A run by "start, skew", and the lines between them."""
    found = {}
    for key, lr in rates.items():
        start, _, skew = key.rpartition(", ")
        pooled = {"pooled": True} if skew == "pooled" else {}
        where = {**changes, **SKEWS.get(skew, SKEWS["IID"])}
        found[f"{name}: {key}"] = Arm(where, lr=lr, more={**more, "from": start, **pooled})
    sides = {key: lr for key, lr in rates.items() if key.startswith(("random", SOURCES[name])) and "pooled" not in key}
    return found | {f"{name}: lines": Arm(changes, lr=0.1, more={**more, "look": "lines", "rates": sides})}


_RATES = {"mnist": (0.3, 0.3, 0.1, 0.1, 0.1, 0.1), "cifar10": (1.0, 1.0, 0.3, 0.3, 1.0, 0.03)}
_MAIN = {
    name: dict(zip((f"{s}, {k}" for s in ("random", SOURCES[name]) for k in ("IID", SKEW, "pooled")), lrs, strict=True))
    for name, lrs in _RATES.items()
}
_CIFAR = {"dataset": "cifar10", "model": "resnet8", "norm": "batch", "batch_norm": "average"}
_SIZES = {
    "mnist": {"images": 6000, "tests": 2000, "pixels": 28},
    "cifar10": {"images": 1500, "tests": 1000, "pixels": 16},
}
_MNIST = {"size": _SIZES["mnist"], "mixtures": 20, "again": None}
STANDARD = Comparison(
    "pretraining_standard",
    "MNIST with a CNN, CIFAR-10 with a ResNet-8, 10 clients",
    MNIST,
    20,
    _arms("mnist", {}, _MAIN["mnist"] | {f"fractal pairs, {SKEW}": 0.03}, **_MNIST)
    | _arms("cifar10", _CIFAR, _MAIN["cifar10"], size=_SIZES["cifar10"], mixtures=10, again=512, rounds=8),
    SEEDS,
    0.02,
    make=make_standard,
    picture=draw_standard,
)
