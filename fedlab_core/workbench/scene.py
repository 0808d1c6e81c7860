"""Matplotlib figures as plain data: what a page draws again, sharp at any size, without Python.

Places are whole numbers from 0 to 1000 along the axes of their panel, so that a page needs no scales. What looks the
same in several frames is kept once, and a curve that grows is kept at its full length.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection, PathCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle
from matplotlib.quiver import Quiver
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Affine2D, Transform
from numpy.typing import ArrayLike, NDArray

from fedlab_core.check import checked
from fedlab_core.hints import Shaped

UNITS = 1000
MATH = {
    r"\Vert": "‖", r"\theta": "θ", r"\alpha": "α", r"\nabla": "∇", r"\pm": "±", r"\,": " ", r"\times": "×",
    r"\sum": "Σ", r"\Delta": "Δ", r"\mu": "μ", r"\sigma": "σ", r"\ ": " ", "_{t+1}": "ₜ₊₁", "_t": "ₜ", "_k": "ₖ",
    "^k": "ᵏ", "_1": "₁", "_2": "₂",
}  # fmt: skip
"""Matplotlib's mathematics in plain characters."""

Item = dict[str, Any]


def plain(text: str) -> str:
    """A label without TeX: `$w_t^k$` becomes wₜᵏ."""

    def said(found: re.Match[str]) -> str:
        inside = found.group(1)
        for tex, sign in MATH.items():
            inside = inside.replace(tex, sign)
        return re.sub(r"10\^\{?(-?\d+)\}?", r"1e\1", re.sub(r"\\math\w+\{([^}]*)\}", r"\1", inside))

    return re.sub(r"\$([^$]*)\$", said, text).replace("{", "").replace("}", "").replace("1e0", "1").strip()


