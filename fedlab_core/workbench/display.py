"""Which run, round and view are shown, and drawing them no more often than is worth it."""

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from fedlab_core.data import Dataset
from fedlab_core.local.work import Stopped
from fedlab_core.partition import Partition
from fedlab_core.workbench import export, text
from fedlab_core.workbench.panel import Panel
from fedlab_core.workbench.pictures import FramePace, Live, dying_young, png, put
from fedlab_core.workbench.runs import Run, unique
from fedlab_core.workbench.tabs import View, empty_view, holdings_figure, waiting_view
from fedlab_core.workbench.worker import Busy, Worker


class Display:
    """Shows runs in a panel.

    Args:
        panel: where.
        views: by name.
        worker: the thread that works; it draws between rounds and at the end of any work.
        chosen: called when a reader has chosen another run.
        most: runs at a time; more could not be told apart.
    """

    def __init__(
        self,
        panel: Panel,
        views: Mapping[str, View],
        worker: Worker,
        chosen: Callable[[Run], None],
        most: int = 8,
    ) -> None:
        self.panel, self.views, self.most = panel, views, most
        self._worker, self._chosen = worker, chosen
        self.runs: list[Run] = []
        self.current: Run | None = None
        self._draft: tuple[Dataset, Partition] | None = None
        self._pictures = Live()
        self._pace = FramePace()
        self._moving: int | None = None  # the thread that moves the slider and the menus, not the reader
        self._waiting = False
        self._pictured: tuple[str, int | None] | None = None  # the view and the run of the picture in the panel
        self._promise = threading.Lock()  # that a view will be drawn: `_waiting`, and the words that say so
        panel.tabs.observe(self._on_browse, "value")
        panel.round.observe(self._on_browse, "value")
        panel.against.observe(self._on_browse, "value")
        panel.chosen.observe(self._on_chosen, "value")

    @property
    def view(self) -> View:
        """The view of the chosen tab."""
        return self.views[self.panel.tabs.value]

    def draft(self, dataset: Dataset, partition: Partition) -> None:
        """Shows who holds what under the settings of the controls; large while there is no run."""
        self._draft = dataset, partition
        self.panel.small.value = png(holdings_figure(dataset, partition), 150)
        if self.current is None:
            self.draw()

    def choose(self, run: Run | None, draw: bool = True) -> None:
        """Shows a run at its last round, or nothing."""
        self.current = run
        self._moving = threading.get_ident()
        try:
            chosen, against = self.panel.chosen, self.panel.against
            chosen.options = [(other.name, i) for i, other in enumerate(self.runs)]
            chosen.disabled = not self.runs
            chosen.value = None if run is None else self.runs.index(run)
            others = [(other.name, i) for i, other in enumerate(self.runs) if other is not run]
            against.options = [("its own round 0", -1), *others]
            against.value = run.parent and self.runs.index(run.parent) if run and run.parent in self.runs else -1
            last = 0 if run is None else run.round
            self.panel.round.max = last
            self.panel.round.value = last
        finally:
            self._moving = None
        self._pace.begin()  # the first round that comes is drawn at once
        if draw:
            self.draw()

    def add(self, run: Run) -> None:
        """Takes a run up and shows it.

        Raises:
            ValueError: there are too many.
        """
        if len(self.runs) >= self.most:
            raise ValueError(
                f"{len(self.runs)} runs are shown and more could not be told apart: press Reset, "
                f"or make the panel with Workbench(most_runs={2 * self.most})"
            )
        run.index, run.overlaid = len(self.runs), self.runs
        self.runs.append(run)
        self.choose(run, draw=False)

    def shown(self) -> Run:
        """The run shown.

        Raises:
            ValueError: there is none yet.
        """
        if self.current is None:
            raise ValueError("There is no run yet: press Run first.")
        return self.current

    def named(self, given: str | None, automatic: str) -> str:
        """What the next run is called: as given, else as typed into the panel, else automatically; never twice."""
        name = given or self.panel.name.value.strip() or automatic
        self.panel.name.value = ""
        return unique(name, (run.name for run in self.runs))

    def save(self, kind: str) -> Path | None:
        """Writes what is shown into a file, or shows the code of the run; see `Workbench.save`."""
        run, panel = self.shown(), self.panel
        if kind == "code":
            panel.show_text(export.code(run))
            panel.say("done", "The cell that rebuilds this run; choose a view to see the figure again.")
            return None
        replayed = 0 if self._worker.busy else export.REPLAYED
        shown = bytes(panel.image.value) if self._pictured == self._wanted()[:2] else None
        colours = "fedlab-colours" in panel.image._dom_classes
        path = export.save(kind, self.view, run, self.runs, panel.round.value, self.figure, replayed, shown, colours)
        panel.say("done", f"Saved {path.name} in {path.parent}.", export.download(path))
        return path

    def leave(self) -> None:
        """Lets go of all runs without showing anything."""
        self.runs, self.current = [], None

    def follow(self, run: Run) -> None:
        """After a round of a run: lets the slider grow, moves on if it stood at the end, and draws if it is time."""
        if self.current is run:
            slider = self.panel.round
            at_end = slider.value >= slider.max
            self._moving = threading.get_ident()
            try:
                slider.max = run.round
                if at_end:
                    slider.value = run.round
            finally:
                self._moving = None
            self._describe()
        if self._waiting or self._pace.due:
            self.draw(live=True)

    def draw(self, live: bool = False) -> None:
        """Draws the view now; a slow one only in the thread that works. An error is shown in the figure's place."""
        self._describe()
        if self.view.slow and self._measured and not self._worker.inside:
            try:
                self._worker.start(self._draw_alone, yields=True)
            except Busy:
                self._wait(True)
                if not self._worker.busy:
                    self.settle()
            return
        began, quick = time.perf_counter(), live
        try:
            while True:  # a slow view may find, when it is drawn, that another round has been chosen meanwhile
                wanted = self._wanted()
                with dying_young():
                    if (figure := self.figure()) is not None:
                        kind = f"{self.view.name} {self._measured}"
                        put(self.panel.image, figure, self._pictures.png(kind, figure, live=live))
                        self._pictured, quick = wanted[:2], self._pictures.quick
                    del figure
                self._wait(False)
                if not self.view.slow or wanted == self._wanted():
                    break
        except (InterruptedError, Stopped):
            if not live:
                self._waiting = False  # a drawing that was stopped is not owed any more
                self.panel.show_text(f"The drawing of {self.view.name} was stopped. Choose the view again to draw it.")
        except Exception as error:
            self.panel.say("error", f"View {self.view.name}: {type(error).__name__}: {error}")
            self.panel.show_text(traceback.format_exc())
        finally:
            self.panel.resume()
        if self._measured:  # else the first round is drawn as soon as it comes
            self._pace.drawn(began, live=quick)

    def finish(self) -> None:
        """Draws what there is at the end of all work. Where the work was stopped this waits until the thread is
        free, so that nobody has to wait for a drawing, and a slow one can be stopped in turn."""
        if not self._worker.stopped:
            self.draw()
        elif self.view.slow and self._measured:
            self._wait(True)
        else:
            self._waiting = True

    def figure(self) -> Figure | None:
        """The chosen view of the run shown; who holds what before there is a round."""
        run, at = self.current, self.panel.against.value
        if run is not None and self._measured:
            run.other = self.runs[at] if at is not None and 0 <= at < len(self.runs) else None
            return self.view.draw(run, self.panel.round.value)
        if run is not None:
            return empty_view(run.label)
        return None if self._draft is None else waiting_view(*self._draft)

    def settle(self) -> None:
        """Once the thread is free: draws what had to wait for it."""
        if self._waiting:
            self.draw()

    def _wait(self, waiting: bool) -> None:
        """Promises that the view will be drawn, in the figure's place, or takes the promise back."""
        with self._promise:
            if waiting:
                self.panel.show_text("This view is drawn when the round under way is done.")
            elif self._waiting:
                self.panel.show_text("")
            self._waiting = waiting

    @property
    def _measured(self) -> bool:
        return self.current is not None and bool(self.current.federation.past.records)

    def _draw_alone(self) -> None:
        """The work of the thread where a slow view is all it does: `draw` follows at its end."""
        self.panel.pause(f"drawing {self.view.name}")

    def _wanted(self) -> tuple[str, int | None, int, int | None]:
        panel = self.panel
        return panel.tabs.value, panel.chosen.value, panel.round.value, panel.against.value

    def _describe(self) -> None:
        record = None if self.current is None else self.current.at(self.panel.round.value)
        self.panel.numbers.value = text.numbers(record)
        self.panel.against.layout.display = "" if self.view.against else "none"

    def _on_browse(self, _: object) -> None:
        if self._moving != threading.get_ident():
            self._waiting = False
            self.panel.show_text("")
            self.draw()

    def _on_chosen(self, change: dict[str, int | None]) -> None:
        if self._moving != threading.get_ident() and change["new"] is not None:
            run = self.runs[change["new"]]
            self.choose(run)
            self._chosen(run)
