"""From a figure to the bytes that a panel shows, quickly; and how every panel shows itself."""

import html
import io
import threading
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fedlab_core.workbench.style import CSS

DPI = 200  # sharp on dense screens
LIVE_DPI = 130  # while rounds arrive
_DRAWING = threading.Lock()  # Matplotlib is not safe in two threads at once
INTERACTIVE = "[interactive: run this cell in JupyterLab to use it]"


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """A figure as PNG, drawn by one thread at a time. Compressed lightly: that was most of the time of a drawing."""
    with _DRAWING:
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        size, pixels = canvas.get_width_height(), bytes(canvas.buffer_rgba())
    content = io.BytesIO()
    Image.frombuffer("RGBA", size, pixels).convert("RGB").save(content, "png", compress_level=1, dpi=(dpi, dpi))
    return content.getvalue()


class Layouts:
    """Where the axes of each kind of picture and their labels stood when it was last laid out with care, which takes
    most of the time of a drawing; the next live pictures of that kind take over the places, so that nothing jumps."""

    def __init__(self) -> None:
        self._places: dict[tuple[Any, ...], list[Any]] = {}

    def png(self, kind: str, figure: Figure, *, live: bool) -> bytes:
        """The figure as PNG: live ones coarser and, from the second on, in the places of the one before."""
        key = kind, len(figure.axes), tuple(figure.get_size_inches()), len(figure.legends)
        places = self._places.get(key)
        if live and places is not None:
            figure.set_layout_engine("none")
            for ax, (place, below, beside) in zip(figure.axes, places, strict=True):
                ax.set_position(place)
                ax.xaxis.set_label_coords(*below)
                ax.yaxis.set_label_coords(*beside)
        content = png(figure, LIVE_DPI if live else DPI)
        if places is None or not live:
            self._places[key] = [(ax.get_position(), *_label_places(ax)) for ax in figure.axes]
        return content


def _label_places(ax: Axes) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the labels of both axes of a drawn picture stand, in widths and heights of the axes."""
    (x, bottom), (left, y) = ax.xaxis.label.get_position(), ax.yaxis.label.get_position()
    corner = ax.transAxes.inverted().transform((left, bottom))  # on their way out from the axes they are in pixels
    return (x, float(corner[1])), (float(corner[0]), y)


class Shown:
    """A panel that is shown by ending a cell with it; its widgets are `view`."""

    view: widgets.Widget

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {**(self.view._repr_mimebundle_() or {}), "text/plain": INTERACTIVE}


class Look(Shown):
    """A panel of a few controls and a picture that follows them; nothing in it trains.

    Args:
        controls: in their order.
        below: whether the picture stands under them, or beside them where there is room.
    """

    def __init__(self, controls: Sequence[widgets.Widget], below: bool = False) -> None:
        self.image, self.text = widgets.Image(format="png"), widgets.HTML()
        self.image.add_class("fedlab-picture")
        self.text.add_class("fedlab-words")
        style = widgets.HTML(CSS, layout={"display": "none"})
        left = widgets.VBox([*controls, self.text])
        left.add_class("fedlab-knobs")
        self.view = (widgets.VBox if below else widgets.HBox)([style, left, self.image])
        for name in ("fedlab", "fedlab-look"):
            self.view.add_class(name)

    def show(self, figure: Figure) -> None:
        """Shows a figure in its own size, or smaller where there is less room."""
        self.image.value = png(figure)
        self.image.layout.width = f"{100 * figure.get_size_inches()[0]:.0f}px"

    def say(self, words: str) -> None:
        """Shows a sentence under the controls."""
        self.text.value = html.escape(words)
