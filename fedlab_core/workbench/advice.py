"""What the panel says about the controls: whether they go together, a way out, and whether the result is theirs."""

import threading
from typing import Any

from fedlab_core.data import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.workbench import text
from fedlab_core.workbench.catalog import Catalog
from fedlab_core.workbench.controls import Controls
from fedlab_core.workbench.display import Display
from fedlab_core.workbench.fits import Trials, WayOut
from fedlab_core.workbench.panel import Panel
from fedlab_core.workbench.worker import EXPECTED, Busy, Worker


class Advice:
    """Looks at the controls after every change: at once, or once their data set is loaded or the thread is free.

    Changes are counted, and so is what was checked; `settle` checks where they differ. It is called after every change
    and, once the thread is free again, at the end of all work: so no change is missed, and the last one is judged last.

    Args:
        panel: where it speaks.
        worker: loads data sets that were not loaded yet.
        display: shows who would hold what.
        catalog: what there is to choose from.

    Attributes:
        trials: what was tried so far.
        tried: the settings of the last run or fork, which may be refused.
    """

    def __init__(self, controls: Controls, panel: Panel, worker: Worker, display: Display, catalog: Catalog) -> None:
        self._controls, self._panel, self._worker, self._display = controls, panel, worker, display
        self._catalog, self.trials = catalog, Trials(catalog)
        self.tried: Experiment | None = None
        self._noted = False  # whether the status line says what is wrong; the next check that passes takes it back
        self._loaded = set[str]()
        self._asked, self._checked = 1, 0
        self._checking, self._comparing = threading.RLock(), threading.Lock()
        self._way_out: WayOut | None = None

    def look(self) -> None:
        """After a change of the controls."""
        self._asked += 1
        self.compare()
        self.settle()

    def settle(self) -> None:
        """Checks the controls if they were changed since the last check, unless the thread is busy."""
        if self._worker.refused and self.tried is not None:
            self._noted = True
            self._asked += not self._same(self.tried)  # what was refused may have been put right since
            self.tried = None
        while self._checked != self._asked and (self._worker.inside or not self._worker.busy):
            if self._worker.inside or self._controls.source in self._loaded:
                self.check()
                continue
            self._noted = True
            self._panel.say("busy", f"Loading {self._controls.source_name} …")
            try:
                self._worker.start(self.check)
            except Busy:  # just now; the end of that work brings us back
                pass
            return

    def check(self) -> None:
        """Shows who holds what under the controls' settings, or says what is wrong with them and offers a way out."""
        with self._checking:
            asked = self._asked
            if asked != self._checked and self._check():
                self._checked = asked

    def _check(self) -> bool:
        """Whether the verdict is final: not if work has begun meanwhile, at whose end we look again."""
        self._offer(None)
        experiment = None
        try:
            experiment = self._controls.experiment
            dataset = self._load(experiment)
            self._loaded.add(self._controls.source)
            self._display.draft(dataset, self._catalog.divide(experiment, dataset))
            self.trials.check(experiment)
        except InterruptedError:
            self._noted = True
            self._panel.say("warning", f"The loading of {self._controls.source_name} was stopped. Run loads it.")
        except Exception as error:
            self._noted = True
            self._worker.show(self._said(experiment, error), expected=True)
            if experiment is not None:
                self._offer(next(iter(self.trials.ways_out(experiment, self._controls.last)), None))
        else:
            if self._worker.busy and not self._worker.inside:
                return False
            note = self.trials.note(experiment)
            if self._noted or note:
                self._panel.say("", note or "Ready.")
            self._noted = bool(note)
        return True

    def _load(self, experiment: Experiment) -> Dataset:
        if self._worker.inside:
            return self._worker.patiently(lambda: self._catalog.load(experiment))
        return self._catalog.load(experiment)

    def compare(self) -> None:
        """Says what the result shown was made with, and marks it where the controls no longer match it."""
        with self._comparing:
            run, panel = self._display.current, self._panel
            try:
                stale = "" if run is None else text.stale_line(run, self._controls.experiment, panel.round.value)
            except ValueError:
                return  # `check` says what is wrong
            panel.shown.value = text.hint_line() if run is None else stale or text.settings_line(run)
            panel.dim(bool(stale))

    def _same(self, experiment: Experiment) -> bool:
        try:
            return self._controls.experiment == experiment
        except ValueError:
            return False

    def way_out(self) -> dict[str, Any]:
        """The changes that the button beside the status line offers."""
        return {} if self._way_out is None else self._way_out.changes

    def _offer(self, way_out: WayOut | None) -> None:
        self._way_out = way_out
        self._panel.offer("" if way_out is None else way_out.words)

    def _said(self, experiment: Experiment | None, error: Exception) -> Exception:
        if experiment is None or isinstance(error, EXPECTED):
            return error
        method = self._catalog.method_label(experiment.method)
        return ValueError(f"{method} and the model {experiment.model} do not go together on this data ({error})")
