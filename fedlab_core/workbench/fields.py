"""One kind of setting each: a widget with its label, its tooltip and the panel's measures."""

import math
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

LABEL_WIDTH = "102px"


def finish(control: widgets.Widget, tooltip: str) -> None:
    """Gives a field its tooltip and the panel's measures."""
    control.tooltip = tooltip
    control.style.description_width = LABEL_WIDTH
    control.layout.width = "auto"


def dropdown(label: str, options: Sequence[Any], tooltip: str) -> widgets.Dropdown:
    """A choice among names."""
    control = widgets.Dropdown(options=options, description=label)
    finish(control, tooltip)
    return control


def slider(label: str, low: int, high: int, tooltip: str, value: int = 1) -> widgets.IntSlider:
    """A whole number; reports on release."""
    control = widgets.IntSlider(value, low, high, description=label, continuous_update=False)
    finish(control, tooltip)
    return control


def float_slider(label: str, low: float, high: float, step: float, tooltip: str, value: float = 0.0) -> Any:
    """A number; reports on release."""
    control = widgets.FloatSlider(
        value, min=low, max=high, step=step, description=label, continuous_update=False, readout_format=".4"
    )
    finish(control, tooltip)
    return control


def log_slider(label: str, low: float, high: float, tooltip: str, value: float) -> widgets.FloatLogSlider:
    """A positive number from 10**low to 10**high in tenths of a decade; reports on release."""
    control = widgets.FloatLogSlider(
        value, min=low, max=high, step=0.1, description=label, continuous_update=False, readout_format=".3"
    )
    finish(control, tooltip)
    return control


def number(label: str, tooltip: str, value: float) -> widgets.FloatText:
    """A number to type in."""
    control = widgets.FloatText(value, description=label, continuous_update=False)
    finish(control, tooltip)
    return control


def checkbox(label: str, tooltip: str) -> widgets.Checkbox:
    """On or off."""
    control = widgets.Checkbox(False, description=label, indent=False)
    control.tooltip, control.layout.width = tooltip, "auto"
    return control


def heading(title: str) -> widgets.HTML:
    """The title of a group."""
    return widgets.HTML(f"<div class='fedlab-heading'>{title}</div>")


def set_value(control: widgets.Widget, value: Any) -> None:
    """Sets a field, widening a slider that is too short.

    Raises:
        ValueError: not one of the field's options.
    """
    if isinstance(control, widgets.FloatLogSlider) and value > 0:  # the value given decides, not the slider's ends
        control.min = min(control.min, math.floor(math.log10(value)))
        control.max = max(control.max, math.ceil(math.log10(value)))
    elif isinstance(control, widgets.IntSlider | widgets.FloatSlider):
        control.max = max(control.max, value)
    try:
        control.value = value
    except Exception as error:
        label = control.description
        raise ValueError(f"{label}: {value!r} is not one of {[*getattr(control, 'options', [])]}") from error


def tidy(value: float) -> float:
    """A step of the log slider as it reads: 0.0501187 becomes 0.05; what was typed stays."""
    position = 10 * math.log10(value)
    return float(f"{value:.2g}") if abs(position - round(position)) < 1e-6 else float(f"{value:.6g}")
