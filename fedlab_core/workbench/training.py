"""The work of the panel's thread: building a run, and training it round by round."""

import time
from collections.abc import Callable

from fedlab_core.experiment import Experiment
from fedlab_core.round import NonFiniteError
from fedlab_core.workbench.catalog import Catalog
from fedlab_core.workbench.display import Display
from fedlab_core.workbench.panel import Panel
from fedlab_core.workbench.runs import Run
from fedlab_core.workbench.worker import Worker

REPORTED = 0.2  # seconds between two moves of the progress bar inside a round


def begin(experiment: Experiment, catalog: Catalog, name: str, display: Display, worker: Worker) -> Run:
    """A new run, ready to train; its start is learnt first, unless it is random or was learnt before.

    Raises:
        ValueError: settings that do not go together.
        FileNotFoundError: a data set is missing.
        InterruptedError: stopped meanwhile.
    """
    panel = display.panel
    panel.advance(0, 0, doing=f"loading {experiment.dataset}")
    worker.patiently(lambda: catalog.load(experiment))
    start = None
    if experiment.start != "random":
        catalog.build(experiment.replace(start="random"))  # says what is wrong before anything long begins
        panel.advance(0, 0, doing=f"learning the start {experiment.start}")
        panel.say("busy", f"Learning the start {experiment.start} (kept for the next time) …")
        start = experiment.make_start(root=catalog.root, stop=worker.stop)
    panel.advance(0, 0, doing="preparing")
    federation = worker.patiently(lambda: catalog.build(experiment, name, start))
    return Run(federation, [(0, experiment)], start, stop=worker.stop)


def train(
    run: Run, count: int, display: Display, worker: Worker, reference: Callable[[], bool], kept: Callable[[bool], None]
) -> tuple[str, str]:
    """Trains `count` rounds, or until stopped or diverged, and shows them as they come.

    Args:
        reference: whether the centralised reference is wanted, asked after every round.
        kept: called after every round to save what there is, with whether it was the last.

    Returns:
        What the status line says then.
    """
    first, began, reported = run.round, time.perf_counter(), 0.0
    panel, stop = display.panel, worker.stop
    run.goal = max(run.goal, first + count)
    panel.advance(0, count)
    panel.say("busy", f"Training {run.name} …")
    connect(run, panel.advance, count, worker)

    def progress(done: int, sampled: int) -> None:
        nonlocal reported
        now = time.perf_counter()
        if now - reported > REPORTED or done == sampled:
            reported = now
            doing = f"{done} of {sampled} clients" if done < sampled else "averaging and evaluating"
            done_so_far = run.round - first + done / sampled
            panel.advance(min(done_so_far, count), count, now - began, f"round {run.round + 1}: {doing}")

    run.broke, broken = None, ""
    try:
        for record in run.federation.rounds(count, stop=stop, progress=progress):
            if reference() and run.reference_shown:
                run.advance_reference(stop)
            panel.advance(record.round - first, count, time.perf_counter() - began)
            display.follow(run)
            kept(False)
            if run.diverged is not None:
                break
    except NonFiniteError as error:
        run.broke, broken = error.round, f" client {error.client} handed back values that are not finite "
        broken += f"(mean training loss {error.loss:g}, lr={error.lr:g})."
    if reference() and not stop.is_set():
        panel.advance(run.round - first, count, time.perf_counter() - began, "centralised reference")
        run.advance_reference(stop)
    done, run.goal = run.round - first, run.round
    kept(True)
    panel.advance(done, count, time.perf_counter() - began)
    if run.diverged is not None:
        what = broken or " its values are no longer finite."
        return "error", f"{run.name} diverged in round {run.diverged}:{what} {remedy(run)}"
    if done < count:
        return "warning", f"Stopped after {done} of {count} rounds: {run.name} stands at round {run.round}."
    return "done", f"{run.name} stands at round {run.round}."


def remedy(run: Run) -> str:
    """What to do about a run that diverged."""
    lr = run.experiment.settings.lr
    return f"Choose a learning rate below {lr:g}; then Run anew, or Fork from round {max(0, (run.diverged or 0) - 1)}."


def connect(run: Run, advance: Callable[..., None], count: int, worker: Worker) -> None:
    """Starts what the run's engine needs, such as Ray's processes.

    Raises:
        InterruptedError: stopped meanwhile.
    """
    engine = run.federation.settings.engine
    if engine.partition(":")[0] == "ray":
        from fedlab_core.engines.ray import connect as ray  # optional extra

        advance(0, count, doing="starting Ray")
        worker.patiently(lambda: ray(engine.partition(":")[2] or None))


def train_reference(run: Run, wanted: bool, panel: Panel, worker: Worker) -> tuple[str, str]:
    """Trains the centralised reference of a run as far as the run has come, if it is wanted."""
    if wanted:
        panel.advance(0, 0, doing="training the centralised reference")
        panel.say("busy", "Training the centralised reference …")
        run.advance_reference(worker.stop)
    return "done", f"{run.name} stands at round {run.round}."