def replay(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The panels of a row of pictures that have the same axes, one picture a frame.

    Returns:
        By panel, as `json` can write it: what stands around it (once, if that never changes), the items that are drawn,
        and by frame which of them, a curve with how many of its points.
    """
    axes = [[ax for ax in figure.axes if ax.get_label() != "<colorbar>"] for figure in figures]
    panels = []
    for number in range(max(map(len, axes))):
        same = [row[number] for row in axes if number < len(row)]
        if not any(map(_of_arrows, same)):  # else a late round shows specks; ticks tell the scale
            _share_limits([ax for ax in same if ax.has_data() or ax.texts or ax.patches])
        frames = [list(items(row[number])) if number < len(row) else [] for row in axes]
        looks = [look(row[number] if number < len(row) else same[0]) for row in axes]
        if any(frames):
            panels.append({"looks": looks[:1] if all(one == looks[0] for one in looks) else looks, **pooled(frames)})
    return panels


def _of_arrows(ax: Axes) -> bool:
    """Whether arrows are drawn in the data's units, both ways alike."""
    arrows = [a for a in ax.get_children() if isinstance(a, Quiver) or getattr(a, "arrow_patch", None) is not None]
    return bool(arrows) and ax.get_aspect() == 1


def _share_limits(same: Sequence[Axes]) -> None:
    """Give axes the limits that hold what any of them shows."""
    for get, put in (("get_xlim", "set_xlim"), ("get_ylim", "set_ylim")):
        ends = [getattr(ax, get)() for ax in same]
        low, high = min((min(e) for e in ends), default=0), max((max(e) for e in ends), default=1)
        for ax, (first, last) in zip(same, ends, strict=True):
            getattr(ax, put)((low, high) if first <= last else (high, low))


def look(ax: Axes) -> dict[str, Any]:
    """What stands around a panel: title, labels, shape (height by width), and ticks with their places."""
    shape = 0.62
    if ax.get_aspect() == 1:
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        shape = min(2.0, max(0.25, abs(high - low) / max(abs(right - left), 1e-12)))
    ticks = {}
    for name, axis, ends in (("xticks", ax.xaxis, ax.get_xlim()), ("yticks", ax.yaxis, ax.get_ylim())):
        places = np.asarray(axis.get_majorticklocs())
        at = np.array([(t, ends[0]) if name == "xticks" else (ax.get_xlim()[0], t) for t in places]).reshape(-1, 2)
        where = units(ax, ax.transData, at)[:, 0 if name == "xticks" else 1]
        inside = (where >= 0) & (where <= UNITS)
        words = axis.get_major_formatter().format_ticks(places[inside]) if ax.axison and axis.get_visible() else []
        ticks[name] = [[int(t), plain(word)] for t, word in zip(where[inside], words, strict=False) if word]
    words = {"title": ax.get_title(), "x": ax.get_xlabel(), "y": ax.get_ylabel()}
    return (
        {name: plain(word) for name, word in words.items()} | {"shape": round(shape, 3), "bare": not ax.axison} | ticks
    )


@checked
def units(ax: Axes, transform: Transform, points: Annotated[ArrayLike, Shaped()]) -> NDArray:
    """Points in whole units of a panel."""
    placed = ax.transAxes.inverted().transform(transform.transform(np.asarray(points, dtype=float).reshape(-1, 2)))
    return np.clip(np.nan_to_num(placed * UNITS, nan=-1e6, posinf=1e5, neginf=-1e5), -1e5, 1e5).round().astype(int)


def items(ax: Axes) -> Iterator[Item]:
    """What is drawn in a panel, in the order in which it is drawn."""
    artists = [a for a in ax.get_children() if a.get_visible() and a is not ax.patch]
    for artist in sorted(artists, key=lambda a: a.get_zorder()):
        if artist in ax.lines:
            points = units(ax, artist.get_transform(), np.column_stack(artist.get_data(orig=False)))
            points = points[(points > -1e5).all(1)]
            style = {"c": ink(artist.get_color()), "w": round(float(artist.get_linewidth()), 1)}
            style |= {"a": round(alpha(artist.get_color(), artist.get_alpha()), 2)}
            style |= {"d": 1} if artist.get_linestyle() not in ("-", "None") else {}
            style |= {"m": 1} if artist.get_marker() not in ("None", None, "", " ") else {}
            style |= {"n": 1} if artist.get_linestyle() == "None" else {}
            style |= {"o": 1} if "m" in style and to_rgba(artist.get_markerfacecolor())[3] == 0 else {}
            if len(points):
                name = str(artist.get_label())
                yield {"t": "line", "p": points.ravel().tolist(), **style} | _named(name)
        elif isinstance(artist, FancyArrowPatch):
            yield from arrow(ax, artist, ax.transData)
        elif isinstance(artist, Patch) and artist in ax.patches:
            yield from patch(ax, artist)
        elif isinstance(artist, Quiver):
            yield from quiver(ax, artist)
        elif isinstance(artist, Collection):
            yield from collection(ax, artist)
        elif isinstance(artist, Text) and artist in ax.texts:
            if isinstance(artist, Annotation) and artist.arrow_patch is not None:
                ends = np.array([artist.get_position(), artist.xy])
                shaft = artist.arrow_patch
                yield arrow_item(units(ax, ax.transData, ends), shaft.get_edgecolor(), shaft.get_linewidth())
            if artist.get_text():
                transform, place = artist.get_transform(), artist.get_position()
                if isinstance(artist, Annotation):  # before it is drawn it has no transform of its own
                    transform, place = ax.transData, place if artist.anncoords == "data" else artist.xy
                    if artist.anncoords == "offset points":
                        shift = np.array(artist.xyann) * ax.figure.dpi / 72
                        transform += Affine2D().translate(*shift)
                (at,) = units(ax, transform, [place])
                side = {"left": "start", "center": "middle", "right": "end"}[artist.get_horizontalalignment()]
                words = {"t": "text", "p": at.tolist(), "s": plain(artist.get_text()), "h": side}
                words |= {"r": round(artist.get_rotation())} if artist.get_rotation() else {}
                yield words | {"v": artist.get_verticalalignment(), "c": ink(artist.get_color())}


def arrow(ax: Axes, artist: FancyArrowPatch, transform: Transform) -> Iterator[Item]:
    """An arrow between two places."""
    ends = artist._posA_posB  # type: ignore[attr-defined]  # nothing public tells the two ends
    if ends is not None:
        yield arrow_item(units(ax, transform, ends), artist.get_edgecolor(), artist.get_linewidth())


def quiver(ax: Axes, artist: Quiver) -> Iterator[Item]:
    """Arrows of a field that is drawn in the data's units, as wide as inches say."""
    begin = np.column_stack((artist.X, artist.Y))
    for ends in np.stack((begin, begin + np.column_stack((artist.U, artist.V))), 1):
        yield arrow_item(units(ax, ax.transData, ends), artist.get_facecolor()[0], 72 * artist.width)


def arrow_item(ends: NDArray, color: Any, width: float) -> Item:
    """An arrow of that look, its width in points."""
    return {"t": "arrow", "p": ends.ravel().tolist(), "c": ink(color), "w": round(float(width), 1)}


def patch(ax: Axes, artist: Patch) -> Iterator[Item]:
    """A bar, a box or any other shape."""
    fill = artist.get_facecolor() if artist.get_fill() else (0, 0, 0, 0)
    edge = artist.get_edgecolor() if artist.get_linewidth() else (0, 0, 0, 0)
    if isinstance(artist, Rectangle):
        corners = artist.get_patch_transform().transform([[0, 0], [1, 0], [1, 1], [0, 1]])
        outline = [np.asarray(corners)]
    else:
        outline = artist.get_path().to_polygons(artist.get_patch_transform())
    name = next((str(bars.get_label()) for bars in ax.containers if artist in bars), "")
    yield shape([units(ax, artist.get_data_transform(), polygon) for polygon in outline], fill, edge) | _named(name)


def collection(ax: Axes, artist: Collection) -> Iterator[Item]:
    """Bands, stacked bars and marks."""
    artist.update_scalarmappable()
    fills, edges = artist.get_facecolor(), artist.get_edgecolor()
    if isinstance(artist, PathCollection):
        offsets = units(ax, artist.get_offset_transform(), np.ma.filled(artist.get_offsets(), np.nan))
        for i, at in enumerate(offsets[(offsets > -1e5).all(1)]):
            color = (fills if len(fills) else edges)[i % max(1, len(fills) or len(edges))]
            yield {"t": "dot", "p": at.tolist(), "c": ink(color), "a": round(float(color[3]), 2)}
        return
    by_fill: dict[tuple[float, ...], list[NDArray]] = {}
    for i, path in enumerate(artist.get_paths()):
        fill = tuple(fills[i % len(fills)]) if len(fills) else (0.0, 0.0, 0.0, 0.0)
        by_fill.setdefault(fill, []).extend(units(ax, artist.get_transform(), p) for p in path.to_polygons())
    for fill, outlines in by_fill.items():
        hatch = {"x": artist.get_hatch()} if artist.get_hatch() else {}
        yield shape(outlines, fill, (0, 0, 0, 0)) | hatch | _named(str(artist.get_label()))


def shape(outlines: Sequence[NDArray], fill: Any, edge: Any) -> Item:
    """Filled outlines."""
    item: Item = {"t": "shape", "p": [points.ravel().tolist() for points in outlines]}
    item |= {"f": ink(fill), "a": round(float(to_rgba(fill)[3]), 2)} if to_rgba(fill)[3] else {}
    return item | ({"c": ink(edge)} if to_rgba(edge)[3] and to_hex(edge) != "#ffffff" else {})


def ink(color: Any) -> str:
    """A colour; what is drawn in black or white is drawn in the page's own."""
    return {"#000000": "ink", "#ffffff": "paper"}.get(found := to_hex(color), found)


def alpha(color: Any, own: float | None) -> float:
    """How opaque it is."""
    return float(to_rgba(color)[3] if own is None else own)


def _named(label: str) -> dict[str, str]:
    return {"l": plain(label)} if label and not label.startswith("_") else {}


def pooled(frames: Sequence[Sequence[Item]]) -> dict[str, Any]:
    """Items of all frames, each once, and by frame the numbers of its items; a growing curve also has a length."""
    pool: list[Item] = []
    numbers: dict[str, int] = {}
    growing: dict[str, list[int]] = {}
    found: list[list[Any]] = []
    for frame in reversed(frames):
        refs: list[Any] = []
        for item in frame:
            key, style = repr(item), repr({k: v for k, v in item.items() if k != "p"})
            if key not in numbers and item["t"] == "line":
                p = item["p"]
                whole = next((n for n in growing.get(style, []) if pool[n]["p"][: len(p)] == p), None)
                if whole is not None:
                    refs.append([whole, len(p) // 2])
                    continue
            if key not in numbers:
                numbers[key] = len(pool)
                pool.append(item)
                if item["t"] == "line":
                    growing.setdefault(style, []).append(numbers[key])
            refs.append(numbers[key])
        found.append(refs)
    return {"items": pool, "frames": found[::-1]}
