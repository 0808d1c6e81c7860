"""Accuracy against the share of clients that are lost or lie, per aggregator, and where each breaks."""

from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.experiment import Experiment
from fedlab_core.failures import Failures
from fedlab_core.intervals import half_width
from fedlab_core.settings import Settings
from fedlab_core.studies.claim import Claim, Range, headlined
from fedlab_core.studies.record import recorded
from fedlab_core.studies.statistics import differences
from fedlab_core.studies.units import Record, Results, Stop, Unit, full, heeding, sparse

SEEDS, ROUNDS = (0, 1, 2, 3, 4), 15
BASE = Experiment(
    "digits", partition="dirichlet", partition_options={"alpha": 1.0}, clients=20,
    settings=Settings(1.0, epochs=1, batch_size=16, lr=0.1, evaluate_every=ROUNDS, engine="loop"),
)  # fmt: skip
AGGREGATORS: dict[str, dict[str, Any]] = {
    "mean": {},
    "median": {"method": "median"},
    "trimmed mean": {"method": "trimmed_mean", "method_options": {"trim": 0.2}},
    "geometric median": {"method": "geometric_median"},
    "Krum": {"method": "krum", "method_options": {"liars": 8}},
    "norm clipping": {"method": "norm_clipping"},
}
SHARES: dict[str, tuple[float, ...]] = {
    "lost": (0.0, 0.6, 0.9),
    "updates flipped": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    "labels flipped": (0.0, 0.2, 0.4, 0.5),
}
"""What fails, and for which shares: of rounds in which a client is cut off, or of clients that always lie."""
CHANCE, TESTS = 0.1, 360


def failures(how: str, share: float) -> Failures | None:
    """What goes wrong in a run."""
    if not share:
        return None
    if how == "lost":
        return Failures(lost=share)
    lie = "sign_flipped" if how == "updates flipped" else "labels_flipped"
    return Failures(liars=share, lie=lie)


CASES = {f"{how} {share:g}" if share else "none": (how, share) for how, shares in SHARES.items() for share in shares}
"""What can go wrong, each once, by what it is called."""


def unit(aggregator: str, seed: int) -> Unit:
    """The runs of an aggregator with one seed: one for each of `CASES`."""
    one = BASE.replace(**AGGREGATORS[aggregator]).replace(seed=seed)
    runs = {name: sparse(one.replace(failures=failures(*case))) for name, case in CASES.items()}
    return Unit(aggregator, seed, {"runs": runs, "rounds": ROUNDS})


def plan(done: Results) -> list[Unit]:
    """All runs of a seed before the next seed."""
    return [unit(name, seed) for seed in SEEDS for name in AGGREGATORS]


def run(settings: Mapping[str, Any], stop: Stop, device: str) -> dict[str, Any]:
    """A unit: by case the accuracy after the last round; that of a model which is not finite is chance."""
    found = {}
    for name, changes in settings["runs"].items():
        federation = full(changes).replace(device=device, non_finite="keep").build()
        for _ in heeding(federation.rounds(settings["rounds"]), stop):
            pass
        found[name] = round(federation.history[-1].metrics["test_accuracy"], 4)
    return found


def finals(data: Mapping[str, Any] | None, aggregator: str, case: str) -> list[float]:
    """Final accuracies, in the order of the seeds of which all runs are there."""
    complete = (data or {}).get("complete", [])
    units = {one["seed"]: one for one in (data or {}).get("units", []) if one["arm"] == aggregator}
    return [units[seed]["result"][case] for seed in complete]


