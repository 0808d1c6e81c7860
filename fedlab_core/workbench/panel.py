"""The panel's widgets and where they stand. It knows nothing of runs; `Workbench` fills it and listens to it."""

import html
import io
import threading
from collections.abc import Sequence

import ipywidgets as widgets
from matplotlib.figure import Figure

from fedlab_core.workbench.style import CSS, line, status
from fedlab_core.workbench.text import timing

SIGNS = {"": "", "busy": "▶", "done": "✓", "warning": "⚠", "error": "✗"}
DPI = 150  # sharp on screens with small pixels, and hardly slower to draw than 100
_DRAWING = threading.Lock()  # Matplotlib is not safe in two threads at once


class Panel:
    """Controls on the left, figures on the right.

    Args:
        controls: the widgets of the settings.
        views: names of the views.
        rounds: first value of the number of rounds per Run.
    """

    def __init__(self, controls: widgets.Widget, views: Sequence[str], rounds: int) -> None:
        self.run = _button(
            "Run", "play", "train: go on if the settings are those shown, else begin a new run", "success"
        )
        self.rounds = widgets.BoundedIntText(rounds, min=1, max=100_000, description="Rounds")
        self.rounds.tooltip, self.rounds.layout.width = "how many rounds Run trains", "104px"
        self.rounds.style.description_width = "50px"
        self.stop = _button("Stop", "stop", "stop before the next client; finished rounds stay")
        self.rewind = _button("Rewind", "step-backward", "forget the rounds after the one chosen below")
        self.fork = _button("Fork", "code-fork", "branch off at the round chosen below, with the settings on the left")
        self.reset = _button("Reset", "trash", "forget all runs; the settings stay")
        self.save = _button("Save figure", "picture-o", "write this figure as PNG and its data as JSON")
        self.export = _button("Export CSV", "table", "write every round of every run as a row")
        self.name = widgets.Text(description="Run name", continuous_update=False)
        self.name.tooltip, self.name.layout.width = "name of the next run or fork; empty: automatic", "auto"
        self.name.style.description_width = "102px"
        self.progress = widgets.FloatProgress(0.0, min=0.0, max=1.0)
        self.progress.add_class("fedlab-progress")
        self.timing = widgets.HTML(line("&nbsp;"))
        self.status = widgets.HTML()
        self.shown = widgets.HTML()
        self.tabs = widgets.ToggleButtons(options=list(views), tooltips=[f"show {name}" for name in views])
        self.tabs.add_class("fedlab-tabs")
        self.chosen = widgets.Dropdown(description="Shown run", disabled=True)
        self.chosen.tooltip, self.chosen.layout.width = "the run that Run continues and the rounds belong to", "280px"
        self.chosen.style.description_width = "66px"
        self.image = widgets.Image(format="png")
        self.text = widgets.HTML(layout={"display": "none"})
        self.text.add_class("fedlab-text")
        self.stage = widgets.Box([self.image, self.text])
        self.stage.add_class("fedlab-stage")
        self.small = widgets.Image(format="png")
        self.small.add_class("fedlab-small")
        self.round = widgets.IntSlider(0, 0, 0, description="Round")
        self.round.tooltip = "look back at any round; Rewind and Fork start from it"
        self.round.style.description_width = "48px"
        self.round.add_class("fedlab-round")
        self.numbers = widgets.HTML(line("&nbsp;"))
        push = widgets.Box()
        push.add_class("fedlab-push")
        work = [self.rounds, self.run, self.stop, self.rewind, self.fork, self.reset, push, self.save, self.export]
        gap = widgets.Box()
        gap.add_class("fedlab-push")
        left = _group(widgets.VBox, [controls, self.name, self.small], "fedlab-controls")
        main = [
            _group(widgets.HBox, work, "fedlab-bar"),
            self.progress,
            self.timing,
            self.status,
            _group(widgets.HBox, [self.tabs, gap, self.chosen], "fedlab-bar"),
            self.shown,
            self.stage,
            self.round,
            self.numbers,
        ]
        right = _group(widgets.VBox, main, "fedlab-main")
        self.view = _group(widgets.HBox, [widgets.HTML(CSS, layout={"display": "none"}), left, right], "fedlab")
        self.say("", "Ready.")

    def say(self, kind: str, text: str) -> None:
        """Sets the status line; `kind` is a key of `SIGNS`."""
        self.status.value = status(kind, SIGNS[kind], html.escape(text))

    def advance(self, done: float, count: int, elapsed: float = 0.0, doing: str = "") -> None:
        """Moves the progress bar; see `text.timing`."""
        self.progress.value = done / count if count else 0.0
        self.timing.value = timing(done, count, elapsed, doing)

    def show_text(self, text: str) -> None:
        """Shows a text, such as a traceback, where the figure was, in the same space; empty shows the figure again."""
        self.text.value = f"<pre tabindex='0'>{html.escape(text)}</pre>" if text else ""
        self.text.layout.display = "" if text else "none"
        self.image.layout.display = "none" if text else ""

    def dim(self, stale: bool) -> None:
        """Dims the figure, or not."""
        (self.stage.add_class if stale else self.stage.remove_class)("fedlab-dim")


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """A figure as PNG, drawn by one thread at a time."""
    content = io.BytesIO()
    with _DRAWING:
        figure.savefig(content, dpi=dpi, format="png", metadata={"Software": None})
    return content.getvalue()


def _button(label: str, icon: str, tooltip: str, style: str = "") -> widgets.Button:
    return widgets.Button(description=label, icon=icon, tooltip=tooltip, button_style=style)


def _group(kind: type[widgets.Box], children: Sequence[widgets.Widget], css: str) -> widgets.Box:
    box = kind(children)
    box.add_class(css)
    return box
