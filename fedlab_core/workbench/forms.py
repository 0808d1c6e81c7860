"""Forms: a field for every option of a method, a model, a partition or a way to fine-tune, and for the settings."""

from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets

from fedlab_core.glossary import define
from fedlab_core.settings import Settings
from fedlab_core.workbench import fields
from fedlab_core.workbench.catalog import Catalog
from fedlab_core.workbench.options import Option, options_of

OWN_FIELDS = {  # options with a slider, since their range is known
    ("dirichlet", "alpha"): lambda value: fields.log_slider("Alpha", -2, 2, define("Dirichlet label skew"), value),
    ("quantity", "sigma"): lambda value: fields.float_slider("Sigma", 0, 3, 0.1, define("quantity skew"), value),
}
PLAIN = {"fraction", "epochs", "steps", "batch_size", "lr", "batch_norm", "seed", "evaluate_clients", "engine"}
"""Settings whose controls stand in the panel itself."""


class Forms:
    """One form per choice, made when it is first needed: methods have defaults of their own for options of one name.

    A form is known by its group, "partition", "method", "model", "tuning" or "settings", and by what is chosen in it;
    "" for the settings.

    Args:
        catalog: knows the options.
        changed: observes the fields.
    """

    def __init__(self, catalog: Catalog, changed: Callable[[dict[str, Any]], None]) -> None:
        self._catalog, self._changed = catalog, changed
        self._fields: dict[tuple[str, str], dict[str, widgets.Widget]] = {}
        self._options: dict[tuple[str, str], tuple[Option, ...]] = {}

    def of(self, group: str, chosen: str) -> dict[str, widgets.Widget]:
        """The fields of a form, by the names of the options."""
        key = group, chosen
        if key not in self._fields:
            if group == "settings":
                self._options[key] = tuple(o for o in options_of(Settings) if o.name not in PLAIN)
            else:
                self._options[key] = getattr(self._catalog, f"{group}_options")(chosen)
            self._fields[key] = {o.name: _field(chosen, o) for o in self._options[key]}
            for control in self._fields[key].values():
                control.observe(self._changed, "value")
        return self._fields[key]

    def fill(self, group: str, chosen: str, values: Mapping[str, Any]) -> None:
        """Sets the fields of a form to some values, the others to their defaults."""
        form = self.of(group, chosen)
        for option in self._options[group, chosen]:
            fields.set_value(form[option.name], values.get(option.name, option.default))

    def differing(self, group: str, chosen: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a form says: options that are not the defaults, or that `given` names too; of the settings all."""
        form, found = self.of(group, chosen), dict(given)
        for option in self._options[group, chosen]:
            value = _plain(fields.value_of(form[option.name]))
            usual = given.get(option.name, option.default) if group != "settings" else None
            if group == "settings" or value != _plain(usual):
                found[option.name] = value
        return found


def _field(chosen: str, option: Option) -> widgets.Widget:
    own = OWN_FIELDS.get((chosen, option.name))
    return fields.option(option) if own is None else own(option.default)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