def draw(data: Mapping[str, Any]) -> Figure:
    """Final accuracy, mean and 95 % interval, over the share that fails: a panel per way, a line per aggregator."""
    fig, axes = plots.figure(1, len(SHARES), (10, 3.8))
    for ax, (how, shares) in zip(axes.flat, SHARES.items(), strict=True):
        for index, name in enumerate(AGGREGATORS):
            cases = {share: f"{how} {share:g}" if share else "none" for share in shares}
            found = {share: values for share, case in cases.items() if (values := finals(data, name, case))}
            means, errors = ([of(values) for values in found.values()] for of in (fmean, half_width))
            style = plots.look(index) | {"linewidth": 1.2, "elinewidth": 1}
            ax.errorbar([s + 0.006 * (index - 2.5) for s in found], means, errors, label=name, **style)
        ax.axhline(CHANCE, color="0.6", linestyle=":", linewidth=1)
        ax.set(title=how, xlabel="share of the clients that fail", ylim=(0, 1))
    axes[0, 0].set_ylabel("test accuracy (mean, 95 % interval)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    fig.suptitle(f"{data['title']} ({data['note']})")
    return fig


RECORD = Record("failing_clients", "Clients that are lost or lie: digits, 20 clients, Dir(1)", plan, run, draw, SEEDS)
REGISTERED = "49afbc0, before the record"
_Part = tuple[str, str]
"""An aggregator and one of `CASES`."""
_CLAIMS: dict[str, tuple[str, _Part, _Part | None, Range]] = {
    "lost": (
        "With six in ten clients cut off in every round, the mean ends not far below where it ends with none",
        ("mean", "lost 0.6"), ("mean", "none"), Range(low=-0.1),
    ),
    "mean": (
        "One liar in ten, who sends ten times the opposite of its update, brings the mean down to chance",
        ("mean", "updates flipped 0.1"), None, Range(high=0.2),
    ),
    "median": (
        "With two such liars in ten the median ends not far below where it ends with none",
        ("median", "updates flipped 0.2"), ("median", "none"), Range(low=-0.15),
    ),
    "geometric_median": (
        "With two such liars in ten the geometric median ends not far below where it ends with none",
        ("geometric median", "updates flipped 0.2"), ("geometric median", "none"),
        Range(low=-0.15),
    ),
    "trimmed_mean": (
        "The trimmed mean breaks once more lie (three in ten) than it trims (two in ten)",
        ("trimmed mean", "updates flipped 0.2"), ("trimmed mean", "updates flipped 0.3"),
        Range(low=0.4),
    ),
    "norm_clipping": (
        "Clipping the norms of updates slows such liars down but does not stop two in ten",
        ("norm clipping", "updates flipped 0.2"), ("norm clipping", "none"), Range(high=-0.2),
    ),
    "krum": (
        "Krum, told of eight liars in twenty, ends where it does without any",
        ("Krum", "updates flipped 0.4"), ("Krum", "none"), Range(low=-0.1),
    ),
    "krum_price": (
        "Where nobody lies Krum, which keeps one client's model, ends far below the mean",
        ("Krum", "none"), ("mean", "none"), Range(high=-0.1),
    ),
    "half": (
        "Once half of the clients lie, the median is at chance",
        ("median", "updates flipped 0.5"), None, Range(high=0.2),
    ),
}  # fmt: skip
"""Rows by the end of their id: text, what is measured, what is subtracted, the range."""


def claim(name: str) -> Claim:
    """One row, from the units that are there; besides its headline, every share of its aggregator."""
    text, one, other, expected = _CLAIMS[name]
    data, aggregator = recorded(RECORD.name), one[0]
    first, second = finals(data, *one), finals(data, *other) if other else []
    headline = ": ".join(one) + (f" minus {': '.join(other)}" if other else "")
    values = differences(first, second) if other else first
    found = {f"{aggregator}: {case}": accuracies for case in CASES if (accuracies := finals(data, aggregator, case))}
    return headlined(
        f"failing.{name}",
        f"{RECORD.title}: {text}",
        expected,
        {**found, headline: values or None},
        headline,
        source="ours; the aggregators' papers are named in `methods.robust`",
        size="standard",
        seeds=SEEDS[: len(values)],
        registered=REGISTERED,
        test_size=TESTS,
        references={"chance": CHANCE, **({"reached": fmean(first)} if first else {})},
    )


CLAIMS: Mapping[str, Callable[[], Claim]] = {f"failing.{name}": partial(claim, name) for name in _CLAIMS}
