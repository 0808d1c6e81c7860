"""python -m benchmarks.growth [--quick]: how a round's seconds grow with what there is of everything; writes
figures/growth.json and its picture.

sampled      clients of a round, 1 to 1,000, of 60 examples each, a 2NN, B = 10: what `auto` chooses and the loop
clients      clients that exist, 100 to 1,000,000, of one example each, 10 of them in a round: the start and a round
parameters   of an MLP with two hidden layers, 10 clients of 60 examples, B = 10: what `auto` chooses and the loop
rounds       rounds that a run has kept, 10 to 1,000, MLP, digits: with snapshots in memory, and in a folder too

Each point is the median of some repetitions, after one that does not count; what is compared takes turns. A slope is
that of a line through the upper half of a curve's points, logarithms of both: 1 is proportional.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.__main__ import machine
from benchmarks.extras import black
from benchmarks.tasks import BenchTask
from fedlab_core import plots
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.models import build_model, parameter_count
from fedlab_core.partition import iid
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings

FILE = Path(__file__).parent.parent / "figures" / "growth.json"
REPETITIONS = 7
Points = Iterator[tuple[int, dict[str, list[float]]]]
"""For each point of some curves: where it is, and the seconds of every repetition by the name of the curve."""


def sampled(counts: Sequence[int], repetitions: int) -> Points:
    """Rounds of more and more of the largest number of clients; the loop up to 100."""
    for count in counts:
        task = BenchTask("2nn", (1, 28, 28), 10, counts[-1], 60, 10, sampled=count)
        engines = ("auto", "loop") if count <= 100 else ("auto",)
        yield count, turns({engine: partial(task.federation(engine).run, 1) for engine in engines}, repetitions)


def clients(counts: Sequence[int], repetitions: int) -> Points:
    """Federations of more and more clients, of which 10 take part."""
    for count in counts:
        data = black(count)
        model = build_model("2nn", data.input_shape, 10, generator(0, "weights"))
        settings = Settings(10 / count, batch_size=10, evaluate_every=10**9)

        def start(data=data, model=model, settings=settings) -> Federation:
            return Federation(data, iid(len(data.x), len(data.x), generator(0, "partition")), model, settings)

        yield count, turns({"start": start, "a round": partial(start().run, 1)}, repetitions)


def parameters(counts: Sequence[int], repetitions: int) -> Points:
    """Rounds with networks of about as many parameters."""
    task = BenchTask("mlp", (1, 8, 8), 10, 10, 60, 10)
    data, partition = task.data(), iid(600, 10, generator(0, "partition"))
    for count in counts:
        width = round((38**2 + count) ** 0.5 - 38)  # 64 inputs, 10 classes: width^2 + 76 width + 10 parameters
        model = build_model("mlp", task.shape, 10, generator(0, "weights"), hidden=(width, width))
        settings = Settings(1.0, batch_size=10, lr=0.01, evaluate_every=10**9)
        runs = {
            engine: Federation(data, partition, model, settings.replace(engine=engine), memory_mib=64)
            for engine in ("auto", "loop")
        }
        yield parameter_count(model), turns({name: partial(run.run, 1) for name, run in runs.items()}, repetitions)


def rounds(counts: Sequence[int], repetitions: int) -> Points:
    """The last rounds before each count, of two runs that go on side by side."""
    experiment = Experiment(model="mlp", settings=Settings(0.5, evaluate_every=10**9))
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "in memory": experiment.build().rounds(counts[-1]),
            "in a folder too": experiment.build().rounds(counts[-1], checkpoint=Path(folder) / "run"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for count in range(1, counts[-1] + 1):
            for name, run in runs.items():
                seconds[name].append(timed(partial(next, run)))
            if count in counts:
                yield count, {name: spent[-repetitions:] for name, spent in seconds.items()}


def turns(calls: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of every repetition of each."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions + 1):
        for name, call in calls.items():
            seconds[name].append(timed(call))
    return {name: spent[1:] for name, spent in seconds.items()}


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


STUDIES: dict[str, tuple[Callable[[Sequence[int], int], Points], tuple[int, ...], str]] = {
    "sampled": (sampled, (1, 3, 10, 30, 100, 300, 1000), "clients of a round"),
    "clients": (clients, (10**2, 10**3, 10**4, 10**5, 10**6), "clients that exist, 10 in a round"),
    "parameters": (parameters, (10**3, 3000, 10**4, 30000, 10**5, 300000, 10**6, 3000000, 10**7), "parameters"),
    "rounds": (rounds, (10, 30, 100, 300, 1000), "rounds kept"),
}
"""What is counted: how its points are measured, where they are, and its name in the picture."""


def measure(places: Mapping[str, Sequence[int]], repetitions: int) -> dict[str, dict[str, dict[str, Any]]]:
    """The curves by what is counted and by name.

    Args:
        places: where points are, by what is counted.
        repetitions: of each point.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for study, counts in places.items():
        curves = found[study] = {}
        for count, seconds in STUDIES[study][0](counts, repetitions):
            for name, spent in seconds.items():
                curve = curves.setdefault(name, {"x": [], "seconds": [], "seconds_min": [], "seconds_max": []})
                for key, value in zip(curve, (count, statistics.median(spent), min(spent), max(spent)), strict=True):
                    curve[key].append(value)
                print(f"{study:11} {count:9} {name:16} {curve['seconds'][-1]:10.4f} s", flush=True)
        for curve in curves.values():
            curve["slope"] = slope(curve["x"], curve["seconds"])
    return found


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of a line through the logarithms of the upper half of some points, by least squares."""
    half = len(x) // 2
    return float(np.polyfit(np.log(x[half:]), np.log(y[half:]), 1)[0])


def picture(curves: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """A panel for each of the things that are counted, with bands from the fastest to the slowest repetition."""
    fig, axes = plots.figure(2, 2, (8, 5.6))
    for ax, (study, lines) in zip(axes.flat, curves.items(), strict=True):
        for i, (name, curve) in enumerate(lines.items()):
            look = plots.look(i)
            ax.plot(curve["x"], curve["seconds"], label=f"{name}: slope {curve['slope']:.2f}", **look)
            ends = curve["seconds_min"], curve["seconds_max"]
            ax.fill_between(curve["x"], *ends, color=look["color"], alpha=0.18, linewidth=0)
        ax.set(xscale="log", xlabel=STUDIES[study][2], ylabel="seconds")
        plots.logarithmic(ax, "y", (1.0, 2.0, 5.0))
        ax.set_ylim(min(ax.get_ylim()[0], ax.get_ylim()[1] / 30))  # a flat curve looks flat
        ax.grid(color="0.92")
        ax.set_axisbelow(True)
        ax.legend(loc="lower right")
    return fig


def main() -> None:
    """Measures, and writes unless it was quick."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three points each, 2 repetitions, no file written")
    quick = parser.parse_args().quick
    found: dict[str, Any] = {**machine(), "load_before": round(os.getloadavg()[0], 2), "repetitions": REPETITIONS}
    places = {study: counts[:3] if quick else counts for study, (_, counts, _) in STUDIES.items()}
    curves = measure(places, 2 if quick else REPETITIONS)
    if quick:
        return
    plots.save(picture(curves), FILE.with_suffix(""), found | {"curves": curves})
    print(f"written: {FILE}")


if __name__ == "__main__":
    main()
