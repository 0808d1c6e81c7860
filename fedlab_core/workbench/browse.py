"""Looking through what has been computed: sliders beside a picture, in a notebook or without one."""

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from fedlab_core.check import checked
from fedlab_core.workbench.pictures import Look


@checked
class Browse(Look):
    """A picture that follows its sliders at once. For quick drawings of finished results; nothing here may train.

        look = Browse(lambda skew, round: picture(rows[skew, round]), skew=[0, 0.5, 1], round=[0, 100])
        look                          # the sliders and the picture, as the last expression of a cell
        look.set(skew=1).figure()     # the same without a browser

    Args:
        draw: called with one value per slider; returns a figure drawn without pyplot.
        choices: by slider, its values in order (at least one).

    Raises:
        ValueError: a slider without values.
    """

    def __init__(self, draw: Callable[..., Figure], **choices: Any) -> None:
        self.draw = draw
        self._known: dict[Any, Any] = {}
        for name, values in choices.items():
            if not len(values):
                raise ValueError(f"{name}={values!r}: at least one value is needed")
        self.sliders = {
            name: widgets.SelectionSlider(
                options=[(f"{value:g}" if isinstance(value, float) else str(value), value) for value in values],
                description=name.replace("_", " "),
                continuous_update=True,
                style={"description_width": "initial"},
                layout={"width": "420px"},
            )
            for name, values in choices.items()
        }
        super().__init__([*self.sliders.values()], below=True)
        for slider in self.sliders.values():
            slider.observe(lambda _: self._show(), "value")
        self._show()

    @property
    def values(self) -> dict[str, Any]:
        """What the sliders say."""
        return {name: slider.value for name, slider in self.sliders.items()}

    def set(self, **values: Any) -> "Browse":
        """Moves sliders, and returns the object itself.

        Raises:
            ValueError: an unknown slider, or a value it does not have.
        """
        for name, value in values.items():
            if name not in self.sliders:
                raise ValueError(f"{name!r} is no slider, accepted: {list(self.sliders)}")
            if value not in [option for _, option in self.sliders[name].options]:
                accepted = [option for _, option in self.sliders[name].options]
                raise ValueError(f"{name}={value!r}, accepted: {accepted}")
            self.sliders[name].value = value
        return self

    def figure(self) -> Figure:
        """The picture of what the sliders say, to keep below them."""
        return self.draw(**self.values)

    def _show(self) -> None:
        key = tuple(self.values.values())
        try:
            if key in self._known:
                self.image.value = self._known[key]
            else:
                self.show(self.figure())
                self._known[key] = self.image.value
            self.say("")
        except Exception as error:  # a widget's error would be shown nowhere
            self.say(f"{type(error).__name__}: {error}")
