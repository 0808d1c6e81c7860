"""The Lab: a small live panel of one experiment, with a few knobs, a picture, and a sentence that reads the picture."""

import base64
import html
import textwrap
import threading
import time
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
from IPython.display import display, update_display

from fedlab_core import plots
from fedlab_core.check import checked
from fedlab_core.federation import Federation
from fedlab_core.workbench.bench import Workbench
from fedlab_core.workbench.fields import knob
from fedlab_core.workbench.panel import SIGNS
from fedlab_core.workbench.pictures import FramePace, Live, dying_young, put
from fedlab_core.workbench.plan import Plan, Result, experiment_code, plan_code
from fedlab_core.workbench.style import CSS, LAB_CSS, status
from fedlab_core.workbench.worker import Busy, Worker

TRIAL = 0.6  # seconds: how long the first look after a knob was moved may take, which also measures a round
OVERTAKEN = 5.0  # seconds after Run in which a move counts as made before: JupyterLab sends a press at once, a move not
KEPT = 4  # earlier results that stay for comparison


@checked
class Lab:
    """A live panel of a `Plan`, in a notebook or without one.

        lab = Lab(plan)
        lab                              # the panel, as the last expression of a cell
        lab.set(alpha=0.1).run(block=True)   # the same as moving a knob and pressing Run
        lab.sentence, lab.result         # what came out

    Shown, or after a knob has moved, it trains for about half a second: the first picture, and a measured estimate of
    how long Run will take. Run goes on from there.

    Attributes:
        plan: what it runs.
        kept: finished results before the one shown, the latest last.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.kept: list[Result] = []
        self._result: Result | None = None
        self._shown_as: str | None = None
        self._bench: Workbench | None = None
        self._quiet = False
        self._pictures, self._pace = Live(), FramePace()
        self._drawing = threading.RLock()  # a move of a view draws while the worker may
        self._asked: dict[str, Any] | None = None  # settings that the worker is to run to the end; None: a look at most
        self._pressed = -OVERTAKEN  # when Run was
        self.knobs = {name: knob(plan, name) for name in plan.knobs}
        self._run = widgets.Button(description="Run", icon="play", button_style="success", tooltip="train to the end")
        self._stop = widgets.Button(description="Stop", icon="stop", tooltip="stop; what was finished stays")
        self._open = widgets.Button(description="Open in the workbench", icon="external-link")
        self._copy = widgets.Button(description="Copy as code", icon="code", tooltip="show the code of these settings")
        self._bar = widgets.FloatProgress(0.0, min=0.0, max=1.0)
        self._bar.add_class("fedlab-progress")
        self._about, self._status, self._said = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._image = widgets.Image(format="png")
        self._list, self._text = widgets.HTML(), widgets.HTML()
        knobs, bar = widgets.Box(list(self.knobs.values())), widgets.Box(self._buttons())
        knobs.add_class("fedlab-knobs")
        bar.add_class("fedlab-bar")
        head = widgets.HTML(f"{CSS}{LAB_CSS}<p><b>{html.escape(plan.title)}</b></p>")
        frame = widgets.Box([self._image])  # a narrow screen pushes the picture sideways
        frame.add_class("fedlab-frame")
        below = [frame, self._said, self._list, self._text]
        self.view = widgets.VBox([head, knobs, bar, self._bar, self._status, *below])
        self.view.add_class("fedlab")
        self.view.add_class("fedlab-lab")
        self._worker = Worker(self)
        for control in self.knobs.values():
            control.observe(self._on_knob, "value")
        self._run.on_click(lambda _: self._worker.press(self.run))
        self._stop.on_click(lambda _: self.stop())
        self._open.on_click(lambda _: self._worker.press(self.open_workbench))
        self._copy.on_click(lambda _: self.show_text("" if self._text.value else self.code()))
        self.say("", "Predict first; then press Run.")

    def _buttons(self) -> list[widgets.Widget]:
        return [self._run, self._stop, self._about, *([self._open] if self.plan.experiment else []), self._copy]

    @property
    def settings(self) -> dict[str, Any]:
        """What the knobs say."""
        return {name: knob.value for name, knob in self.knobs.items()}

    @property
    def result(self) -> Result:
        """What is shown.

        Raises:
            ValueError: nothing has run yet.
        """
        if self._result is None:
            raise ValueError("no result yet: call run(block=True) first")
        return self._result

    @property
    def sentence(self) -> str:
        """The picture in numbers, in lines of at most 100 characters."""
        return textwrap.fill(self.plan.sentence(self._now()), 100)

    @property
    def figure(self) -> plots.Picture:
        """The picture of the result."""
        plots.style()
        figure = plots.Picture(figsize=self.plan.size, layout="constrained")
        self.plan.picture(figure, self._now())
        return figure

    def _now(self) -> Result:
        """The result as the views show it; its frames stay as they are while more arrive."""
        result = self.result
        result.settings = {**result.settings, **{name: self.settings[name] for name in self.plan.views}}
        return replace(result, frames={name: list(frames) for name, frames in result.frames.items()})

    def set(self, **values: Any) -> "Lab":
        """Moves knobs, and returns the lab.

        Raises:
            ValueError: an unknown knob, or a value it does not have.
        """
        for name, value in values.items():
            if name not in self.knobs:
                raise ValueError(f"{name!r} is no knob, accepted: {list(self.knobs)}")
            if value not in self.plan.knobs[name]:
                raise ValueError(f"{name}={value!r}, accepted: {list(self.plan.knobs[name])}")
        self._quiet = True
        for name, value in values.items():
            self.knobs[name].value = value
        self._quiet = False
        if set(values) & set(self.plan.views):
            self._redraw()
        return self

    def run(self, block: bool = False) -> "Lab":
        """Trains to the end with the knobs' settings; a result that is complete is left as it is.

        Args:
            block: wait for the end, and raise what was raised; a run under way is waited for first. Otherwise one with
                other settings makes way.

        Raises:
            Busy: a run with these settings is under way.
        """
        if self._worker.busy and self._asked is not None:
            if block:
                self._worker.wait()
            elif self.plan.trained(self._asked) == self.plan.trained(self.settings):
                raise Busy("Already running: wait for the end or press Stop first.")
        self._end_trial()
        self._asked, self._pressed = self.settings, time.perf_counter()
        self._worker.start(lambda: self._advance(None), block)
        if block and self._shown_as is not None:  # so that the saved notebook shows the finished picture
            update_display(self._bundle(), metadata=self._width(), raw=True, display_id=self._shown_as)
        return self

    def stop(self) -> None:
        """Asks the run to stop; what was finished stays, and Run goes on from there."""
        self._pressed = -OVERTAKEN
        self._worker.stop.set()

    def wait(self, timeout: float | None = None) -> None:
        """Waits for the end of the work, and raises what it raised; TimeoutError after `timeout` seconds."""
        self._worker.wait(timeout)

    def code(self) -> str:
        """Python that repeats the settings shown."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        imports, name = plan_code(self.plan)
        imports = ["from fedlab_core.workbench.lab import Lab", *imports]
        made = [f"lab = Lab({name}).set({arguments}).run(block=True)"]
        lines = [*imports, "", *made] if name else [f"lab.set({arguments}).run(block=True)  # lab: of your own plan"]
        if self.plan.experiment is not None:
            experiment = experiment_code(self.plan.experiment(**self.settings))
            rounds = self.plan.length(self.settings)
            lines += ["", "from fedlab_core.experiment import Experiment", "", f"experiment = {experiment}"]
            lines += [f"federation = experiment.build().run({rounds})"]
        return "\n".join(lines)

    def open_workbench(self) -> Workbench:
        """The settings in a full workbench, under the lab."""
        if self.plan.experiment is None:
            raise ValueError("this lab is no single experiment, so the workbench cannot open it")
        if self._bench is not None:
            self._bench.close()
        self._bench = Workbench(self.plan.experiment(**self.settings), rounds=self.plan.length(self.settings))
        self.view.children = (*self.view.children[:9], self._bench.view)
        return self._bench

    def say(self, kind: str, text: str) -> None:
        """Sets the status line; `kind` is a key of `panel.SIGNS`."""
        self._status.value = status(kind, SIGNS[kind], html.escape(text))

    def show_text(self, text: str) -> None:
        """Shows a text, such as code or a traceback, under the picture; an empty one takes it away."""
        self._text.value = f"<pre tabindex='0'>{html.escape(text)}</pre>" if text else ""

    def _ipython_display_(self) -> None:
        if self._result is None and not self._worker.busy:
            self._worker.start(lambda: self._advance(TRIAL))
        self._shown_as = f"lab-{id(self)}"
        display(self._bundle(), metadata=self._width(), raw=True, display_id=self._shown_as)

    def _bundle(self) -> dict[str, Any]:
        bundle = {**(self.view._repr_mimebundle_() or {}), "text/plain": f"[lab: {self.plan.title}]"}
        return bundle | ({"image/png": base64.b64encode(self._image.value).decode()} if self._image.value else {})

    def _width(self) -> dict[str, Any]:
        """How wide the picture is where no widget can be shown."""
        return {"image/png": {"width": round(100 * self.plan.size[0])}}

    def _on_knob(self, change: Any) -> None:
        if self._quiet:
            return
        if change["owner"] in [self.knobs[name] for name in self.plan.views]:
            self._redraw()
            return
        overtaken = time.perf_counter() - self._pressed < OVERTAKEN  # even if that run has ended
        if self._worker.busy and self._asked is not None and not overtaken:
            self.say("warning", "The picture belongs to the settings before. Run starts with the new ones.")
            return
        self._end_trial()
        self._asked = self.settings if overtaken else None
        self._worker.start(lambda: self._advance(None if overtaken else TRIAL))

    def _end_trial(self) -> None:
        if self._worker.busy:
            self._worker.stop.set()
            self._worker.join()

    def _advance(self, budget: float | None) -> tuple[str, str]:
        """Goes on with the result shown, or begins one; to the end, or for about `budget` seconds."""
        began, self._worker.training = time.perf_counter(), budget is None
        trained = self.plan.trained
        if self._result is None or trained(self._result.settings) != trained(self.settings):
            if self._result is not None and self._result.done:
                self.kept = [*self.kept, self._result][-KEPT:]
            self.say("busy", "Preparing …")
            result = self.plan.begin(self.settings, tuple(self.kept))
            result.seconds += time.perf_counter() - began
            self._result = result
        result = self._result
        self._pace.begin()
        first, total = self._count(result), self.plan.length(result.settings) * len(result.sources)
        self.say("busy", "Running …" if budget is None else "A first look …")
        sweeps = 0
        while not (result.done or self._worker.stop.is_set()):
            if budget is not None and time.perf_counter() - began > budget and sweeps > 1:
                break
            since, more = time.perf_counter(), False
            for name in result.sources:
                more |= self._step(result, name)
                if self._count(result) == 1:  # the first picture does not wait for the other runs
                    self._draw(live=True)
            result.done, sweeps = not more, sweeps + 1
            took = time.perf_counter() - since  # of the last frame of every run: the first ones also warm up
            result.seconds += took
            self._bar.value = min(1.0, self._count(result) / total)
            left = took * (total - self._count(result)) / len(result.sources)
            self._about.value = "" if result.done else f"<p>about {max(1, round(left))} s to the end</p>"
            if self._pace.due:
                self._draw(live=True)
        if self._count(result) > first or result.done:
            self._draw()
        if result.done:
            self._bar.value = 1.0
            self._about.value = f"<p>took {result.seconds:.1f} s</p>"
            return "done", f"Done: {result.label}."
        return ("", "Ready: press Run.") if budget is not None else ("warning", "Stopped. Run goes on from here.")

    def _step(self, result: Result, name: str) -> bool:
        """One frame of a run; False if there is none left."""
        frames, source = result.frames[name], result.sources[name]
        if isinstance(source, Federation):
            if source.round >= self.plan.length(result.settings):
                return False
            for _ in source.rounds(1, stop=self._worker.stop):
                pass
            frames[:] = source.history
            return True
        frame = next(source, None) if len(frames) < self.plan.length(result.settings) else None
        if frame is not None:
            frames.append(frame)
        return frame is not None

    @staticmethod
    def _count(result: Result) -> int:
        """Frames so far, round 0 of federations not counted."""
        counts = [(len(f), isinstance(result.sources[n], Federation)) for n, f in result.frames.items()]
        return sum(count - (federated and count > 0) for count, federated in counts)

    def _redraw(self) -> None:
        if self._result is not None:
            self._draw()

    def _draw(self, live: bool = False) -> None:
        with self._drawing:
            began = time.perf_counter()
            with dying_young():
                figure = self.figure
                put(self._image, figure, self._pictures.png("lab", figure, live=live))
                del figure
            self._said.value = f"<p class='fedlab-sentence'>{html.escape(self.sentence)}</p>"
            rows = [f"<li>{html.escape(old.label)}: {html.escape(self.plan.sentence(old))}</li>" for old in self.kept]
            self._list.value = f"<p>Before:</p><ul>{''.join(rows)}</ul>" if rows else ""
            self._pace.drawn(began, live=self._pictures.quick)
