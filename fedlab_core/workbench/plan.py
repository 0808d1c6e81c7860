"""What a lab runs, as plain data: knobs, what they make, a picture, and a sentence that reads it."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedlab_core import plots
from fedlab_core.check import checked
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.glossary import define
from fedlab_core.intervals import half_width
from fedlab_core.plots import finetuning
from fedlab_core.workbench.labels import KNOB_TERMS
from fedlab_core.workbench.options import differing

Source = Experiment | Federation | Iterator[Any]
"""What a lab runs: an experiment or a federation, whose frames are its records, or any iterator of frames."""


@checked
@dataclass(frozen=True)
class Band:
    """A recorded result to draw faintly behind the reader's own.

    Attributes:
        label: what it is; the number of seeds is added.
        x, mean, low, high: the curve and its interval.
        seeds: how many runs it is made of.
    """

    label: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    seeds: int

    @classmethod
    def of_curves(cls, label: str, x: Sequence[float], curves: Sequence[Sequence[float]]) -> "Band":
        """The mean of one curve per seed, with its 95 % interval (Student's t)."""
        values, n = np.asarray(curves, dtype=float), len(curves)
        mean = values.mean(0)
        half = half_width(values) if n > 1 else np.zeros_like(mean)
        return cls(label, list(x), mean.tolist(), (mean - half).tolist(), (mean + half).tolist(), n)

    def draw(self, ax: Axes, index: int | str | None = None) -> None:
        """Draws the band in the pale colour of line `index`, or in that colour, grey without one."""
        color = plots.LINE_COLORS[index % len(plots.LINE_COLORS)] if isinstance(index, int) else index or "0.45"
        label = f"{say(self.label)} (recorded, n = {self.seeds}, 95 %)"
        ax.fill_between(self.x, self.low, self.high, color=color, alpha=0.13, linewidth=0, zorder=0)
        ax.plot(self.x, self.mean, color=color, alpha=0.8, linewidth=1.2, linestyle=":", zorder=0, label=label)


@checked
@dataclass(eq=False)
class Result:
    """What one press of Run has made so far.

    Attributes:
        settings: of the knobs.
        frames: by run, what has arrived: a federation's records (round 0 first), or what its iterator gave.
        sources: by run, what makes the frames.
        behind: recorded results at these settings.
        earlier: results kept from before, the latest last.
        seconds: spent so far.
        done: whether nothing more will come.
    """

    settings: Mapping[str, Any]
    sources: Mapping[str, Federation | Iterator[Any]]
    behind: Sequence[Band] = ()
    earlier: Sequence["Result"] = ()
    frames: dict[str, list[Any]] = field(default_factory=dict)
    seconds: float = 0.0
    done: bool = False

    def last(self, name: str | None = None) -> Any:
        """The last frame of a run, of the first one by default; None before there is one."""
        frames = self.frames[next(iter(self.frames)) if name is None else name]
        return frames[-1] if frames else None

    @property
    def label(self) -> str:
        """The settings in words."""
        return ", ".join(f"{say(name)} = {say(value)}" for name, value in self.settings.items())


@checked
def say(value: Any) -> str:
    """A knob's name or value as a reader sees it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "all" if value is None else str(value).replace("_", "-")


@checked
def experiment_code(experiment: Experiment) -> str:
    """Python that makes the experiment, with no name but `Experiment`: what differs from the defaults, and nothing
    else."""
    own = _changed(experiment, Experiment(), skip="settings")
    settings = _changed(experiment.settings, Experiment().settings)
    return f"Experiment({own})" + (f".replace({settings})" if settings else "")


@checked
def plan_code(plan: "Plan") -> tuple[list[str], str]:
    """The lines that import the plan, and its name; no line for one of the notebook, no name for one without."""
    home = getattr(plan.make, "__module__", "")
    names = [name for name, value in vars(sys.modules.get(home, object)).items() if value is plan]
    if not names:
        return [], ""
    return ([] if home == "__main__" else [f"from {home} import {names[0]}"]), names[0]


def _changed(value: Any, default: Any, skip: str = "") -> str:
    pairs = ((f.name, getattr(value, f.name)) for f in fields(value) if f.name != skip)
    changed = {name: found for name, found in pairs if found != getattr(default, name)}
    plain = {name: differing(found) if is_dataclass(found) else found for name, found in changed.items()}
    return ", ".join(f"{name}={found!r}" for name, found in plain.items())


@checked
def lines_of(result: Result) -> list[plots.Line]:
    """A line per run, in the colour that its name has in every picture."""
    index = plots.places(result.frames)
    return [plots.Line(name, frames, index=index[name]) for name, frames in result.frames.items()]


@checked
def looks_of(result: Result) -> dict[str, dict[str, Any]]:
    """By run, colour, dashes and marker as `Axes.plot` takes them; methods of fine-tuning have those of their table."""
    if result.frames.keys() <= finetuning.TITLES.keys():
        return finetuning.styles(result.frames)
    return {name: plots.Line(name, [], index=index).style for name, index in plots.places(result.frames).items()}


@checked
def before(ax: Axes, result: Result, x: Callable[[Any], float], y: Callable[[Any], float]) -> None:
    """Earlier results, thin and grey, by two numbers of a frame; one word in the legend stands for them all."""
    kept = [frames for old in result.earlier for frames in old.frames.values()]
    for place, frames in enumerate(kept):
        style = {"color": "0.6", "linewidth": 1, "zorder": 0, "label": "" if place else "before"}
        ax.plot([x(f) for f in frames], [y(f) for f in frames], **style)


@checked
def accuracy_curves(figure: Any, result: Result) -> None:
    """Test accuracy over rounds: this result in colour, earlier ones thin, recorded ones as pale bands."""
    ax = figure.subplots()
    for index, band in enumerate(result.behind):
        band.draw(ax, index)
    for place, line in enumerate(line for old in result.earlier for line in lines_of(old)):
        values = [plots.measured(record, "test_accuracy") for record in line.history]
        look = {"color": line.style["color"], "alpha": 0.5, "linewidth": 1, "label": "" if place else "before (pale)"}
        ax.plot(values, **look)
    plots.curves(ax, lines_of(result), "test_accuracy")
    ax.legend(frameon=True, framealpha=0.8)


@checked
def final_accuracies(result: Result) -> str:
    """How accurate each run is after its last round."""
    parts = [f"{name} {plots.measured(f[-1], 'test_accuracy'):.3f}" for name, f in result.frames.items() if f]
    rounds = max((f[-1].round for f in result.frames.values() if f), default=0)
    return f"Test accuracy after {rounds} rounds: {', '.join(parts)}."


@checked
def draw_pair(figure: Any, result: Result, second: str = "drift") -> None:
    """Test accuracy, and another measure, over rounds."""
    axes = figure.subplots(1, 2)
    for ax, key in zip(axes, ("test_accuracy", second), strict=True):
        before(ax, result, attrgetter("round"), partial(plots.measured, key=key))
        plots.curves(ax, lines_of(result), key)
    axes[0].legend()


@checked
def best_of(frames: Sequence[Any]) -> float:
    """The best test accuracy so far."""
    return max((plots.measured(r, "test_accuracy") for r in frames), default=float("nan"))


@checked
def nothing_recorded(**settings: Any) -> Sequence[Band]:
    """No recorded result."""
    return ()


@checked
@dataclass(frozen=True)
class Plan:
    """An experiment for a `Lab`, complete without a browser.

    Attributes:
        title: a few words.
        make: called with the knobs' values by name; returns what runs, by name.
        knobs: by name, the values a reader may choose.
        start: values at first; the first of its values for a knob that is not named here.
        rounds: frames per run at most, or a function of the knobs' values.
        draw: draws a result into an empty figure.
        sentence: reads a result in numbers.
        experiment: the experiment to open in the workbench, from the knobs' values; None offers none.
        behind: recorded results to draw faintly, from the knobs' values.
        size: of the picture in inches.
        about: by knob, a few words for its hover; what the glossary says of a knob that is not named here.
        views: knobs that only choose what is shown of the frames; moving one redraws and trains nothing.
    """

    title: str
    make: Callable[..., Mapping[str, Source]]
    knobs: Mapping[str, Sequence[Any]]
    start: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | Callable[..., int] = 10
    draw: Callable[[Any, Result], None] = accuracy_curves
    sentence: Callable[[Result], str] = final_accuracies
    experiment: Callable[..., Experiment] | None = None
    behind: Callable[..., Sequence[Band]] = nothing_recorded
    size: tuple[float, float] = (8.0, 3.4)
    about: Mapping[str, str] = field(default_factory=dict)
    views: Sequence[str] = ()

    def picture(self, figure: Figure, result: Result) -> None:
        """Draws the result, with ticks at whole numbers where rounds are counted: at first there are one or two."""
        self.draw(figure, result)
        for ax in figure.axes:
            if ax.get_xlabel() == "round" and isinstance(locator := ax.xaxis.get_major_locator(), MaxNLocator):
                locator.set_params(integer=True)

    def hover(self, knob: str) -> str:
        """What a knob is, as far as it is known, and its values."""
        known = self.about.get(knob) or define(KNOB_TERMS.get(knob, ""))
        head = f"{say(knob)}: {known}" if known else say(knob)
        return f"{head}\nvalues: {'; '.join(map(say, self.knobs[knob]))}"

    def trained(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that what is trained depends on."""
        return {name: value for name, value in settings.items() if name not in self.views}

    def length(self, settings: Mapping[str, Any]) -> int:
        """Frames per run, at most."""
        return self.rounds if isinstance(self.rounds, int) else self.rounds(**settings)

    def begin(self, settings: Mapping[str, Any], earlier: Sequence[Result] = ()) -> Result:
        """A result without frames."""
        made = self.make(**settings)
        sources = {n: s.build(name=n) if isinstance(s, Experiment) else s for n, s in made.items()}
        return Result(settings, sources, self.behind(**settings), earlier, {name: [] for name in sources})
