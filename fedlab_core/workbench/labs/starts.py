"""Notebook 03: what the starting point does, and a start made before the reader's eyes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlab_core import probes
from fedlab_core.experiment import Experiment
from fedlab_core.history import Record
from fedlab_core.pretraining.pairs import fractal_pairs, make_renders
from fedlab_core.pretraining.starts import Decentralised, Fractals
from fedlab_core.randomness import generator
from fedlab_core.references import centralised
from fedlab_core.studies.arms import by_arm, rates
from fedlab_core.studies.pretraining_runs import DIGITS
from fedlab_core.studies.record import recorded
from fedlab_core.workbench.plan import Band, Plan, Result, before, best_of, looks_of

ALPHAS = (0.05, 0.1, 0.3, 100.0)
THETAS = [i / 8 for i in range(9)]


@dataclass(frozen=True)
class Seen:
    """A round of a run from one start.

    Attributes:
        record: of the round.
        gap: test accuracy of centralised training with as many gradient steps from the same start, minus the run's.
        barrier: between the run's model and that of IID clients from the same start.
        mixture, spread: mean and standard deviation of the accuracy of ten random mixtures of the clients' models.
    """

    record: Record
    gap: float
    barrier: float
    mixture: float
    spread: float


def experiment(start: str, alpha: float, method: str, lr: float) -> Experiment:
    """Ten clients with digits, a small dense network."""
    skewed = DIGITS.replace(partition="dirichlet", partition_options={"alpha": alpha}, engine="stacked")
    options = {"mu": 0.1} if method == "fedprox" else {}
    return skewed.replace(start=start, method=method, method_options=options, lr=lr)


def follow(one: Experiment) -> Iterator[Seen]:
    """Trains the run, its centralised reference and its IID twin side by side."""
    run = one.build()
    pooled, iid = centralised(run), one.replace(partition="iid", partition_options={}).build()
    for record in run.rounds(10**6):
        pooled.run(1)
        iid.run(1)
        accuracy = record.metrics["test_accuracy"]
        found = probes.spread(run, record.round, count=10)
        line = probes.line(run, iid.state, run.state, THETAS, split="test")
        gap = pooled.history[-1].metrics["test_accuracy"] - accuracy
        yield Seen(record, gap, line.barrier, found["accuracy_mean"], found["accuracy_sd"])


def race(start: str, alpha: float, method: str, lr: float) -> Mapping[str, Iterator[Seen]]:
    """Two runs: from random weights, and from the chosen start."""
    names = dict.fromkeys(("random", start))
    return {f"from {name}": follow(experiment(name, alpha, method, lr)) for name in names}


def draw_race(figure: Any, result: Result) -> None:
    """Accuracy; the gap to centralised training; drift; the barrier to IID clients' model; mixtures."""
    axes = figure.subplots(2, 2).ravel()
    looks = looks_of(result)
    for band in result.behind:
        band.draw(axes[0], looks[band.label.rpartition(", lr")[0]]["color"])
    for name, frames in result.frames.items():
        look, rounds = looks[name], [f.record.round for f in frames]
        axes[0].plot(rounds, [f.record.metrics["test_accuracy"] for f in frames], label=name, **look)
        axes[1].plot(rounds, [f.record.metrics["drift"] for f in frames], **look)
        axes[2].plot(rounds, [f.barrier for f in frames], **look)
        middle, half = np.array([f.mixture for f in frames]), np.array([f.spread for f in frames])
        axes[3].plot(rounds, middle, **look)
        axes[3].fill_between(rounds, middle - half, middle + half, color=look["color"], alpha=0.2, linewidth=0)
        axes[0].plot(rounds, [f.record.metrics["test_accuracy"] + f.gap for f in frames], color=look["color"], lw=0.8)
    axes[0].set(title="test accuracy (thin: centralised)", ylim=(0, 1.02))
    axes[1].set(title=r"drift: mean $\Vert w_k - w_t\Vert$", ylim=(0, None))
    axes[2].set(
        title="barrier to the model of IID clients (nats)", ylim=(-0.02, max(1, axes[2].get_ylim()[1])), xlabel="round"
    )
    axes[3].set(title="mixtures of the clients' models: accuracy, ±1 sd", ylim=(0, 1.02), xlabel="round")
    axes[0].legend(loc="lower right", fontsize=7)


def _below(gap: float) -> str:
    """How far below something, or above it."""
    return f"{abs(gap):.2f} {'below' if gap >= 0 else 'above'}"


def read_race(result: Result) -> str:
    """Each start's last round in numbers."""
    parts = []
    for name, frames in result.frames.items():
        if frames:
            last = frames[-1]
            parts.append(
                f"{name}: accuracy {last.record.metrics['test_accuracy']:.2f}, {_below(last.gap)} centralised, drift "
                f"{last.record.metrics['drift']:.2f}, barrier {last.barrier:.2f}, mixtures {last.mixture:.2f} "
                f"± {last.spread:.2f}"
            )
    rounds = max((f[-1].record.round for f in result.frames.values() if f), default=0)
    return f"After {rounds} rounds, {'; '.join(parts)}."


