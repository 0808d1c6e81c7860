"""The panel's widgets and where they stand. It knows nothing of runs; `Workbench` fills it and listens to it."""

import html
from collections.abc import Sequence

import ipywidgets as widgets

from fedlab_core.glossary import define
from fedlab_core.workbench.fields import Choice, Entry, with_range
from fedlab_core.workbench.style import CSS, line, status
from fedlab_core.workbench.text import timing

SIGNS = {"": "", "busy": "▶", "done": "✓", "warning": "⚠", "error": "✗"}
OUT = {
    "PNG 300 dpi": "png",
    "SVG": "svg",
    "PDF": "pdf",
    "CSV table": "csv",
    "HTML report": "html",
    "code": "code",
}
TERMS = {
    "Curves": ("accuracy", "loss"),
    "Clients": ("client spread", "drift"),
    "Drift": ("drift", "relative drift", "cosine"),
    "Stability": ("stability", "mixture"),
    "Basin": ("basin", "barrier"),
    "Twins": ("twin round",),
    "Costs": ("communication", "gradient steps"),
}
"""What the views show, defined in the tooltips of their tabs."""


class Panel:
    """Controls on the left, figures on the right; in a narrow window the controls follow below.

    Run comes first when the Tab key is pressed, whatever stands left of it.

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
        self.rounds.tooltip = with_range("how many rounds Run trains", self.rounds.min, self.rounds.max)
        self.rounds.layout.width = "106px"
        self.rounds.style.description_width = "46px"
        self.stop = _button("Stop", "stop", "stop before the next step; finished rounds stay")
        self.rewind = _button("Rewind", "step-backward", define("rewind"))
        self.fork = _button("Fork", "code-fork", "branch off at the round chosen below, with the controls' settings")
        self.reset = _button("Reset", "trash", "forget all runs; the settings stay")
        self.kind = widgets.Dropdown(options=list(OUT.items()), layout={"width": "116px", "margin": "0"})
        self.kind.tooltip = "what Save writes, where the notebook is"
        self.save = _button("Save", "download", "write it where the notebook is, and offer it as a download")
        self.name = Entry(description="Run name", continuous_update=False, placeholder="automatic")
        self.name.tooltip, self.name.layout.width = "name of the next run or fork; empty: automatic", "auto"
        self.name.style.description_width = "86px"
        self.earlier = Choice(description="Earlier runs")
        self.earlier.tooltip, self.earlier.layout.width = "runs kept on disk by panels before this one", "auto"
        self.earlier.style.description_width = "86px"
        self.open = _button("Open earlier runs", "folder-open-o", "bring the chosen panel's runs back into this one")
        self.place = widgets.HTML()
        self.progress = widgets.FloatProgress(0.0, min=0.0, max=1.0)
        self.progress.add_class("fedlab-progress")
        self.timing = widgets.HTML(line("&nbsp;"))
        self.status = widgets.HTML()
        self.way_out = _button("", "magic", "change the controls so that they go together", "info")
        self.shown = widgets.HTML()
        self.tabs = widgets.ToggleButtons(options=list(views), tooltips=[_about(name) for name in views])
        self.tabs.add_class("fedlab-tabs")
        self.chosen = Choice(description="Shown", disabled=True)
        self.chosen.tooltip, self.chosen.layout.width = "the run that Run continues and the rounds belong to", "212px"
        self.chosen.style.description_width = "42px"
        self.against = Choice(description="to", layout={"width": "150px", "display": "none"})
        self.against.tooltip = "the other end of the line"
        self.against.style.description_width = "16px"
        self.image = widgets.Image(format="png")
        self.text = widgets.HTML(layout={"display": "none"})
        self.text.add_class("fedlab-text")
        self.stage = widgets.Box([self.image, self.text])
        self.stage.add_class("fedlab-stage")
        self.small = widgets.Image(format="png")
        self.small.add_class("fedlab-small")
        self.round = widgets.IntSlider(0, 0, 0, description="Round")
        self.round.tooltip = "look back at any round; Rewind and Fork start from it"
        self.round.style.description_width = "40px"
        self.numbers = widgets.HTML(line("&nbsp;"))
        self.alive = widgets.HTML()
        push = widgets.Box()
        push.add_class("fedlab-push")
        work = [self.run, self.stop, self.rounds, self.rewind, self.fork, self.reset, push, self.kind, self.save]
        left = [controls, self.name, self.small, self.earlier, self.open, self.place]
        main = [
            _group(widgets.HBox, work, "fedlab-bar"),
            self.progress,
            self.timing,
            _group(widgets.HBox, [self.status, self.way_out], "fedlab-says"),
            self.tabs,
            self.stage,
            _group(widgets.HBox, [self.chosen, self.against, self.round], "fedlab-bar", "fedlab-times"),
            self.numbers,
            self.shown,
        ]
        halves = [_group(widgets.VBox, main, "fedlab-main"), _group(widgets.VBox, left, "fedlab-controls")]
        style = widgets.HTML(CSS, layout={"display": "none"})
        body = [style, self.alive, _group(widgets.HBox, halves, "fedlab-halves")]
        self.view = _group(widgets.VBox, body, "fedlab", "fedlab-bench")
        self.offer("")
        self.say("", "Ready.")
        self._pace: tuple[float, int, str] = (0.0, 0, "")
        self._before: tuple[float, str] | None = None

    def say(self, kind: str, text: str, link: str = "") -> None:
        """Sets the status line.

        Args:
            kind: a key of `SIGNS`.
            text: plain words.
            link: HTML that follows them, such as a download.
        """
        self.status.value = status(kind, SIGNS[kind], f"{html.escape(text)} {link}".rstrip(), text)

    def offer(self, words: str) -> None:
        """Offers a way out beside the status line, or none."""
        self.way_out.description = self.way_out.tooltip = words
        self.way_out.layout.display = "" if words else "none"

    def advance(self, done: float, count: int, elapsed: float = 0.0, doing: str = "") -> None:
        """Moves the progress bar; see `text.timing`."""
        self._pace = done, count, doing
        self.progress.value = done / count if count else 0.0
        self.timing.value = timing(done, count, elapsed, doing)

    def tick(self, elapsed: float) -> None:
        """A sign of life: the clock goes on whatever the work does."""
        done, count, doing = self._pace
        if count or doing:
            self.timing.value = timing(done, count, elapsed, doing)

    def pause(self, doing: str) -> None:
        """Says what is being done in the progress line's place, until `resume`."""
        self._before = self.progress.value, self.timing.value
        self.advance(0, 0, doing=doing)

    def resume(self) -> None:
        """The progress line again as it was before `pause`."""
        if self._before is not None:
            self._pace = 0.0, 0, ""
            self.progress.value, self.timing.value = self._before
            self._before = None

    def show_text(self, text: str) -> None:
        """Shows a text, such as a traceback, where the figure was, in the same space; empty shows the figure again."""
        self.text.value = f"<pre tabindex='0'>{html.escape(text)}</pre>" if text else ""
        self.text.layout.display = "" if text else "none"
        self.image.layout.display = "none" if text else ""

    def close(self) -> None:
        """Gives all widgets back; the panel disappears."""
        for widget in _inside(self.view):
            widget.close()

    def dim(self, stale: bool) -> None:
        """Dims the figure, or not."""
        (self.stage.add_class if stale else self.stage.remove_class)("fedlab-dim")


def _inside(widget: widgets.Widget) -> list[widgets.Widget]:
    """A widget and all that it holds."""
    return [widget, *(inner for child in getattr(widget, "children", ()) for inner in _inside(child))]


def _about(view: str) -> str:
    """The tooltip of a view's tab: the definitions of what it shows."""
    return "\n".join([f"show {view}", *(f"{term}: {define(term)}" for term in TERMS.get(view, ()))])


def _button(label: str, icon: str, tooltip: str, style: str = "") -> widgets.Button:
    return widgets.Button(description=label, icon=icon, tooltip=tooltip, button_style=style)


def _group(kind: type[widgets.Box], children: Sequence[widgets.Widget], *classes: str) -> widgets.Box:
    box = kind(children)
    for name in classes:
        box.add_class(name)
    return box
