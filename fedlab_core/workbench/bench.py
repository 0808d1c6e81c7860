"""The workbench: one panel over one round loop, for every notebook. Its thread only sets traits of widgets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fedlab_core.data import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.workbench import alive, export, store, text
from fedlab_core.workbench.catalog import Catalog, of_federation
from fedlab_core.workbench.controls import Controls
from fedlab_core.workbench.display import Display
from fedlab_core.workbench.fits import Trials, WayOut
from fedlab_core.workbench.panel import Panel
from fedlab_core.workbench.pictures import Shown
from fedlab_core.workbench.runs import Run, changes, describe, unique
from fedlab_core.workbench.tabs import CLIENTS, COSTS, CURVES, View, curves_view
from fedlab_core.workbench.training import begin, train
from fedlab_core.workbench.views import drift
from fedlab_core.workbench.views.probes import BASIN, STABILITY
from fedlab_core.workbench.worker import EXPECTED, Busy, Worker

BUILT_IN = (CURVES, CLIENTS, drift.VIEW, STABILITY, BASIN, COSTS)


class Workbench(Shown):
    """A panel to train federations with, in a notebook or without one.

        bench = Workbench(Experiment(partition="dirichlet", clients=20))
        bench                        # the panel, as the last expression of a cell
        bench.run(10, block=True)    # the same as pressing Run
        bench.report()               # a picture and a table that stay

        Workbench(federation)        # a federation of one's own, with its rounds so far
        Workbench(experiment, models={"mine": MyModel}, methods={"mine": MyMethod}, data=my_dataset)
        Workbench.open("runs/20261125-081749-4711")   # the runs of a panel whose kernel is gone

    Run goes on with the run shown if the settings are its own, else it begins a new one; Fork branches off it.

    Args:
        experiment: the first settings, or a federation.
        views: further views, after Curves, Clients, Drift, Stability, Basin and Costs.
        rounds: how many rounds Run trains, at first.
        band: whether sampled clients' own models are evaluated, to draw their band.
        reference: whether the centralised reference is trained beside the run.
        root: the data root, see `data.data_root`.
        memory_mib: limit of all runs' kept states together.
        most_runs: most runs at a time; more could not be told apart.
        models: models of one's own by name: a module, or what `registry.register` takes, a class or a function.
        methods: methods of one's own by name: classes derived from `FedAvg`, or instances.
        data: a data set of one's own, or several by name.
        keep: whether runs are kept on disk as they go, or in which folder; see `store`.

    Attributes:
        runs: all runs, in the order they began.

    Raises:
        TypeError: `experiment` is neither an experiment nor a federation.
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
        if experiment is not None and not isinstance(experiment, Experiment | Federation):
            raise TypeError(f"experiment={experiment!r}, accepted: an Experiment or a Federation")
        given, own = experiment, Catalog()
        if isinstance(experiment, Federation):
            own, experiment = of_federation(experiment)
            band = experiment.settings.evaluate_clients
        datasets = {data.name: data} if isinstance(data, Dataset) else dict(data or {})
        if datasets and experiment is None:
            experiment = Experiment(dataset=next(iter(datasets)))
        self.catalog = replace(own.extended(datasets, models or {}, methods or {}), root=root)
        self.memory_mib, self.most_runs = memory_mib, most_runs
        self._loaded = set[str]()
        self._ready = self._unchecked = self._noted = False
        self._way_out: WayOut | None = None
        first = (experiment or Experiment()).replace(evaluate_clients=band)
        self.controls = Controls(first, self._on_controls, self.catalog)
        self.controls.reference.value = reference
        self._trials = Trials(self.catalog)
        known = {view.name: view for view in (*BUILT_IN, *views)}
        self.panel = panel = Panel(self.controls.view, list(known), rounds)
        self._worker = Worker(panel, self._finish, panel.tick)
        self._display = Display(panel, known, self._worker, lambda run: self.controls.load(run.experiment))
        self._store: store.Store | None = None
        if keep:
            folder = store.new_folder() if keep is True else Path(keep).expanduser().absolute()
            self._store = store.Store(folder)
        self._list_earlier()
        actions: dict[Any, Callable[[], Any]] = {
            panel.run: self.run,
            panel.stop: self.stop,
            panel.rewind: lambda: self.rewind(block=False),
            panel.fork: lambda: self.fork(block=False),
            panel.reset: self.reset,
            panel.save: lambda: self.save(panel.kind.value),
            panel.open: lambda: self.bring_back(panel.earlier.value),
            panel.way_out: self.take_way_out,
        }
        for button, action in actions.items():
            button.on_click(lambda _, action=action: self._worker.press(action))
        panel.round.observe(lambda _: self._compare(), "value")
        self.controls.reference.observe(self._on_reference, "value")
        alive.replace_in_cell(self)
        self._ready = True
        self._check()
        if isinstance(given, Federation) and given.history:
            self._add(Run(given, [(0, self.experiment)], goal=given.round, stop=self._worker.stop))
            self._display.draw()
        self._compare()

    @classmethod
    def open(cls, folder: str | Path | None = None, **arguments: Any) -> "Workbench":
        """The runs of a panel whose kernel has gone, in a new panel that goes on keeping them in the same folder.

        Args:
            folder: of the panel; the newest one by default.
            arguments: as for `Workbench`; what the runs used of one's own has to be given again.

        Raises:
            FileNotFoundError: there is no such folder.
        """
        if folder is None:
            folder = next(iter(store.earlier()), None)
            if folder is None:
                raise FileNotFoundError(f"no runs are kept in {store.runs_home()}")
        bench = cls(**{"keep": folder, **arguments})
        bench.bring_back(folder, block=True)
        return bench

    @property
    def runs(self) -> list[Run]:
        """All runs, in the order they began."""
        return self._display.runs

    @property
    def view(self) -> Any:
        """The panel as one widget."""
        return self.panel.view

    @property
    def folder(self) -> Path | None:
        """Where runs are kept."""
        return None if self._store is None else self._store.folder

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
        run, to = self._shown(), self.panel.round.value if round is None else round

        def work() -> tuple[str, str]:
            run.rewind(to)
            self._display.choose(run, draw=False)
            self._keep(run, True)
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
            self._add(run.fork(given, point, experiment, self.catalog.method(experiment)))
            self._keep(self.runs[-1], True)
            return "done", f"{given} branches off {run.name} after round {point}. Run trains it."

        self._worker.start(work, block)

    def reset(self) -> None:
        """Forgets all runs of the panel; the settings stay, and so does what is kept on disk."""
        if self.busy:
            raise Busy("Still running: press Stop first, then Reset.")
        self.runs.clear()
        self._display.choose(None)
        self._compare()
        self.panel.advance(0, 0)
        if self._store is not None:
            self._store = store.Store(store.new_folder(self._store.folder.parent))
        self._list_earlier()
        self.panel.say("done", "All runs are forgotten, the settings stay.")

    def close(self) -> None:
        """Stops the work, forgets the runs and gives the widgets back; the panel disappears."""
        self._worker.stop.set()
        alive.hide(self.panel)
        self._ready = False
        self._display.runs = []
        self._display.current = None
        for widget in _all_inside(self.panel.view):
            widget.close()

    def save(self, kind: str = "png") -> Path | None:
        """Writes something beside the notebook, and offers it as a download.

        Args:
            kind: "png" (300 dpi), "svg" or "pdf": the figure shown, with the data of all runs as JSON beside it; "csv":
                a row per run and round; "html": a report of the run that opens without Jupyter; "code": shows the
                Python that rebuilds the run, and writes nothing.
        """
        run, view, round = self._shown(), self._display.view, self.panel.round.value
        if kind == "code":
            self.panel.show_text(export.code(run))
            self.panel.say("done", "The cell that rebuilds this run; choose a view to see the figure again.")
            return None
        shown = {"view": view.name, "run": run.name, "round": round, "seed": run.experiment.settings.seed}
        stem = f"workbench-{view.name.lower().replace(' ', '-')}-{run.experiment.key}-round-{round}"
        figure = self._display.figure() if kind in export.FIGURES or (kind == "html" and not view.slow) else None
        path = export.save(kind, stem, figure, run, self.runs, shown)
        self.panel.say("done", f"Saved {path.name} in {path.parent}.", export.download(path))
        return path

    def bring_back(self, folder: str | Path | None, *, block: bool = False) -> None:
        """Adds the runs that an earlier panel kept on disk.

        Raises:
            ValueError: no folder.
        """
        if folder is None:
            raise ValueError(f"No earlier runs are kept in {store.runs_home()}.")

        def work() -> tuple[str, str]:
            self.panel.advance(0, 0, doing="reading runs")
            found = store.bring_back(Path(folder), self.catalog)
            for run in found:
                run.stop = self._worker.stop
                self._add(run)
            last = self.runs[-1]
            self._worker_loads(last)
            return "done", f"{len(found)} runs are back: {', '.join(run.name for run in found)}."

        self._worker.start(work, block)

    def report(self) -> export.Report:
        """The curves of all runs and a table of where they stand, for the cell under the panel."""
        run = self._display.current
        return export.Report(None if run is None else curves_view(run), self.runs)

    def take_way_out(self) -> None:
        """Changes the controls as the button beside the status line offers."""
        if self._way_out is not None:
            self.set(**self._way_out.changes)

    def _train(self, experiment: Experiment, count: int, name: str | None) -> tuple[str, str]:
        run = self._display.current
        try:
            if run is None or changes(run.experiment, experiment):
                given = self._name(name, describe(experiment, self.runs[0].experiment if self.runs else None))
                self.panel.advance(0, count)
                run = begin(
                    experiment, self.catalog, given, self.memory_mib / self.most_runs, self._display, self._worker
                )
                self._trials.check(experiment)
                self._add(run)
                self._display.draw()
            self._worker.training = True
            return train(
                run,
                count,
                self._display,
                self._worker,
                lambda: self.controls.reference.value,
                lambda last: self._keep(run, last),
            )
        except InterruptedError:
            return "warning", "Stopped before the first round."

    def _keep(self, run: Run, last: bool) -> None:
        """Saves the run if it is time; what cannot be saved is said, and nothing else is lost by it."""
        if self._store is None:
            return
        try:
            self._store.keep(self.runs, run, last=last)
            self.panel.place.value = f"<div class='fedlab-note'>Runs are kept in {self._store.folder}</div>"
        except Exception as error:
            said = f"{run.name} is not kept on disk: {error}"
            self.panel.place.value = f"<div class='fedlab-note'>⚠ {said}</div>"

    def _worker_loads(self, run: Run) -> None:
        """Sets the controls to a run's settings."""
        self.controls.load(run.experiment)
        self._compare()

    def _list_earlier(self) -> None:
        menu, home = self.panel.earlier, None if self._store is None else self._store.folder.parent
        folders = [folder for folder in store.earlier(home) if folder != self.folder][:12]
        menu.options = [(store.title(folder), str(folder)) for folder in folders]
        shown = "" if folders else "none"
        menu.layout.display = self.panel.open.layout.display = shown

    def _finish(self) -> None:
        if not self._ready:
            return
        if self._unchecked:
            self._check()
        self._display.draw()
        self._compare()

    def _on_controls(self) -> None:
        if not self._ready:
            return
        self._compare()
        if self.controls.source in self._loaded or self._worker.inside:
            self._check()
        elif self.busy:
            self._unchecked = True  # looked at when the rounds under way are done
        else:
            self._noted = True
            self.panel.say("busy", f"Loading {self.controls.source_name} …")
            self._worker.start(self._check)

    def _check(self) -> None:
        """Shows who holds what under the controls' settings, or says what is wrong with them and offers a way out."""
        self._unchecked = False
        self._offer(None)
        experiment = None
        try:
            experiment = self.experiment
            dataset = self.catalog.load(experiment)
            self._loaded.add(self.controls.source)
            self._display.draft(dataset, self.catalog.divide(experiment, dataset))
            self._trials.check(experiment)
        except Exception as error:
            self._noted = True
            expected = isinstance(error, EXPECTED)
            said = error if expected else ValueError(self._misfit(experiment, error))
            self._worker.show(said, expected=True)
            if experiment is not None:
                self._offer(next(iter(self._trials.ways_out(experiment, self.controls.last)), None))
        else:
            if self._noted:
                self.panel.say("", "Ready.")
            self._noted = False

    def _misfit(self, experiment: Experiment | None, error: Exception) -> str:
        if experiment is None:
            return f"{type(error).__name__}: {error}"
        method = self.catalog.method_label(experiment.method)
        return f"{method} and the model {experiment.model} do not go together on this data ({error})"

    def _offer(self, way_out: WayOut | None) -> None:
        self._way_out = way_out
        self.panel.offer("" if way_out is None else way_out.words)

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
                self.panel.advance(0, 0, doing="training the centralised reference")
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


def _all_inside(widget: Any) -> list[Any]:
    """A widget and all that it holds."""
    return [widget, *(inner for child in getattr(widget, "children", ()) for inner in _all_inside(child))]