def behind(start: str, alpha: float, method: str, lr: float) -> Sequence[Band]:
    """The recorded runs at this skew, each start at its best rate."""
    data, skew = recorded("pretraining"), {0.05: "Dir(0.05)", 0.3: "Dir(0.3)", 100.0: "IID"}.get(alpha)
    bands = []
    for name in dict.fromkeys(("random", start)):
        arm = f"{name}, {skew}" if method == "fedavg" else f"{name}, {skew}, {method}"
        if runs := by_arm(data).get(arm):  # there is a record, and it is of this setting
            curves = [run["test_accuracy"] for run in runs]
            bands.append(Band.of_curves(f"from {name}, lr {rates(data)[arm]:g}", range(len(curves[0])), curves))
    return bands


STARTS = (
    "random", "letters", "fractal pairs", "fractal labels", "fractal twins", "noise", "decentralised",
    "pairs, decentralised",
)  # fmt: skip
START = Plan(
    "The starting point",
    race,
    {"start": STARTS, "alpha": ALPHAS, "method": ("fedavg", "fedprox", "scaffold"), "lr": (0.03, 0.1, 0.3, 1.0)},
    {"start": "letters", "alpha": 0.05, "lr": 0.1},
    rounds=12,
    draw=draw_race,
    sentence=read_race,
    experiment=experiment,
    behind=behind,
    size=(10.0, 5.4),
    about={"method": "FedAvg, or one that corrects the clients' drift"},
)


# ---------------------------------------------------------------------------------------------- make your own start


@dataclass(frozen=True)
class Step:
    """A round of a race at equal bytes.

    Attributes:
        megabytes: sent so far, those of the start included.
        record: of the round.
        pictures: (n, height, width, 3) what the start was learnt from; none for the random one.
    """

    megabytes: float
    record: Record
    pictures: NDArray | None = None


def own(codes: int, images: int, epochs: int, decentralised: int) -> Mapping[str, Iterator[Step]]:
    """Two runs: from random weights, and from fractals followed by the clients' own images."""
    skewed = DIGITS.replace(partition="dirichlet", partition_options={"alpha": 0.05}, lr=0.3, engine="stacked")

    def frames(learnt: bool) -> Iterator[Step]:
        pictures = None
        steps: list[Fractals | Decentralised] = []
        if learnt:
            first, _ = fractal_pairs(make_renders(codes, 8, 0), 12, generator(0, "own start"))
            pictures = first.permute(0, 2, 3, 1).clamp(0, 1).numpy()
            steps = [Fractals("pairs", codes=codes, images=images, epochs=epochs)]
            steps += [Decentralised(rounds=decentralised)] if decentralised else []
        start = skewed.make_start(steps)
        run = skewed.begin(start)
        while True:
            run.run(1)
            yield Step((start.bytes + run.history[-1].total.bytes) / 1e6, run.history[-1], pictures)

    return {"random": frames(False), "own start": frames(True)}


def draw_own(figure: Any, result: Result) -> None:
    """Above, what the start was learnt from; below, accuracy at equal bytes."""
    above, below = figure.subfigures(2, 1, height_ratios=(1, 3.2))
    ax = below.subplots()
    looks = looks_of(result)
    for name, frames in result.frames.items():
        if not frames:
            continue
        if frames[-1].pictures is not None:
            for cell, picture in zip(above.subplots(1, 12), frames[-1].pictures, strict=True):
                cell.imshow(picture)
                cell.axis("off")
            above.suptitle("some of the images that the start was learnt from", fontsize=8)
        xs, ys = [f.megabytes for f in frames], [f.record.metrics["test_accuracy"] for f in frames]
        ax.plot(xs, ys, label=name, **looks[name])
    before(ax, result, lambda f: f.megabytes, lambda f: f.record.metrics["test_accuracy"])
    ax.set(xlabel="megabytes sent, the start's own included", ylabel="test accuracy", ylim=(0, 1.02), xlim=(0, None))
    ax.legend(loc="lower right")


def read_own(result: Result) -> str:
    """Both at the bytes that both have spent."""
    runs = {name: frames for name, frames in result.frames.items() if frames}
    if len(runs) < 2:
        return "Learning the start …"
    spent = min(frames[-1].megabytes for frames in runs.values())
    parts = []
    for name, frames in runs.items():
        within = [f.record for f in frames if f.megabytes <= spent + 1e-9]
        parts.append(f"{name} {best_of(within):.2f}" if within else f"{name} has not begun")
    return f"At {spent:.1f} MB, best so far: {', '.join(parts)}."


OWN_START = Plan(
    "Make your own start: fractals, then the clients' own images",
    own,
    {"codes": (8, 24, 48), "images": (256, 1000, 3000), "epochs": (1, 2, 5), "decentralised": (0, 2, 5)},
    {"codes": 24, "images": 1000, "epochs": 2},
    rounds=15,
    draw=draw_own,
    sentence=read_own,
    size=(9.0, 4.6),
    about={
        "codes": "Fractals whose renders make up the images",
        "images": "From which the start is learnt",
        "epochs": "Passes over these images",
        "decentralised": "Rounds on the clients' own images without labels, after the fractals",
    },
)
