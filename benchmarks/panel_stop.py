"""What the panel's benchmark says of Stop: seconds to a free panel, by data set and phase."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.summary import summary
from fedlab_core.data import dataset_names, missing_data, prepared
from fedlab_core.experiment import Experiment
from fedlab_core.workbench import Workbench

TIMES = 5
EACH = 500  # examples of a client, about: rounds that are to be stopped need not be long
REACHED = 60  # seconds until a phase must have begun
# Words of the line of progress by phase.
PHASES = {
    "the first evaluation": "0 of 50 rounds · 0:",
    "training": " of 5 clients",
    "evaluation": "averaging and evaluating",
}
VIEWS = ("Drift", "Stability", "Basin", "Twins")


def stop() -> Iterator[tuple[str, Any]]:
    """Seconds from Stop to a free panel, by data set and phase: median and worst of five."""
    for name in [n for n in dataset_names() if not missing_data(n)]:
        data = prepared.load_prepared(name)
        clients = max(10, len(data.x) // EACH)
        kind = {"model": "lstm", "partition": "natural"} if data.kind == "text" else {"model": "cnn"}
        for engine in ("loop", "auto"):
            experiment = Experiment(name, clients=clients, **kind).replace(fraction=5 / clients, engine=engine)
            yield from stops_on(name, experiment)
    with panel(Experiment(clients=10).replace(fraction=0.5)) as bench:
        for start in ("noise", "letters"):
            bench.set(start=start, seed=time.time_ns() % 2**31)
            yield f"learning the start {start}", timed(bench, lambda: bench.run(50), f"learning the start {start}")
        bench.set(start="random", engine="ray")
        yield "Ray's start", timed(bench, lambda: bench.run(50), "Ray", times=1)


def stops_on(name: str, experiment: Experiment) -> Iterator[tuple[str, Any]]:
    """Every phase of one experiment."""
    with panel(experiment) as bench:
        for where, act in {
            "loading it by the menu": lambda: reload(bench, name),
            "loading it by Run": lambda: (prepared._kept.cache_clear(), bench.run(50)),
        }.items():
            if experiment.settings.engine == "loop":
                yield f"{name}: {where}", timed(bench, act, "oading", times=3)
        seeds = itertools.count(1)

        def anew() -> None:
            bench.set(seed=next(seeds))
            bench.run(50)

        for phase, words in PHASES.items():
            act = anew if "first" in phase else lambda: bench.run(50)
            yield f"{name}, {experiment.settings.engine}: {phase}", timed(bench, act, words)
        bench.run(1, block=True)
        for tab in VIEWS:
            for _ in range(TIMES):
                bench.run(1, block=True)

            def look(tab: str = tab) -> None:
                bench.panel.tabs.value = "Curves"
                bench.panel.round.value -= 1
                bench.panel.tabs.value = tab

            yield f"{name}, {experiment.settings.engine}: drawing {tab}", timed(bench, look, f"drawing {tab}")


@contextlib.contextmanager
def panel(experiment: Experiment) -> Iterator[Workbench]:
    """A panel that keeps nothing on disk."""
    bench = Workbench(experiment, keep=False, most_runs=64)
    yield bench
    bench.close()


def reload(bench: Workbench, name: str) -> None:
    """Has the panel load a data set that it has not loaded yet."""
    prepared._kept.cache_clear()
    bench._advice._loaded.clear()
    bench.controls.dataset.value = "digits" if name != "digits" else "scenes"
    bench._worker.join()
    prepared._kept.cache_clear()
    bench._advice._loaded.clear()
    bench.controls.dataset.value = name


def timed(bench: Workbench, act: Callable[[], Any], words: str, times: int = TIMES) -> dict[str, Any]:
    """Seconds from Stop to a free panel; None counts a phase that was over before Stop came.

    Args:
        act: begins what is to be stopped.
        words: of the phase, in the line of progress or of the status.
    """
    found: list[float | None] = []
    for _ in range(times):
        bench._worker.join()
        act()
        until, job = time.perf_counter() + REACHED, bench._worker._job
        while not job.ended.is_set() and time.perf_counter() < until:
            if words in bench.panel.timing.value + bench.panel.status.value:
                break
            time.sleep(0.002)
        time.sleep(0.02)
        if job.ended.is_set():
            found.append(None)
            continue
        began = time.perf_counter()
        bench.stop()
        while bench.busy and bench._worker._job is job:
            time.sleep(0.001)
        found.append(time.perf_counter() - began)
        for thread in threading.enumerate():
            if thread.name == "workbench errand":  # a loading given up, which goes on by itself
                thread.join()
    return summary(found)
