"""One kind of setting each: a widget with its label, its tooltip and the panel's measures."""

import ast
import html
import math
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

import ipywidgets as widgets
from traitlets import Bool, HasTraits, Unicode, observe

from fedlab_core.check import checked, refuse
from fedlab_core.workbench.options import Option, differing
from fedlab_core.workbench.plan import Plan, say

LABEL_WIDTH = "86px"
OPTION_WIDTH = "132px"  # the names of most options are long and their values short
SHORT = 12  # characters that the usual width has room for


class Hinted(HasTraits):
    """A field whose label shows the tooltip: of lists and lines of text ipywidgets shows it only where no label is."""

    description = Unicode().tag(
        sync=True,
        to_json=lambda label, field: (
            label and f"<span title='{html.escape(field.tooltip or '')}'>{html.escape(label)}</span>"
        ),
    )
    description_allow_html = Bool(True).tag(sync=True)

    @observe("tooltip")
    def _send_label(self, _: Any) -> None:
        self.send_state("description")  # type: ignore[attr-defined]


class Choice(Hinted, widgets.Dropdown):
    """A choice among names."""


class Entry(Hinted, widgets.Text):
    """A line of text."""


class Literal(Entry):
    """A text field for values that are no plain number: none, a list, a word."""

    @property
    def parsed(self) -> Any:
        """The value: a Python literal, None for an empty field or "none", else the text itself."""
        text = self.value.strip()
        if text.lower() in ("", "none"):
            return None
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text


@checked
def finish(control: widgets.Widget, tooltip: str) -> Any:
    """Gives a field its tooltip and the panel's measures, and returns it."""
    control.tooltip = tooltip
    control.style.description_width = LABEL_WIDTH
    control.layout.width = "auto"
    return control


@checked
def knob(plan: Plan, name: str) -> widgets.Widget:
    """The control of a lab's knob: a choice among words, a slider over numbers."""
    values, start = plan.knobs[name], plan.start.get(name)
    kind = Choice if isinstance(values[0], str | bool) else widgets.SelectionSlider
    more: dict[str, Any] = {} if kind is Choice else {"continuous_update": False}
    more |= {"tooltip": plan.hover(name), "style": {"description_width": "auto"}}
    options = [(say(value), value) for value in values]
    return kind(options=options, value=values[0] if start is None else start, description=say(name), **more)


@checked
def with_range(tooltip: str, low: float, high: float) -> str:
    """A tooltip that ends with what the field accepts."""
    return f"{tooltip.rstrip('.')}. Accepted: {low:,.10g} to {high:,.10g}."


@checked
def dropdown(label: str, options: Sequence[Any], tooltip: str, **more: Any) -> widgets.Dropdown:
    """A choice among names."""
    return finish(Choice(options=options, description=label, **more), tooltip)


def _check_order(low: float, high: float) -> None:
    if low > high:
        raise refuse("low", low, f"at most high={high}")


@checked
def whole(label: str, low: int, high: int, tooltip: str, value: int = 1) -> widgets.BoundedIntText:
    """A whole number to type in."""
    _check_order(low, high)
    field = widgets.BoundedIntText(value, min=low, max=high, description=label, continuous_update=False)
    return finish(field, with_range(tooltip, low, high))


@checked
def float_slider(label: str, low: float, high: float, step: float, tooltip: str, value: float = 0.0) -> Any:
    """A number; reports on release."""
    _check_order(low, high)
    control = widgets.FloatSlider(
        value, min=low, max=high, step=step, description=label, continuous_update=False, readout_format=".4"
    )
    return finish(control, with_range(tooltip, low, high))


@checked
def log_slider(label: str, low: float, high: float, tooltip: str, value: float) -> widgets.FloatLogSlider:
    """A positive number from 10**low to 10**high in tenths of a decade; reports on release."""
    _check_order(low, high)
    control = widgets.FloatLogSlider(
        value, min=low, max=high, step=0.1, description=label, continuous_update=False, readout_format=".3"
    )
    return finish(control, with_range(tooltip, 10**low, 10**high))


@checked
def number(label: str, tooltip: str, value: float) -> widgets.FloatText:
    """A number to type in."""
    return finish(widgets.FloatText(value, description=label, continuous_update=False), tooltip)


@checked
def text(label: str, tooltip: str, value: str = "", placeholder: str = "") -> widgets.Text:
    """A line of text."""
    field = Entry(value, description=label, continuous_update=False, placeholder=placeholder)
    return finish(field, tooltip)


@checked
def switch(label: str, tooltip: str, value: bool = False) -> widgets.ToggleButton:
    """On, with a tick, or off; a check box of ipywidgets would show no tooltip."""
    control = widgets.ToggleButton(value, description=label, tooltip=tooltip, layout={"width": "auto"})
    widgets.dlink((control, "value"), (control, "icon"), lambda on: "check" if on else "")
    control.add_class("fedlab-switch")
    return control


@checked
def option(given: Option) -> widgets.ValueWidget:
    """A field for an option, of the kind that its default asks for, with room for the option's name."""
    field = _option(given)
    if not isinstance(field, widgets.ToggleButton) and len(given.label) > SHORT:
        field.style.description_width = OPTION_WIDTH
    return field


def _option(given: Option) -> widgets.ValueWidget:
    words, value = given.words or f"{given.label}, {given.default!r} by default", given.default
    if isinstance(value, bool):
        return switch(given.label, words, value)
    if given.accepted:
        return dropdown(given.label, [(str(one), one) for one in given.accepted], words, value=value)
    if isinstance(value, float):
        return number(given.label, words, value)
    if isinstance(value, int):
        return finish(widgets.IntText(value, description=given.label, continuous_update=False), words)
    field = finish(Literal(description=given.label, continuous_update=False), words)
    set_value(field, value)
    return field


@checked
def heading(title: str) -> widgets.HTML:
    """The title of a group."""
    return widgets.HTML(f"<div class='fedlab-heading'>{title}</div>")


@checked
def value_of(control: widgets.Widget) -> Any:
    """What a field says."""
    return control.parsed if isinstance(control, Literal) else control.value


@checked
def set_value(control: widgets.Widget, value: Any) -> None:
    """Sets a field, widening a slider that is too short.

    Raises:
        ValueError: a value that the field cannot take.
    """
    if isinstance(control, Literal):
        plain = differing(value) if is_dataclass(value) else value  # what can be read back without a name
        control.value = "none" if plain is None else plain if isinstance(plain, str) else repr(plain)
        return
    if isinstance(control, widgets.FloatLogSlider) and value > 0:  # the value given decides, not the slider's ends
        control.min = min(control.min, math.floor(math.log10(value)))
        control.max = max(control.max, math.ceil(math.log10(value)))
    elif isinstance(control, widgets.FloatSlider):
        control.max = max(control.max, value)
    try:
        control.value = value
        taken = control.value == value
    except Exception:
        taken = False
    if not taken:
        known = getattr(control, "options", None)
        accepted: Any = [name[1] if isinstance(name, tuple) else name for name in known or ()] or "a number"
        if hasattr(control, "max"):
            accepted = f"{control.min:g} to {control.max:g}"
        raise ValueError(f"{control.description}={value!r}, accepted: {accepted}")


@checked
def tidy(value: float) -> float:
    """A step of the log slider as it reads: 0.0501187 becomes 0.05; what was typed stays."""
    position = 10 * math.log10(value)
    return float(f"{value:.2g}") if abs(position - round(position)) < 1e-6 else float(f"{value:.6g}")
