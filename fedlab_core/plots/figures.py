"""Figures that pyplot does not know of, so that they are freed with their last reference, in any thread."""

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
from matplotlib.figure import Figure

from fedlab_core.check import checked

MOST_KEPT, MOST_AXES = 32, 12
_KEPT: dict[tuple[Any, ...], bytes] = {}


class Picture(Figure):
    """A figure that a notebook shows as PNG although pyplot does not know of it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        """The figure with twice its pixels, sharp on a dense screen, and the width to show it at."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=2 * self.dpi, metadata={"Software": None})
        return buffer.getvalue(), {"width": round(self.get_figwidth() * self.dpi)}


@checked
def blank(
    make: Literal["subplots", "subplot_mosaic"], size: tuple[float, float], what: Sequence[Any], how: Mapping[str, Any]
) -> tuple[Picture, Any]:
    """A figure with constrained layout, and the Axes that one of its methods makes.

    From the second on they are unpickled, which is faster than making them: pictures of panels are drawn anew round
    after round.

    Args:
        make: the method.
        size: width and height in inches.
        what, how: its arguments.
    """
    key = make, tuple(size), repr(what), repr(how), *map(repr, dict.values(matplotlib.rcParams))
    if key not in _KEPT:
        figure = Picture(figsize=size, layout="constrained")
        made = figure, getattr(figure, make)(*what, **how)
        if len(figure.axes) > MOST_AXES:  # a table of pictures, which is drawn once
            return made
        _KEPT[key] = pickle.dumps(made)
        while len(_KEPT) > MOST_KEPT:
            _KEPT.pop(next(iter(_KEPT)), None)
    return pickle.loads(_KEPT[key])
