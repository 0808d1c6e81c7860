"""Which run, round and view are shown, and drawing them no more often than is worth it."""

import time
import traceback
from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from fedlab_core.data import Dataset
from fedlab_core.partition import Partition
from fedlab_core.workbench import text
from fedlab_core.workbench.panel import Panel, png
from fedlab_core.workbench.runs import Run
from fedlab_core.workbench.tabs import View, holdings_figure, waiting_view
from fedlab_core.workbench.worker import Busy, Worker

SHORTEST, LONGEST = 0.25, 2.0  # seconds between two live drawings; between these
SHARE = 5  # that many times the seconds which the last one took


class Display:
    """Shows runs in a panel.

    Args:
        panel: where.
        views: by name.
        worker: the thread that works; it draws at the end of any work.
        chosen: called when a reader has chosen another run.
    """

    def __init__(
        self,
        panel: Panel,
        views: Mapping[str, View],
        worker: Worker,
        chosen: Callable[[Run], None],
    ) -> None:
        self.panel, self.views = panel, views
        self._worker, self._chosen = worker, chosen
        self.runs: list[Run] = []
        self.current: Run | None = None
        self._draft: tuple[Dataset, Partition] | None = None
        self._last, self._cost = 0.0, 0.05
        self._quiet = self._waiting = False
        panel.tabs.observe(self._on_browse, "value")
        panel.round.observe(self._on_browse, "value")
        panel.chosen.observe(self._on_chosen, "value")

    @property
    def view(self) -> View:
        """The view of the chosen tab."""
        return self.views[self.panel.tabs.value]

    def draft(self, dataset: Dataset, partition: Partition) -> None:
        """Shows who holds what under the settings of the controls; large while there is no run."""
        self._draft = dataset, partition
        self.panel.small.value = png(holdings_figure(dataset, partition))
        if self.current is None:
            self.draw()

    def choose(self, run: Run | None, draw: bool = True) -> None:
        """Shows a run at its last round, or nothing."""
        self.current = run
        self._quiet = True
        try:
            chosen = self.panel.chosen
            chosen.options = [(other.name, i) for i, other in enumerate(self.runs)]
            chosen.disabled = not self.runs
            chosen.value = None if run is None else self.runs.index(run)
            last = 0 if run is None else run.round
            self.panel.round.max = last
            self.panel.round.value = last
        finally:
            self._quiet = False
        self._last = 0.0  # the first round that comes is drawn at once
        if draw:
            self.draw()

    def follow(self, run: Run) -> None:
        """After a round of a run: lets the slider grow, moves on if it stood at the end, and draws if it is time."""
        if self.current is run:
            slider = self.panel.round
            at_end = slider.value >= slider.max
            self._quiet = True
            try:
                slider.max = run.round
                if at_end:
                    slider.value = run.round
            finally:
                self._quiet = False
            self._describe()
        pause = min(max(SHORTEST, SHARE * self._cost), LONGEST)
        if not self.view.slow and time.perf_counter() - self._last > pause:
            self.draw()

    def draw(self) -> None:
        """Draws the view now; a slow one only in the thread that works. An error is shown in the figure's place."""
        self._describe()
        if self.view.slow and self.current is not None and not self._worker.inside:
            try:
                self._worker.start(lambda: None)
            except Busy:
                self._waiting = True
                self.panel.show_text("This view is drawn when the rounds under way are done.")
            return
        began = time.perf_counter()
        try:
            while True:  # a slow view may find, when it is drawn, that another round has been chosen meanwhile
                wanted = self._wanted()
                figure = self.figure()
                if figure is not None:
                    self.panel.image.value = png(figure)
                if self._waiting:
                    self._waiting = False
                    self.panel.show_text("")
                if not self.view.slow or wanted == self._wanted():
                    break
        except Exception as error:
            self.panel.say("error", f"View {self.view.name}: {type(error).__name__}: {error}")
            self.panel.show_text(traceback.format_exc())
        self._last = time.perf_counter()
        self._cost = self._last - began

    def figure(self) -> Figure | None:
        """The chosen view of the run shown; who holds what before there is one."""
        if self.current is not None and self.current.federation.history:
            return self.view.draw(self.current, self.panel.round.value)
        return None if self._draft is None else waiting_view(*self._draft)

    def _wanted(self) -> tuple[str, int | None, int]:
        return self.panel.tabs.value, self.panel.chosen.value, self.panel.round.value

    def _describe(self) -> None:
        record = None if self.current is None else self.current.at(self.panel.round.value)
        self.panel.numbers.value = text.numbers(record)

    def _on_browse(self, _: object) -> None:
        if not self._quiet:
            self._waiting = False
            self.panel.show_text("")
            self.draw()

    def _on_chosen(self, change: dict[str, int | None]) -> None:
        if not self._quiet and change["new"] is not None:
            self.choose(self.runs[change["new"]])
            self._chosen(self.current)
