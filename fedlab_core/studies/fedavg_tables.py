"""The 2NN rows of McMahan et al. (2017), tables 1 and 4, at their size: rounds to 97 % on MNIST, beside the paper's.

The paper does not say how pixels are scaled; here they are centred, (x - 0.5) / 1, which brings its numbers back
(standardised pixels need about a third of the rounds). The learning rate of each row is searched with a seed of its
own, on the rounds to the target, as the paper does, on a grid with steps of 10^(1/3) that has no edge.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.experiment import Experiment
from fedlab_core.intervals import half_width
from fedlab_core.settings import Settings
from fedlab_core.studies import tuning
from fedlab_core.studies.arms import SEARCHED
from fedlab_core.studies.claim import Claim, Measured, Range, headlined
from fedlab_core.studies.record import recorded
from fedlab_core.studies.statistics import ratios
from fedlab_core.studies.units import Record, Results, Stop, Unit, full, sparse

MNIST = Experiment(
    "mnist",
    {"download": False, "scaling": "centred"},
    clients=100,
    settings=Settings(fraction=0.1, epochs=1, batch_size=10, engine="auto"),
)
TARGET, SEEDS = 0.97, (0, 1, 2, 3, 4)
TOLERANCE = 0.25


@dataclass(frozen=True)
class Row:
    """A cell of the paper's tables.

    Attributes:
        partition: "iid" or "shards" (two shards a client).
        fraction: C; 0 is one client a round.
        epochs, batch: E and B; None is all of a client's examples.
        paper: its rounds, of table 1 and of table 4 where both have the cell.
        start: exponent i of the rate 10^(i/3) at which the search begins.
    """

    partition: str
    fraction: float
    epochs: int
    batch: int | None
    paper: tuple[int, ...]
    start: int = -3

    @property
    def name(self) -> str:
        """What the arm is called."""
        label = "IID" if self.partition == "iid" else "2 shards"
        batch = "all" if self.batch is None else self.batch
        sgd = " (FedSGD)" if self.epochs == 1 and self.batch is None else ""
        return f"{label}, C={self.fraction:g}, E={self.epochs}, B={batch}{sgd}"

    @property
    def experiment(self) -> Experiment:
        """The experiment without seed and learning rate; long runs are evaluated every fifth round."""
        every = 1 if max(self.paper) < 300 else 5
        return MNIST.replace(
            partition=self.partition,
            fraction=self.fraction,
            epochs=self.epochs,
            batch_size=self.batch,
            evaluate_every=every,
        )

    @property
    def most(self) -> int:
        """Rounds after which a run counts as not reaching the target."""
        return 2 * max(self.paper)

    @property
    def range(self) -> Range:
        """The paper's rounds, 25 % more or less."""
        return Range((1 - TOLERANCE) * min(self.paper), (1 + TOLERANCE) * max(self.paper))


ROWS = (
    Row("iid", 0.1, 1, 10, (87, 92)),
    Row("iid", 0.1, 10, 10, (34,)),
    Row("iid", 0.0, 1, 10, (316,)),
    Row("shards", 0.1, 1, 10, (664, 831)),
    Row("iid", 0.1, 1, None, (1474, 1468), -2),
    Row("iid", 0.1, 1, 50, (144,), -2),
    Row("iid", 0.2, 1, 10, (77,)),
    Row("iid", 0.1, 20, None, (92,), -2),
    Row("iid", 0.1, 10, None, (156,), -2),
    Row("iid", 0.1, 10, 50, (45,)),
    Row("shards", 0.1, 10, 10, (497,)),
    Row("iid", 0.5, 1, 10, (75,)),
    Row("iid", 1.0, 1, 10, (70,)),
    Row("iid", 0.1, 20, 50, (39,)),
    Row("iid", 0.1, 20, 10, (32,)),
    Row("iid", 0.0, 1, None, (1455,), -2),
    Row("iid", 0.2, 1, None, (1658,), -2),
    Row("shards", 0.1, 1, None, (1796, 1817), -2),
    Row("shards", 0.1, 10, None, (1100,), -2),
    Row("shards", 0.1, 1, 50, (1183,), -2),
    Row("shards", 0.1, 20, None, (957,), -2),
    Row("shards", 0.1, 10, 50, (881,)),
    Row("shards", 0.2, 1, 10, (619,)),
    Row("shards", 0.0, 1, 10, (3275,)),
    Row("shards", 0.5, 1, 10, (443,)),
    Row("shards", 0.1, 20, 50, (835,)),
    Row("shards", 0.1, 20, 10, (738,)),
    Row("shards", 1.0, 1, 10, (380,)),
    Row("shards", 0.2, 1, None, (1528,), -2),
    Row("shards", 0.0, 1, None, (4278,), -2),
)
"""Table 1 (2NN, E = 1) and table 4 in the order in which they are run, the dear ones last. The five runs of
table 1 that did not arrive in the paper are left out."""


def unit(row: Row, exponent: int, seed: int, most: int) -> Unit:
    """One run at the rate 10^(exponent / 3)."""
    one = row.experiment.replace(lr=float(f"{10 ** (exponent / 3):.3g}"), seed=seed)
    return Unit(row.name, seed, {"experiment": sparse(one), "target": TARGET, "most": most})


def run(settings: Mapping[str, Any], stop: Stop, device: str) -> dict[str, Any]:
    """A unit: rounds to the target, and the curve."""
    one = full(settings["experiment"]).replace(device=device)
    return tuning.run(one, settings["target"], settings["most"], stop=stop)


def searched(row: Row, done: Results) -> tuple[list[Unit], int | None]:
    """The search of a row's learning rate; a rate is given up once it needs more rounds than the best."""

    def one(exponent: int, best: float) -> Unit:
        return unit(row, exponent, SEARCHED, row.most if math.isinf(best) else math.ceil(-best))

    return tuning.climb(row.start, one, lambda result: -_reached(result), done)


