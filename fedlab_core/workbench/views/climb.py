"""The active block climbing through the network, with the memory of each step beside it; sliders, and no training."""

import functools
from collections.abc import Callable

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.check import checked
from fedlab_core.costs import Memory
from fedlab_core.layerwise.accounts import peak_memory, relative_flops, training_memory
from fedlab_core.layerwise.method import LayerWise
from fedlab_core.layerwise.network import StagedModel
from fedlab_core.layerwise.stages import Stage
from fedlab_core.plots import layerwise as plots_layerwise
from fedlab_core.workbench.pictures import Look

SEED = 0  # of the masks shown


@checked
class Climb(Look):
    """A panel: choose a network and a schedule, and move through the rounds. Show it by ending a cell with it.

    Args:
        make: a model with that many units.
        input_shape: of one picture.
        most_units, most_rounds: ends of the sliders for depth and stage length.
    """

    def __init__(
        self,
        make: Callable[[int], StagedModel],
        input_shape: tuple[int, ...],
        *,
        most_units: int = 12,
        most_rounds: int = 10,
    ) -> None:
        self._make, self._shape = functools.lru_cache(make), input_shape
        self._memory = functools.lru_cache(self._measure)
        slider = functools.partial(widgets.IntSlider, style={"description_width": "110px"})
        self.units = slider(6, 1, most_units, description="blocks", continuous_update=False)
        self.batch = widgets.SelectionSlider(
            options=(8, 16, 32, 64, 128, 256), value=64, description="batch", continuous_update=False,
            style={"description_width": "110px"},
        )  # fmt: skip
        self.drop = widgets.FloatSlider(
            0.0, min=0, max=1, step=0.05, description="dropout rate", style={"description_width": "110px"}
        )
        self.stage_rounds = slider(4, 1, most_rounds, description="rounds per stage")
        self.round = slider(1, 1, 24, description="round")
        for control in (self.units, self.batch, self.drop, self.stage_rounds, self.round):
            control.observe(self._changed, "value")
        super().__init__([self.units, self.batch, self.drop, self.stage_rounds, self.round])
        self._changed(None)

    def set(self, **values: float) -> "Climb":
        """Moves sliders by name, as a reader would."""
        for name, value in values.items():
            getattr(self, name).value = value
        return self

    def figure(self) -> Figure:
        """What the panel shows now."""
        rule, units, number = self.rule, self.units.value, self.round.value
        stage = rule.schedule.stage(number - 1, units)
        kept = rule.schedule.kept(stage, SEED, number, 0, 0)
        whole = self._memory(units, self.batch.value, None, ())
        memories = {"this round": self._memory(units, self.batch.value, stage, kept), "end to end": whole}
        fig, axes = plots.figure(1, 2, (7.8, 4.2))
        plots_layerwise.network(axes[0, 0], units, stage, kept)
        plots_layerwise.memory_bars(axes[0, 1], memories)
        axes[0, 0].set_title(f"round {number}: stage {stage.number + 1} of {rule.schedule.stages(units)}")
        return fig

    @property
    def rule(self) -> LayerWise:
        """The method that the sliders describe; one client draws its mask in every round."""
        return LayerWise(rounds_per_stage=self.stage_rounds.value, drop=self.drop.value)

    def describe(self) -> str:
        """The numbers behind the picture in a sentence."""
        rule, units = self.rule, self.units.value
        number, batch = self.round.value, self.batch.value
        stage = rule.schedule.stage(number - 1, units)
        now = self._memory(units, batch, stage, rule.schedule.kept(stage, SEED, number, 0, 0))
        whole = self._memory(units, batch, None, ())
        return (
            f"This round needs {whole.total / now.total:.1f} times less memory than end-to-end training; the whole run "
            f"is expected to take {100 * relative_flops(rule, units):.0f} % of its FLOPs."
        )

    def _measure(self, units: int, batch: int, stage: Stage | None, kept: tuple[bool, ...]) -> Memory:
        pictures, model = torch.zeros(batch, *self._shape), self._make(units)
        if stage is None:
            return peak_memory(model, LayerWise(scheme="end_to_end"), pictures)
        return training_memory(model, LayerWise(), stage, pictures, kept)

    def _changed(self, _: object) -> None:
        last = self.units.value * self.stage_rounds.value
        if self.round.max != last:
            self.round.max = last  # moves the value along if it stood beyond, which draws
        self.show(self.figure())
        self.say(self.describe())
