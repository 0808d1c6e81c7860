"""Recorded runs: JSON in `figures/`, as a table too, and finished units in `runs/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlab_core import files
from fedlab_core.about import INSTALLED, ROOT
from fedlab_core.check import checked, refuse

if TYPE_CHECKING:
    import pandas as pd

FIGURES = ROOT / "figures"
RUNS = Path("runs").absolute() if INSTALLED else ROOT / "runs"
AXES = ("round", "theta")
"""Names under which a result says where the numbers beside them were measured: after which round, where on a line."""


@checked
def recorded(name: str, folder: Path = FIGURES) -> Any:
    """What `figures/NAME.json` holds; None if there is no such file.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / f"{name}.json"
    try:
        return files.parse_any(files.read(path), path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{error}; record it again") from error


@checked
def record_to_frame(record: str | Path, settings: Sequence[str] = ()) -> pd.DataFrame:
    """A record as a tidy table, one row per number: per unit and measure, and of a curve per unit, measure and round.

    Args:
        record: a name, as "fedavg_tables" for `figures/fedavg_tables.json`, or the path of such a file.
        settings: of the units, each to be a column: "experiment.settings.lr"; None where a unit leaves it as it is.

    Returns:
        Columns arm, seed, unit (its key: an arm may have several units of a seed), the settings asked for, measure
        (dots lead into nested results: "curves.drift"), as far as there are any round, theta (a place between two
        models, 0 to 1) and index (the place in a list that has neither), and value. What was not reached or not
        measured is nan; words are left out.

    Raises:
        ValueError: no such record, a damaged one, one that is not made of units, or a setting that no unit has.
    """
    import pandas as pd  # it takes half a second, and reading a record needs none of it

    path = record if isinstance(record, Path) else FIGURES / f"{record}.json"
    found = recorded(path.stem, path.parent)
    if not isinstance(found, dict) or "units" not in found:
        names = [file.stem for file in sorted(FIGURES.glob("*.json")) if "units" in (recorded(file.stem) or {})]
        raise refuse("record", str(record), f"the path of a record made of units, or one of {names}")
    rows = []
    for unit in found["units"]:
        asked = {name: _setting(unit["settings"], name) for name in settings}
        about = {"arm": unit["arm"], "seed": unit["seed"], "unit": unit["key"], **asked}
        rows += [about | row for row in _rows(unit["result"], {})]
    for name in settings:
        if rows and all(row[name] is None for row in rows):
            raise refuse("settings", name, f"what leads into a unit's settings, as {found['units'][0]['settings']}")
    places = [axis for axis in (*AXES, "index") if any(axis in row for row in rows)]
    return pd.DataFrame(rows, columns=["arm", "seed", "unit", *settings, "measure", *places, "value"])


def _rows(value: Any, place: dict[str, Any], name: str = "") -> Iterator[dict[str, Any]]:
    """The numbers of a result with their names and places, depth first; an axis is a list, then a number of it."""
    if isinstance(value, dict):
        own = {axis: value[axis] for axis in AXES if axis in value}  # instead of lists of the results around it
        place = {axis: at for axis, at in place.items() if not (own and isinstance(at, list))} | own
        for key, part in value.items():
            if key not in AXES:
                yield from _rows(part, place, f"{name}.{key}".strip("."))
    elif isinstance(value, list):
        along = {axis: at for axis, at in place.items() if isinstance(at, list) and len(at) == len(value)}
        for i, part in enumerate(value):
            at = {axis: numbers[i] for axis, numbers in along.items()} or {"index": i}
            yield from _rows(part, place | at, name)
    elif not isinstance(value, str) or value in ("nan", "inf", "-inf"):
        at = {axis: number for axis, number in place.items() if not isinstance(number, list)}
        yield {"measure": name, **at, "value": float("nan" if value is None else value)}


def _setting(settings: Any, name: str) -> Any:
    """A value of nested settings by its dotted name; None if there is none."""
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings
