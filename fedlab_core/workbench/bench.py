"""The workbench: one panel over one round loop, for every notebook. Its thread only sets traits of widgets."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fedlab_core.check import checked
from fedlab_core.data import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.workbench import alive, export, store
from fedlab_core.workbench.advice import Advice
from fedlab_core.workbench.catalog import watched, what_there_is
from fedlab_core.workbench.controls import Controls
from fedlab_core.workbench.display import Display
from fedlab_core.workbench.keeper import Keeper
from fedlab_core.workbench.panel import Panel
from fedlab_core.workbench.pictures import Shown
from fedlab_core.workbench.runs import Run, changes, describe
from fedlab_core.workbench.tabs import CLIENTS, COSTS, CURVES, View, curves_view
from fedlab_core.workbench.training import begin, train, train_reference
from fedlab_core.workbench.views import drift, twins
from fedlab_core.workbench.views.probes import BASIN, STABILITY
from fedlab_core.workbench.worker import Busy, Worker

BUILT_IN = (CURVES, CLIENTS, drift.VIEW, STABILITY, BASIN, twins.VIEW, COSTS)


@checked
class Workbench(Shown):
    """A panel to train federations with, in a notebook or without one.

        bench = Workbench(Experiment(partition="dirichlet", clients=20))
        bench                        # the panel, as the last expression of a cell
        bench.run(10, block=True)    # the same as pressing Run
        bench.report()               # a picture and a table that stay

        Workbench(federation)   # with its rounds so far
        Workbench(experiment, models={"mine": MyModel}, methods={"mine": MyMethod}, data=my_dataset)
        Workbench.open("runs/20261125-081749-4711")   # the runs of a panel whose kernel is gone

    Run goes on with the run shown if the settings are its own, else it begins a new one; Fork branches off it.

    Args:
        experiment: the first settings, or a federation.
        views: further views, after `BUILT_IN`.
        rounds: how many rounds Run trains, at first.
        band: whether sampled clients' own models are evaluated, on 1,000 test examples, to draw their band.
        reference: whether the centralised reference is trained beside the run.
        root: the data root, see `data.data_root`.
        memory_mib: limit of all runs' kept states together.
        most_runs: most runs at a time; more could not be told apart.
        models: models of one's own by name: a module, or what `registry.register` takes, a class or a function.
        methods: methods of one's own by name: classes derived from `FedAvg`, or instances.
        data: a data set of one's own, or several by name.
        keep: whether runs are kept on disk as they go, or in which folder; see `store`.

    Raises:
        TypeError: neither an experiment nor a federation.
    """

    def __init__(
        self,
        experiment: Experiment | Federation | None = None,
        *,
        views: Sequence[View] = (),
        rounds: int = 10,
        band: bool = True,
        reference: bool = False,
        root: str | Path | None = None,
        memory_mib: float = 1024.0,
        most_runs: int = 8,
        models: Mapping[str, nn.Module | Callable[..., nn.Module]] | None = None,
        methods: Mapping[str, type[FedAvg] | FedAvg] | None = None,
        data: Dataset | Mapping[str, Dataset] | None = None,
        keep: bool | str | Path = True,
    ) -> None:
        self.catalog, first = what_there_is(experiment, models or {}, methods or {}, data, root)
        self.share_mib = memory_mib / most_runs
        self._advice: Any = None  # made of the panel, which is made of the controls, which report to it
        given = experiment if isinstance(experiment, Federation) else None
        first = first if given else watched(first, band)
        self.controls = Controls(first, lambda: None if self._advice is None else self._advice.look(), self.catalog)
        self.controls.reference.value = reference
        known = {view.name: view for view in (*BUILT_IN, *views)}
        self.panel = panel = Panel(self.controls.view, list(known), rounds)
        self.view = panel.view
        self._worker = Worker(panel, self._finish, self._settle, panel.tick)
        self._display = Display(panel, known, self._worker, lambda run: self.controls.load(run.experiment), most_runs)
        self._keeper = Keeper(panel, keep)
        actions: dict[Any, Callable[[], Any]] = {
            panel.run: self.run,
            panel.stop: self.stop,
            panel.rewind: lambda: self.rewind(block=False),
            panel.fork: lambda: self.fork(block=False),
            panel.reset: self.reset,
            panel.save: lambda: self.save(panel.kind.value),
            panel.open: lambda: self.bring_back(panel.earlier.value),
            panel.way_out: lambda: self.set(**self._advice.way_out()),
        }
        for button, action in actions.items():
            button.on_click(lambda _, action=action: self._worker.press(action))
        self._advice = advice = Advice(self.controls, panel, self._worker, self._display, self.catalog)
        panel.round.observe(lambda _: advice.compare(), "value")
        self.controls.reference.observe(self._on_reference, "value")
        alive.replace_in_cell(self)
        advice.check()
        if given and given.history:
            self._display.add(Run(given, [(0, self.experiment)], goal=given.round, stop=self._worker.stop))
            self._display.draw()
        advice.compare()

    @classmethod
    def open(cls, folder: str | Path | None = None, **arguments: Any) -> "Workbench":
        """The runs of a panel whose kernel has gone, in a new panel that goes on keeping them in the same folder.

        Args:
            folder: of the panel; the newest one by default.
            arguments: as for `Workbench`; what the runs used of one's own has to be given again.

        Raises:
            FileNotFoundError: there is no such folder.
        """
        folder = folder or next(iter(store.earlier()), store.runs_home())
        bench = cls(**{"keep": folder, **arguments})
        bench.bring_back(folder, block=True)
        return bench

    @property
    def runs(self) -> list[Run]:
        """All runs, in the order they began."""
        return self._display.runs

    @property
    def folder(self) -> Path | None:
        """Where runs are kept."""
        return self._keeper.folder

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        alive.show(self.panel)
        return super()._repr_mimebundle_(**options)

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
            block: wait for the end, and raise what was raised. Ctrl-C stops the run.

        Raises:
            Busy: work is under way; this one is refused, not queued.
        """
        count = self.panel.rounds.value if rounds is None else rounds
        experiment = self.experiment
        self._worker.start(lambda: self._train(experiment, count, name), block)

    def stop(self) -> None:
        """Asks whatever is under way to stop; finished rounds stay."""
        if self.busy:
            self._worker.stop.set()
            self.panel.say("busy", "Stopping …")
        else:
            self.panel.say("", "Nothing is running.")

    def wait(self, timeout: float | None = None) -> None:
        """Waits for the end of the work, and raises what it raised; TimeoutError after `timeout` seconds."""
        self._worker.wait(timeout)

    def rewind(self, round: int | None = None, *, block: bool = True) -> None:
        """Forgets what the run shown did after a round (the slider's by default)."""
        run, to = self._display.shown(), self.panel.round.value if round is None else round

        def work() -> tuple[str, str]:
            run.rewind(to)
            self._display.choose(run, draw=False)
            self._keeper.keep(self.runs, run, True)
            return "done", f"{run.name} is back at round {to}. Run goes on from there."

        self._worker.start(work, block)

    def fork(self, name: str | None = None, *, at: int | None = None, block: bool = True, **values: Any) -> None:
        """A branch of the run shown that goes on after a round (the slider's by default) with the controls' settings.

        Args:
            name: automatic by default.
            at: the fork point.
            values: controls to move first, as in `set`.
        """
        run, point = self._display.shown(), self.panel.round.value if at is None else at
        if values and not self.busy:
            self.set(**values)
        experiment = self.experiment

        def work() -> tuple[str, str]:
            self._advice.tried = experiment
            given = self._display.named(name, f"{describe(experiment, run.experiment)}, from {point}")
            self._display.add(run.fork(given, point, experiment, self.catalog.method(experiment)))
            self._keeper.keep(self.runs, self.runs[-1], True)
            return "done", f"{given} branches off {run.name} after round {point}. Run trains it."

        self._worker.start(work, block)

    def reset(self) -> None:
        """Forgets all runs of the panel; the settings stay, and so does what is kept on disk."""
        if self.busy:
            raise Busy("Still running: press Stop first, then Reset.")
        self.runs.clear()
        self._display.choose(None)
        self._advice.compare()
        self.panel.advance(0, 0)
        self._keeper.renew()
        self.panel.say("done", "All runs are forgotten, the settings stay.")

    def close(self) -> None:
        """Stops the work, forgets the runs and gives the widgets back; the panel disappears."""
        self._worker.stop.set()
        alive.hide(self.panel)
        self._display.leave()
        self._keeper.leave()
        self.panel.close()

    def save(self, kind: str = "png") -> Path | None:
        """Writes something beside the notebook, and offers it as a download.

        Args:
            kind: "png" (300 dpi), "svg" or "pdf": the figure shown, with the data of all runs as JSON beside it; "csv":
                a row per run and round; "html": a report of the run that opens without Jupyter; "code": shows the
                Python that rebuilds the run, and writes nothing.

        Returns:
            The file, None for code.
        """
        return self._display.save(kind)

    def bring_back(self, folder: str | Path | None, *, block: bool = False) -> None:
        """Adds the runs that an earlier panel kept on disk; FileNotFoundError if there are none."""

        def work() -> tuple[str, str]:
            self.panel.advance(0, 0, doing="reading runs")
            found = store.bring_back(Path(folder or store.runs_home()), self.catalog, self._worker.stop)
            for run in found:
                self._display.add(run)
            self.controls.load(self.runs[-1].experiment)
            return "done", f"{len(found)} runs are back: {', '.join(run.name for run in found)}."

        self._worker.start(work, block)

    def report(self) -> export.Report:
        """The curves of all runs and a table of where they stand, for the cell under the panel."""
        run = self._display.current
        return export.Report(None if run is None else curves_view(run), self.runs)

    def _train(self, experiment: Experiment, count: int, name: str | None) -> tuple[str, str]:
        run, self._advice.tried = self._display.current, experiment
        try:
            if run is None or changes(run.experiment, experiment):
                given = self._display.named(name, describe(experiment, self.runs[0].experiment if self.runs else None))
                run = begin(experiment, self.catalog, given, self._display, self._worker)
                self._advice.trials.check(experiment)
                self._display.add(run)
                self._display.draw(live=True)
                self._advice.compare()
            run.take_over(self.share_mib)
            self._worker.training = True
            keep = functools.partial(self._keeper.keep, self.runs, run)
            return train(run, count, self._display, self._worker, lambda: self.controls.reference.value, keep)
        except InterruptedError:
            return "warning", "Stopped before the first round."

    def _finish(self) -> None:
        self._display.finish()
        self._advice.compare()

    def _settle(self) -> None:
        self._display.settle()
        self._advice.settle()

    def _on_reference(self, change: dict[str, Any]) -> None:
        for run in self.runs:
            run.reference_shown = change["new"]
        if self.runs and not self.busy:
            run, wanted = self._display.shown(), change["new"]
            self._worker.start(lambda: train_reference(run, wanted, self.panel, self._worker))