def plan(done: Results, rows: Sequence[Row] = ROWS, seeds: Sequence[int] = SEEDS) -> list[Unit]:
    """The search of each row, then its seeds at the best rate."""
    units = []
    for row in rows:
        found, best = searched(row, done)
        units += found
        if best is not None:
            units += [unit(row, best, seed, row.most) for seed in seeds]
    return units


def rounds(data: Mapping[str, Any] | None, row: Row) -> list[float]:
    """Rounds to the target of the record's seeds that are there, in their order."""
    units = [one for one in (data or {}).get("units", []) if one["arm"] == row.name and one["seed"] in SEEDS]
    return [_reached(one["result"]) for one in sorted(units, key=lambda one: one["seed"])]


def draw(data: Mapping[str, Any]) -> Figure:
    """Ours against the paper's, one point per row with its 95 % interval; the band is 25 % around the paper's."""
    fig, axes = plots.figure(1, 1, (6.2, 4.6))
    ax = axes[0, 0]
    for index, (partition, label) in enumerate((("iid", "IID"), ("shards", "2 shards"))):
        for row in (row for row in ROWS if row.partition == partition):
            values, paper = rounds(data, row), sum(row.paper) / len(row.paper)
            if not values or not all(map(math.isfinite, values)):
                continue
            look = {"fmt": {None: "s", 10: "o", 50: "^"}[row.batch], "color": plots.OKABE_ITO[index]}
            ax.errorbar(paper, fmean(values), half_width(values), **look, markersize=5, elinewidth=1)
        ax.plot([], [], "o", color=plots.OKABE_ITO[index], label=label)
    for marker, name in (("o", "B = 10"), ("^", "B = 50"), ("s", "B = all")):
        ax.plot([], [], marker, color="0.5", label=name)
    low, high = 15.0, 6000.0
    ax.fill_between([low, high], [0.75 * low, 0.75 * high], [1.25 * low, 1.25 * high], color="0.9", label="within 25 %")
    ax.plot([low, high], [low, high], color="0.5", linewidth=0.8)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    ax.set(xlabel="rounds in the paper", ylabel="rounds here (mean, 95 % interval)")
    ax.legend(loc="upper left")
    complete = sum(len(rounds(data, row)) == len(SEEDS) for row in ROWS)
    ax.set_title(f"{data['title']}\n{complete} of {len(ROWS)} rows with all {len(SEEDS)} seeds")
    return fig


RECORD = Record("fedavg_tables", "MNIST, 2NN to 97 %: tables 1 and 4 of McMahan et al.", plan, run, draw, SEEDS)
BY_NAME = {row.name: row for row in ROWS}
HEADLINES = {
    "rounds_iid": "IID, C=0.1, E=1, B=10",
    "rounds_shards": "2 shards, C=0.1, E=1, B=10",
    "one_client": "IID, C=0, E=1, B=10",
    "more_work": "IID, C=0.1, E=10, B=10",
    "more_work_shards": "2 shards, C=0.1, E=10, B=10",
    "fedsgd": "IID, C=0.1, E=1, B=all (FedSGD)",
    "fedsgd_shards": "2 shards, C=0.1, E=1, B=all (FedSGD)",
}
"""Claims by the end of their id: the row that each is about."""
REGISTERED = "49bbd53, before the record (a pilot of three seeds had been seen)"


def row_claim(name: str) -> Claim:
    """Rounds of one row as in the paper, within 25 %."""
    row, data = BY_NAME[HEADLINES[name]], recorded(RECORD.name)
    values = rounds(data, row)
    return headlined(
        f"fedavg.{name}",
        f"MNIST, centred pixels, 2NN, 100 clients, {row.name}: as many rounds as in the paper, within 25 %",
        row.range,
        {"rounds to 97 %": values or None, "the paper's rounds": fmean(row.paper)},
        source="McMahan et al. 2017, tables 1 and 4 (no spread is given)",
        size="paper",
        seeds=SEEDS[: len(values)],
        registered=REGISTERED,
        test_size=10_000,
        references={"chance": 0.1, "reached": TARGET},
    )


def speed_up_claim() -> Claim:
    """The abstract's 10 to 100 times fewer rounds than synchronised SGD, IID."""
    data = recorded(RECORD.name)
    measured: dict[str, Measured] = {}
    for slow, fast in (("fedsgd", "more_work"), ("fedsgd", "rounds_iid"), ("fedsgd_shards", "more_work_shards")):
        pair = [rounds(data, BY_NAME[HEADLINES[name]]) for name in (slow, fast)]
        measured[HEADLINES[fast]] = ratios(*pair) if pair[0] and len(pair[0]) == len(pair[1]) else None
    headline = HEADLINES["more_work"]
    return headlined(
        "fedavg.speed_up",
        "MNIST, centred pixels, 2NN, C=0.1: FedAvg needs at least ten times fewer rounds than FedSGD on the same split",
        Range(low=10),
        measured,
        headline,
        source="McMahan et al. 2017, abstract: 10 to 100 times; table 4: 43.2 for this row, 3.7 on 2 shards",
        size="paper",
        seeds=SEEDS if measured[headline] else (),
        registered=REGISTERED,
        test_size=10_000,
    )


CLAIMS: dict[str, Callable[[], Claim]] = {
    **{f"fedavg.{name}": partial(row_claim, name) for name in HEADLINES},
    "fedavg.speed_up": speed_up_claim,
}


def _reached(result: Mapping[str, Any]) -> float:
    return math.inf if result["reached"] is None else result["reached"]
