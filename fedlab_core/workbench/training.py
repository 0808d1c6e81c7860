"""The work of the panel's thread: building a run, and training it round by round."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from fedlab_core.data import Dataset, missing_data
from fedlab_core.data.vision import SOURCES
from fedlab_core.experiment import Experiment
from fedlab_core.workbench.display import Display
from fedlab_core.workbench.panel import Panel
from fedlab_core.workbench.runs import Run

REPORTED = 0.2  # seconds between two moves of the progress bar inside a round


def load(experiment: Experiment, root: str | Path | None) -> Dataset:
    """The data set of an experiment, never by a download that nobody asked for.

    Raises:
        FileNotFoundError: it is not in the data root; the message says which file goes where.
    """
    name = experiment.dataset
    if missing := "" if name.startswith("folder:") else missing_data(name, root):
        download = f", or download it: fedlab_core.data.load_dataset({name!r})" if name in SOURCES else ""
        raise FileNotFoundError(missing + download)
    return experiment.load_data(root)


def begin(
    experiment: Experiment, root: str | Path | None, name: str, memory_mib: float, panel: Panel, stop: threading.Event
) -> Run:
    """A new run, ready to train; its start is learnt first, unless it is random or was learnt before.

    Raises:
        ValueError: settings that do not go together.
        FileNotFoundError: a data set is missing.
        InterruptedError: stopped while the start was being learnt.
    """
    load(experiment, root)
    start = None
    if experiment.start != "random":
        experiment.replace(start="random").build(root)  # says what is wrong before anything long begins
        panel.say("busy", f"Learning the start {experiment.start} (kept for the next time) …")
        start = experiment.make_start(root=root, stop=stop)
    federation = experiment.begin(start, root=root, name=name) if start else experiment.build(root, name=name)
    federation.memory_mib = memory_mib
    return Run(federation, [(0, experiment)], start)


def train(
    run: Run, count: int, display: Display, stop: threading.Event, reference: Callable[[], bool]
) -> tuple[str, str]:
    """Trains `count` rounds, or until stopped, and shows them as they come.

    Args:
        reference: whether the centralised reference is wanted, asked after every round.

    Returns:
        What the status line says then.
    """
    first, began, reported = run.round, time.perf_counter(), 0.0
    panel = display.panel
    run.goal = max(run.goal, first + count)
    panel.say("busy", f"Training {run.name} …")

    def progress(done: int, sampled: int) -> None:
        nonlocal reported
        now = time.perf_counter()
        if now - reported > REPORTED:
            reported = now
            doing = f" · round {run.round + 1}: {done} of {sampled} clients"
            panel.advance(run.round - first + done / sampled, count, now - began, doing)

    for record in run.federation.rounds(count, stop=stop, progress=progress):
        if reference():
            run.advance_reference(stop)
        panel.advance(record.round - first, count, time.perf_counter() - began)
        display.follow(run)
    if reference() and not stop.is_set():
        run.advance_reference(stop)
    done, run.goal = run.round - first, run.round
    panel.advance(done, count, time.perf_counter() - began)
    if done < count:
        return "warning", f"Stopped after {done} of {count} rounds: {run.name} stands at round {run.round}."
    return "done", f"{run.name} stands at round {run.round}."
