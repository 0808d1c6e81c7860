"""The workbench: one panel over one round loop, for every notebook. Its thread only sets traits of widgets."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.pretraining.named import recipe
from fedlab_core.workbench import text
from fedlab_core.workbench.controls import Controls
from fedlab_core.workbench.display import Display
from fedlab_core.workbench.export import Report, save_csv, save_figure
from fedlab_core.workbench.panel import Panel
from fedlab_core.workbench.runs import Run, changes, describe, unique
from fedlab_core.workbench.tabs import BUILT_IN, View, curves_view
from fedlab_core.workbench.training import begin, load, train
from fedlab_core.workbench.worker import EXPECTED, Busy, Worker


class Workbench:
    """A panel to train federations with, in a notebook or without one.

        bench = Workbench(Experiment(partition="dirichlet", clients=20))
        bench                        # the panel, as the last expression of a cell
        bench.run(10, block=True)    # the same as pressing Run
        bench.report()               # a picture and a table that stay

    Run goes on with the run shown if the settings are its own, else it begins a new one; Fork branches off it.

    Args:
        experiment: the first settings.
        views: further views, after Curves, Clients, Drift and Costs.
        rounds: how many rounds Run trains, at first.
        band: whether sampled clients' own models are evaluated, to draw their band.
        reference: whether the centralised reference is trained beside the run.
        root: the data root, see `data.data_root`.
        memory_mib: limit of all runs' kept states together.
        most_runs: most runs at a time; more could not be told apart.

    Attributes:
        runs: all runs, in the order they began.
    """

    def __init__(
        self,
        experiment: Experiment | None = None,
        *,
        views: Sequence[View] = (),
        rounds: int = 10,
        band: bool = True,
        reference: bool = False,
        root: str | Path | None = None,
        memory_mib: float = 1024.0,
        most_runs: int = 8,
    ) -> None:
        self.root, self.memory_mib, self.most_runs = root, memory_mib, most_runs
        self._loaded = set[str]()
        self._ready = self._unchecked = self._noted = False
        first = (experiment or Experiment()).replace(evaluate_clients=band)
        self.controls = Controls(first, self._on_controls, root)
        self.controls.reference.value = reference
        views = {view.name: view for view in (*BUILT_IN, *views)}
        self.panel = panel = Panel(self.controls.view, list(views), rounds)
        self._worker = Worker(panel, self._finish)
        self._display = Display(panel, views, self._worker, lambda run: self.controls.load(run.experiment))
        self.runs = self._display.runs
        actions: dict[Any, Callable[[], Any]] = {
            panel.run: self.run,
            panel.stop: self.stop,
            panel.rewind: lambda: self.rewind(block=False),
            panel.fork: lambda: self.fork(block=False),
            panel.reset: self.reset,
            panel.save: self.save_figure,
            panel.export: self.export_csv,
        }
        for button, action in actions.items():
            button.on_click(lambda _, action=action: self._worker.press(action))
        panel.round.observe(lambda _: self._compare(), "value")
        self.controls.reference.observe(self._on_reference, "value")
        self._ready = True
        self._check()
        self._compare()

    @property
    def view(self) -> Any:
        """The panel as one widget."""
        return self.panel.view

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle = self.view._repr_mimebundle_() or {}
        return {**bundle, "text/plain": "[interactive: run this cell in JupyterLab to use it]"}

    @property
    def experiment(self) -> Experiment:
        """What the controls say now."""
        return self.controls.experiment

    @property
    def result(self) -> Federation | None:
        """The federation of the run shown, None before the first."""
        return None if self._display.current is None else self._display.current.federation

    @property
    def error(self) -> BaseException | None:
        """What the last work raised, None if it ended well."""
        return self._worker.error

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self._worker.busy

    def set(self, **values: Any) -> None:
        """Moves controls, by the names that `Experiment.replace` takes: bench.set(lr=0.05, method="scaffold").

        Raises:
            ValueError: an unknown name, or a value that neither a control nor `Settings` accepts.
        """
        training = self.busy
        self.controls.move(**values)
        if not training:
            self._worker.join()  # a data set that had to be loaded first

    def run(self, rounds: int | None = None, *, name: str | None = None, block: bool = False) -> None:
        """Trains `rounds` rounds (the panel's number by default): goes on with the run shown, or begins a new one.

        Args:
            name: of a new run; automatic by default.
            block: wait for the end, and raise what was raised.

        Raises:
            Busy: work is under way; this one is refused, not queued.
        """
        count = self.panel.rounds.value if rounds is None else rounds
        experiment = self.experiment
        self._worker.start(lambda: self._train(experiment, count, name), block)

    def stop(self) -> None:
        """Asks the run to stop before its next client; finished rounds stay."""
        if self.busy:
            self._worker.stop.set()
            self.panel.say("busy", "Stopping once the client at work has finished …")
        else:
            self.panel.say("", "Nothing is running.")

    def wait(self, timeout: float | None = None) -> None:
        """Waits for the end of the work, and raises what it raised; TimeoutError after `timeout` seconds."""
        self._worker.wait(timeout)

    def rewind(self, round: int | None = None, *, block: bool = True) -> None:
        """Forgets what the run shown did after a round (the slider's by default)."""
        run, to = self._shown(), self.panel.round.value if round is None else round

        def work() -> tuple[str, str]:
            run.rewind(to)
            self._display.choose(run, draw=False)
            return "done", f"{run.name} is back at round {to}. Run goes on from there."

        self._worker.start(work, block)

    def fork(self, name: str | None = None, *, at: int | None = None, block: bool = True, **values: Any) -> None:
        """A branch of the run shown that goes on after a round (the slider's by default) with the controls' settings.

        Args:
            name: automatic by default.
            at: the fork point.
            values: controls to move first, as in `set`.
        """
        run, point = self._shown(), self.panel.round.value if at is None else at
        if values and not self.busy:
            self.set(**values)
        experiment = self.experiment

        def work() -> tuple[str, str]:
            given = self._name(name, f"{describe(experiment, run.experiment)}, from {point}")
            self._add(run.fork(given, point, experiment))
            return "done", f"{given} branches off {run.name} after round {point}. Run trains it."

        self._worker.start(work, block)

    def reset(self) -> None:
        """Forgets all runs; the settings stay."""
        if self.busy:
            raise Busy("Still running: press Stop first, then Reset.")
        self.runs.clear()
        self._display.choose(None)
        self._compare()
        self.panel.advance(0, 0)
        self.panel.say("done", "All runs are forgotten, the settings stay.")

    def save_figure(self) -> Path:
        """Writes the figure shown (PNG) and all runs behind it (JSON) into `figures/`, or the working directory."""
        run, view, round = self._shown(), self._display.view.name, self.panel.round.value
        shown = {"view": view, "run": run.name, "round": round, "seed": run.experiment.settings.seed}
        stem = f"workbench-{view.lower().replace(' ', '-')}-{run.experiment.key}-round-{round}"
        path = save_figure(self._display.figure(), stem, self.runs, shown)
        self.panel.say("done", f"Saved {path} and {path.with_suffix('.json').name}")
        return path

    def export_csv(self) -> Path:
        """Writes one row per run and round into `figures/`, or the working directory."""
        path = save_csv(f"workbench-{self._shown().experiment.key}", self.runs)
        self.panel.say("done", f"Saved {path}")
        return path

    def report(self) -> Report:
        """The curves of all runs and a table of where they stand, for the cell under the panel."""
        run = self._display.current
        return Report(None if run is None else curves_view(run), self.runs)

    def _train(self, experiment: Experiment, count: int, name: str | None) -> tuple[str, str]:
        run = self._display.current
        if run is None or changes(run.experiment, experiment):
            given = self._name(name, describe(experiment, self.runs[0].experiment if self.runs else None))
            limit, stop = self.memory_mib / self.most_runs, self._worker.stop
            try:
                run = begin(experiment, self.root, given, limit, self.panel, stop)
            except InterruptedError:
                return "warning", f"Stopped while the start {experiment.start} was being learnt. No run has begun."
            self._add(run)
        self._worker.training = True
        return train(run, count, self._display, self._worker.stop, lambda: self.controls.reference.value)

    def _finish(self) -> None:
        if self._unchecked:
            self._check()
        self._display.draw()
        self._compare()

    def _on_controls(self) -> None:
        if not self._ready:
            return
        self._compare()
        if self.controls.source in self._loaded:
            self._check()
        elif self.busy:
            self._unchecked = True  # looked at when the rounds under way are done
        else:
            self._noted = True
            self.panel.say("busy", f"Loading {self.controls.dataset.value} …")
            self._worker.start(self._check)

    def _check(self) -> None:
        """Shows who holds what under the controls' settings, or says what is wrong with them."""
        self._unchecked = False
        try:
            experiment = self.experiment
            dataset = load(experiment, self.root)
            self._loaded.add(self.controls.source)
            self._display.draft(dataset, experiment.make_partition(dataset))
            recipe(experiment.start, dataset.input_shape)
            experiment.replace(start="random").build(self.root)
        except Exception as error:
            self._noted = True
            self._worker.show(error, expected=isinstance(error, EXPECTED))
        else:
            if self._noted:
                self.panel.say("", "Ready.")
            self._noted = False

    def _compare(self) -> None:
        """Says what the result shown was made with, and marks it where the controls no longer match it."""
        run = self._display.current
        try:
            stale = "" if run is None else text.stale_line(run, self.experiment, self.panel.round.value)
        except ValueError:
            return  # `_check` says what is wrong
        self.panel.shown.value = text.hint_line() if run is None else stale or text.settings_line(run)
        self.panel.dim(bool(stale))

    def _on_reference(self, change: dict[str, Any]) -> None:
        for run in self.runs:
            run.reference_shown = change["new"]
        run = self._display.current

        def work() -> tuple[str, str]:
            if change["new"]:
                self.panel.say("busy", "Training the centralised reference …")
                run.advance_reference(self._worker.stop)
            return "done", f"{run.name} stands at round {run.round}."

        if run is not None and not self.busy:
            self._worker.start(work)

    def _shown(self) -> Run:
        if self._display.current is None:
            raise ValueError("There is no run yet: press Run first.")
        return self._display.current

    def _add(self, run: Run) -> None:
        if len(self.runs) >= self.most_runs:
            raise ValueError(
                f"{len(self.runs)} runs are shown and more could not be told apart: press Reset, "
                f"or make the panel with Workbench(most_runs={2 * self.most_runs})"
            )
        run.index, run.overlaid = len(self.runs), self.runs
        self.runs.append(run)
        self._display.choose(run, draw=False)
        self._compare()

    def _name(self, given: str | None, automatic: str) -> str:
        name = given or self.panel.name.value.strip() or automatic
        self.panel.name.value = ""
        return unique(name, (run.name for run in self.runs))
