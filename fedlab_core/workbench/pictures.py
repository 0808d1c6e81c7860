"""From a figure to the bytes that a panel shows, quickly; and how every panel shows itself."""

import contextlib
import functools
import gc
import html
import math
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.collections import Collection, QuadMesh
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import Formatter, NullLocator
from numpy.typing import NDArray
from PIL import Image

from fedlab_core.workbench.style import CSS

DPI = 200  # sharp on dense screens
LIVE_DPI = 130  # while rounds arrive
SHORTEST = 0.2  # seconds from one live drawing to the next, at least
SHARE = 0.18  # of the time that live drawings take, at most
_DRAWING = threading.Lock()  # Matplotlib is not safe in two threads at once
INTERACTIVE = "[interactive: run this cell in JupyterLab to use it]"


_renderer = functools.lru_cache(4)(RendererAgg)


class Canvas(FigureCanvasAgg):
    """A canvas whose paper is used again, with the formulas that were parsed for it before."""

    def get_renderer(self) -> RendererAgg:
        """The paper of its size."""
        return _renderer(*self.figure.bbox.size, self.figure.dpi)


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """A figure as PNG, drawn by one thread at a time."""
    with _DRAWING:
        figure.set_dpi(dpi)
        canvas = Canvas(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return encoded(pixels, dpi)


def encoded(pixels: NDArray, dpi: int) -> bytes:
    """Pixels (height, width, 3) as PNG, compressed lightly and without the filters that Pillow tries on every row: in
    half the time, and for lines on white no larger."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # every row begins with the number of its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    parts = {
        b"IHDR": struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0),
        b"pHYs": struct.pack(">2IB", *[round(dpi / 0.0254)] * 2, 1),
        b"IDAT": zlib.compress(rows.tobytes(), 1),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


class Live:
    """Pictures of views while rounds arrive, for a fraction of the time that one takes when it is drawn with care.

    That time goes into finding places for axes, labels and titles, and into ticks, legends and hatched areas, all of
    which seldom change. So live pictures of a kind take over the places of its last careful one, and nothing jumps;
    ticks, legends and hatched areas that look as they did before are kept as pixels. `quick` says whether the last
    picture was such a one.
    """

    def __init__(self) -> None:
        self.quick = False
        self._places: dict[tuple[Any, ...], list[Any]] = {}
        self._stamps: dict[tuple[Any, ...], list[Stamp]] = {}

    def png(self, kind: str, figure: Figure, *, live: bool) -> bytes:
        """The figure as PNG: live ones coarser and, from the second on, in the places of the one before."""
        key = kind, len(figure.axes), tuple(figure.get_size_inches()), len(figure.legends)
        places = self._places.get(key)
        self.quick = live and places is not None
        if live and places is not None:
            figure.set_layout_engine("none")
            for ax, (place, below, beside, above) in zip(figure.axes, places, strict=True):
                ax.set_position(place)
                ax.xaxis.set_label_coords(*below)
                ax.yaxis.set_label_coords(*beside)
                ax.set_title(ax.get_title(), y=above, fontproperties=ax.title.get_fontproperties().copy())
            plain = [ax for ax in figure.axes if ax.name == "rectilinear"]
            steady = [axis for ax in plain for axis in (ax.xaxis, ax.yaxis)] + figure.legends
            steady += [hatched for ax in plain for hatched in ax.collections if hatched.get_hatch()]
            stamps = self._stamps.setdefault((*key, len(steady)), [Stamp() for _ in steady])
            for artist, stamp in zip(steady, stamps, strict=True):
                artist.draw = functools.partial(stamp.draw, artist)
        content = png(figure, LIVE_DPI if live else DPI)
        if places is None or not live:
            self._places[key] = [
                (ax.get_position(), *_label_places(ax), ax.title.get_position()[1]) for ax in figure.axes
            ]
        return content


@contextlib.contextmanager
def dying_young() -> Iterator[None]:
    """Puts the garbage collector off, so that a figure is garbage before it is looked through for the first time:
    else its thousands of objects grow old, and bring on a search of everything that there is."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def put(image: widgets.Image, figure: Figure, content: bytes) -> None:
    """Shows a drawn figure; one with a photograph or a scale of colours keeps its colours in the dark theme."""
    (image.add_class if has_colours(figure) else image.remove_class)("fedlab-colours")
    image.value = content


def has_colours(figure: Figure) -> bool:
    """Whether a figure holds a photograph or a scale of colours, which would be false when inverted."""
    return any(ax.images or any(isinstance(c, ContourSet | QuadMesh) for c in ax.collections) for ax in figure.axes)


class FramePace:
    """When the next live picture is due: soon, but no sooner than is worth its drawing."""

    def __init__(self) -> None:
        self._took = math.inf
        self.begin()

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return time.perf_counter() >= self._due

    def begin(self) -> None:
        """Makes the next picture due at once; the time is counted from here."""
        self._since = self._due = time.perf_counter()
        self._spent = 0.0

    def drawn(self, began: float, *, live: bool) -> None:
        """After a picture whose drawing began at that time of `time.perf_counter`: settles when the next one is due."""
        now = time.perf_counter()
        took = now - began
        if not live:  # drawn with care, once or twice in a run, and put down to nothing
            self._since += took
            self._due = now + SHORTEST
            return
        usual, self._took = min(took, self._took), took
        self._spent += min(took, 2 * usual)  # one that was held up does not put off the next ones for long
        self._due = max(began + SHORTEST, self._since + (self._spent + usual) / SHARE)


class Stamp:
    """The pixels of an axis with its ticks, of a legend or of hatched areas, from the second picture on in which they
    look alike."""

    def __init__(self) -> None:
        self._look, self._place = "", (0, 0)
        self._pixels: NDArray | None = None

    def draw(self, artist: Axis | Legend | Collection, renderer: RendererAgg) -> None:
        """Draws an artist, or puts its pixels."""
        tell, draw = next(pair for kind, pair in _WAYS.items() if isinstance(artist, kind))
        look = tell(artist)
        if look != self._look:
            self._look, self._pixels = look, None
            draw(artist, renderer)
            return
        if self._pixels is None:
            alone = RendererAgg(renderer.width, renderer.height, renderer.dpi)
            draw(artist, alone)
            size = int(renderer.width), int(renderer.height)
            image = Image.frombuffer("RGBA", size, alone.buffer_rgba())
            left, top, right, bottom = image.getbbox() or (0, 0, 1, 1)
            self._place = left, size[1] - bottom
            self._pixels = np.flipud(np.asarray(image.crop((left, top, right, bottom)))).copy()
        renderer.draw_image(renderer.new_gc(), *self._place, self._pixels)


def _draw_axis(axis: Axis, renderer: RendererAgg) -> None:
    """Draws an axis whose label has its place with one tick that moves along; Matplotlib makes one for each place."""
    if axis.get_major_formatter().get_offset() or not axis.get_visible():
        type(axis).draw(axis, renderer)
        return
    low, high = sorted(axis.get_transform().transform(axis.get_view_interval()))
    close = 1e-10 * (high - low)
    for (places, formatter), ticks in zip(_places(axis), (axis.majorTicks, axis.minorTicks), strict=False):
        for number, (place, words) in enumerate(zip(places, formatter.format_ticks(places), strict=True)):
            if low - close <= axis.get_transform().transform(place) <= high + close:
                tick = ticks[number] if number < len(ticks) else ticks[0]  # the others would be made in its likeness
                tick.update_position(place)
                tick.label1.set_text(words)
                tick.label2.set_text(words)
                tick.draw(renderer)
    axis.label.draw(renderer)


def _axis_look(axis: Axis) -> str:
    """All that the pixels of an axis hang on."""
    parts: list[Any] = [axis.axes.bbox.bounds, tuple(axis.get_view_interval()), axis.get_scale()]
    for places, formatter in _places(axis):
        parts += [list(places), formatter.format_ticks(places), formatter.get_offset()]
    parts += [axis.get_visible(), axis.get_tick_params("major"), axis.get_tick_params("minor")]
    return repr([*parts, *map(_text_look, [axis.label, *(tick.label1 for tick in axis.majorTicks)])])


def _places(axis: Axis) -> Iterator[tuple[Sequence[float], Formatter]]:
    """Where an axis has ticks, large and small, and what writes their numbers."""
    yield axis.get_majorticklocs(), axis.get_major_formatter()
    if not isinstance(axis.get_minor_locator(), NullLocator):
        yield axis.get_minorticklocs(), axis.get_minor_formatter()


def _legend_look(legend: Legend) -> str:
    """All that the pixels of a legend hang on."""
    parts = "color", "linestyle", "linewidth", "marker", "markersize", "facecolor", "edgecolor", "hatch", "alpha"
    handles = [[getattr(h, f"get_{part}", str)() for part in parts] for h in legend.legend_handles]
    return repr([legend.get_bbox_to_anchor().bounds, handles, *map(_text_look, legend.get_texts())])


def _hatched_look(areas: Collection) -> str:
    """All that the pixels of hatched areas hang on."""
    clip, view = areas.get_clip_box(), areas.axes.viewLim.bounds
    shapes = [path.vertices.tobytes() for path in areas.get_paths()]
    colors = areas.get_facecolor().tobytes(), areas.get_edgecolor().tobytes()
    return repr((clip and clip.bounds, view, areas.get_hatch(), areas.get_linewidth(), hash((*shapes, *colors))))


_WAYS: dict[type, tuple[Callable[[Any], str], Callable[[Any, RendererAgg], None]]] = {
    Axis: (_axis_look, _draw_axis),
    Legend: (_legend_look, Legend.draw),
    Collection: (_hatched_look, lambda areas, renderer: type(areas).draw(areas, renderer)),
}
"""What tells how an artist looks, and what draws it."""


def _text_look(text: Text) -> str:
    """Words, font, colour and place of a text."""
    font, place = text.get_fontproperties(), text.get_position()
    return repr((text.get_text(), hash(font), text.get_color(), text.get_ha(), text.get_rotation(), place))


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
        put(self.image, figure, png(figure))
        self.image.layout.width = f"{100 * figure.get_size_inches()[0]:.0f}px"

    def say(self, words: str) -> None:
        """Shows a sentence under the controls."""
        self.text.value = html.escape(words)
