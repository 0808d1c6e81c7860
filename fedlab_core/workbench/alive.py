"""Panels and their kernel: a panel shows when its kernel is gone, and a cell that runs again replaces its panel."""

import threading
import weakref
from typing import Any, Protocol

import ipywidgets as widgets

BEAT = 5.0  # seconds between two signs of life; the mark appears after 14 without one, see style.CSS
GONE = (
    "<div class='fedlab-gone' data-beat='{beat}'>This panel's kernel is gone, so its buttons do nothing. Run the cell "
    "again: its runs are kept, see Earlier runs.</div>"
)


class Closable(Protocol):
    """Something that can be closed."""

    def close(self) -> None:
        """Ends its work and gives its widgets back."""


class Panelled(Closable, Protocol):
    """Something with a sign of life that can be closed."""

    alive: widgets.HTML


_shown: "weakref.WeakSet[Any]" = weakref.WeakSet()
_cells: dict[str, tuple[str, list["weakref.ref[Any]"]]] = {}
_heart: threading.Thread | None = None


def beat(count: int = 0) -> None:
    """One sign of life of every panel shown: the mark begins to wait anew."""
    for one in list(_shown):
        one.alive.value = GONE.format(beat=count)


def show(one: Panelled) -> None:
    """Starts a panel's signs of life."""
    global _heart
    _shown.add(one)
    one.alive.value = GONE.format(beat="first")
    if _heart is None:
        _heart = threading.Thread(target=_beat_on, name="workbench heart", daemon=True)
        _heart.start()


def hide(one: Panelled) -> None:
    """Ends a panel's signs of life."""
    _shown.discard(one)


def replace_in_cell(one: Closable) -> None:
    """Closes the panels that an earlier run of the same cell made, and remembers this one."""
    cell, execution = _cell()
    if not cell:
        return
    before, panels = _cells.get(cell, ("", []))
    if before != execution:
        for old in panels:
            if (panel := old()) is not None:
                panel.close()
        panels = []
    _cells[cell] = execution, [*panels, weakref.ref(one)]


def _cell() -> tuple[str, str]:
    """Which cell runs now, and which run of it this is; empty outside of a notebook."""
    try:
        from IPython import get_ipython

        parent = get_ipython().get_parent()
        return str(parent["metadata"].get("cellId", "")), str(parent["header"]["msg_id"])
    except Exception:  # no kernel, or one that tells nothing about cells
        return "", ""


def _beat_on() -> None:
    count, pause = 0, threading.Event()
    while not pause.wait(BEAT):
        count += 1
        beat(count)
