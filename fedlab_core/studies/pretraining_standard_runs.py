"""The runs of the pre-training study at size "standard": two data sets, a CNN and a ResNet with batch norm."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab_core import probes
from fedlab_core.data import Dataset
from fedlab_core.data.statistics import channel_statistics
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.pretraining.starts import Fractals, Start, Supervised
from fedlab_core.references import centralised
from fedlab_core.settings import Settings
from fedlab_core.state import State
from fedlab_core.studies.pretraining_rows import Row, chosen_lr, tuned
from fedlab_core.studies.pretraining_runs import GRID, SKEWS, hold_out, outcome, short, trained_while_finite
from fedlab_core.studies.record import once

SEEDS = (0, 1, 2)
HELD_OUT = 0.02  # of the training set, to choose learning rates by
SKEW = "Dir(0.05)"
THETAS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Setup:
    """One data set, model and source.

    Attributes:
        experiment: without partition, seed and learning rate.
        starts: recipes by name: the random one, the source, and further ones that are run on `SKEW` only.
        images, tests: handed out to the clients, and tested with.
        pixels: height and width that larger images are averaged down to.
        mixtures: of the clients' models of the last round.
        recalibrate_with: training examples that statistics of batch normalisation are also re-estimated with.
    """

    experiment: Experiment
    rounds: int
    starts: Mapping[str, tuple[Any, ...]]
    images: int
    tests: int
    pixels: int
    mixtures: int = 20
    recalibrate_with: int | None = None

    @property
    def source(self) -> str:
        """The start that is compared with the random one."""
        return list(self.starts)[1]


_SETTINGS = Settings(1.0, epochs=2, batch_size=32, evaluate_every=2, channels_last=True)
SETUPS = {
    "mnist": Setup(
        Experiment("mnist", clients=10, model="small_cnn", settings=_SETTINGS),
        20,
        {
            "random": (),
            "letters": (Supervised(options={"size": 28, "per_class": 150}, epochs=8, lr=0.05),),
            "fractal pairs": (Fractals("pairs", images=4096, epochs=5),),
        },
        images=6000,
        tests=2000,
        pixels=28,
    ),
    "cifar10": Setup(
        Experiment(
            "cifar10", clients=10, model="resnet8", norm="batch", settings=_SETTINGS.replace(batch_norm="average")
        ),
        8,
        {
            "random": (),
            "Caltech-101": (Supervised("caltech101", {"size": 16, "channels": 3}, epochs=6, lr=0.05),),
        },
        images=1500,
        tests=1000,
        pixels=16,
        mixtures=10,
        recalibrate_with=512,
    ),
}


def prepare(setup: Setup) -> tuple[Dataset, Dataset]:
    """The images to hand out and to test with, drawn at random; and the same with the held-out 2 % of all training
    images as its test set."""
    rest, held = hold_out(setup.experiment.load_data(), HELD_OUT)
    used = rest.subset(setup.images, setup.tests)
    factor = used.input_shape[1] // setup.pixels
    x, test_x, held_x = (_averaged(images, factor) for images in (used.x, used.test_x, held.test_x))
    mean, std = channel_statistics(x)
    used = replace(used, x=x, test_x=test_x, mean=mean, std=std)
    return used, replace(used, test_x=held_x, test_y=held.test_y)


def _averaged(images: Tensor, factor: int) -> Tensor:
    """uint8 (n, channels, height, width): means of squares of `factor` pixels."""
    return images if factor == 1 else F.avg_pool2d(images.float(), factor).round().to(torch.uint8)


@dataclass(frozen=True)
class Runner:
    """The runs of one setup, each made once and kept, with its final state beside it, in a folder."""

    setup: Setup
    data: tuple[Dataset, Dataset]
    folder: Path

    def begin(self, start: str, skew: str, seed: int, lr: float, weights: int) -> tuple[str, Federation, Start]:
        """A federation that is ready to run, its start, and the key that its results are kept under.

        Args:
            weights: seed of the initial weights.
        """
        one = self.setup.experiment.replace(seed=seed, lr=lr, **SKEWS.get(skew, SKEWS["IID"]))
        drawn = one.replace(seed=weights)
        made = drawn.make_start(self.setup.starts[start], name=start, data=self.data[0])
        model = drawn.begin(made, data=self.data[0]).model
        federation = Federation(self.data[0], one.make_partition(self.data[0]), model, one.settings)
        federation = centralised(federation) if skew == "pooled" else federation
        parts = ("standard", one.key, made.fingerprint, str(weights), str(self.setup.rounds), skew)
        return "-".join(parts), federation, made

    def run(
        self, start: str, skew: str, seed: int, rates: Mapping[str, float], weights: int | None = None
    ) -> dict[str, Any]:
        """A run's `outcome` and, unless centralised, the spread of mixtures in its last round."""
        key, federation, made = self.begin(start, skew, seed, rates["lr"], seed if weights is None else weights)

        def make() -> dict[str, Any]:
            result = outcome(trained_while_finite(federation, self.setup.rounds), made, self.data[1])
            if skew != "pooled":
                again = self.setup.recalibrate_with
                count, at = self.setup.mixtures, federation.round
                spread = probes.spread(federation, at, count=count, recalibrate_with=again)
                result["mixtures"] = {key: short(value) for key, value in spread.items()}
            self.folder.mkdir(parents=True, exist_ok=True)
            final = {name: tensor.contiguous() for name, tensor in federation.state.items()}
            safetensors.torch.save_file(final, self.folder / f"{key}.safetensors")
            print(f"{start}, {skew}, seed {seed}, lr {rates['lr']:g}: {result['test']:.4f}", flush=True)
            return result

        return once(key, make, self.folder)

    def state(self, start: str, skew: str, seed: int, lr: float, weights: int | None = None) -> State:
        """The final state of a run."""
        self.run(start, skew, seed, {"lr": lr}, weights)
        key, _, _ = self.begin(start, skew, seed, lr, seed if weights is None else weights)
        return safetensors.torch.load_file(self.folder / f"{key}.safetensors")

    def lines(self, rows: Sequence[Row], seed: int) -> dict[str, Any]:
        """Test loss on the lines from the IID to the skewed final model: from each start, and from different random
        weights; with batch normalisation also with its statistics re-estimated at every point."""
        rates = {
            (start, skew): chosen_lr(rows, start=start, skew=skew)
            for start, skew in product(("random", self.setup.source), ("IID", SKEW))
        }
        ends = {
            start: [self.state(start, skew, seed, rates[start, skew]) for skew in ("IID", SKEW)]
            for start in ("random", self.setup.source)
        }
        apart = self.state("random", SKEW, seed, rates["random", SKEW], seed + 100)
        ends["different random"] = [ends["random"][0], apart]
        _, federation, _ = self.begin("random", "IID", seed, 0.1, seed)
        found = {}
        for name, (one, other) in ends.items():
            for again in dict.fromkeys((None, self.setup.recalibrate_with)):
                line = probes.line(federation, one, other, THETAS, split="test", recalibrate_with=again)
                label = name if again is None else f"{name}, re-estimated"
                found[label] = {"barrier": line.barrier, **asdict(line)}
        return found


def runs(setup: Setup, folder: Path) -> dict[str, Any]:
    """All runs of a setup: the random start and the source on every skew, further starts on `SKEW` only; rates are
    searched in the grid of the quick study, with the first seed."""
    runner, rows = Runner(setup, prepare(setup), folder), []
    for start, skew in product(setup.starts, ("IID", SKEW, "pooled")):
        if start in ("random", setup.source) or skew == SKEW:
            found = tuned(partial(runner.run, start, skew), {"lr": GRID}, SEEDS, SEEDS[:1])
            rows += [{"start": start, "skew": skew, "method": "fedavg"} | row for row in found]
    lines = [runner.lines(rows, seed) for seed in SEEDS]
    return {
        "experiment": setup.experiment.to_json(),
        "starts": {name: [asdict(step) for step in steps] for name, steps in setup.starts.items()},
        "source": setup.source,
        "data": runner.data[0].notes,
        "pixels": setup.pixels,
        "rounds": setup.rounds,
        "grid": GRID,
        "seeds": SEEDS,
        "rows": rows,
        "lines": lines,
    }
