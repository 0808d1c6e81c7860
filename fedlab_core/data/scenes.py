"""Generated pictures with captions: one textured, coloured shape on a cluttered ground, as in "a red striped triangle".

Every shape comes with every texture, and the 32 combinations are split in two: the `TASK` is for clients to learn, the
rest is for pre-training. So a network can have seen every shape, every texture and every word of a class of the task,
but no picture of it and no caption with both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab_core import check
from fedlab_core.data.dataset import Dataset
from fedlab_core.data.statistics import channel_statistics
from fedlab_core.randomness import generator

SHAPES = ("circle", "ring", "square", "triangle", "star", "cross", "bar", "crescent")
TEXTURES = ("solid", "striped", "checkered", "dotted")
COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.75, 0.20),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.65, 0.25, 0.80),
    "orange": (0.98, 0.55, 0.10),
}
COMBINATIONS = tuple((s, t) for s in range(len(SHAPES)) for t in range(len(TEXTURES)))
TASK = tuple((s, t) for s, t in COMBINATIONS if (t - s) % len(TEXTURES) < 2)
"""Numbers of shape and texture of the clients' 16 classes: solid and striped circles and stars, striped and checkered
rings and crosses, checkered and dotted squares and bars, dotted and solid triangles and crescents."""
PRETRAINING = tuple(pair for pair in COMBINATIONS if pair not in TASK)
SPLITS = {"task": TASK, "pretraining": PRETRAINING}
SIZE = 32  # pixels
MOST = 10_000  # pictures of a class


@check.checked
@dataclass(frozen=True)
class Scenes:
    """Pictures and what is in them.

    Attributes:
        x: uint8 (n, 3, 32, 32).
        shape, texture, colour: int64 (n,), positions in `SHAPES`, `TEXTURES` and `COLOURS`.
    """

    x: Tensor
    shape: Tensor
    texture: Tensor
    colour: Tensor

    def captions(self) -> list[str]:
        """One per picture, such as "a red striped triangle"."""
        colours = tuple(COLOURS)
        return [
            f"a {colours[c]} {TEXTURES[t]} {SHAPES[s]}"
            for s, t, c in zip(self.shape.tolist(), self.texture.tolist(), self.colour.tolist(), strict=True)
        ]


@check.checked
def class_names(split: str) -> tuple[str, ...]:
    """One name per class of a split (a key of `SPLITS`), such as "striped ring"."""
    return tuple(f"{TEXTURES[t]} {SHAPES[s]}" for s, t in _pairs(split))


@check.checked
def draw_scenes(shape: Tensor, texture: Tensor, draws: torch.Generator) -> Scenes:
    """Pictures of given shapes and textures; everything else is drawn.

    Colour, position, size (radius 7.5 to 13 pixels), rotation (up to 25 degrees), phase and width of the texture, a
    ground of two tints that run into each other, three faint blots on it, and noise.

    Args:
        shape, texture: int64 (n,).
        draws: source of all the rest; equal arguments give equal pictures.

    Raises:
        ValueError: different lengths, or a number without a shape or texture.
    """
    if shape.shape != texture.shape or shape.ndim != 1:
        raise ValueError(f"shape {tuple(shape.shape)}, texture {tuple(texture.shape)}, accepted: two vectors as long")
    for name, numbers, most in (("shape", shape, len(SHAPES)), ("texture", texture, len(TEXTURES))):
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < most:
            raise ValueError(f"{name}: {int(numbers.min())} to {int(numbers.max())}, accepted: 0 to {most - 1}")
    n = len(shape)
    colour = torch.randint(len(COLOURS), (n,), generator=draws)
    pieces = zip(shape.split(1024), texture.split(1024), colour.split(1024), strict=True)
    parts = [_paint(s, t, c, draws) for s, t, c in pieces]
    return Scenes(torch.cat(parts) if parts else torch.empty(0, 3, SIZE, SIZE).byte(), shape, texture, colour)


@check.checked
def split_scenes(split: str, n: check.Many, draws: torch.Generator) -> tuple[Scenes, Tensor]:
    """`n` pictures of a split's classes, which come in turn (0, 1, ..., 0, ...), and their labels int64 (n,).

    Raises:
        ValueError: an unknown split.
    """
    pairs, y = torch.tensor(_pairs(split)), torch.arange(n) % len(_pairs(split))
    return draw_scenes(pairs[y, 0], pairs[y, 1], draws), y


@check.checked
def scenes(split: str = "task", per_class: int = 100, test_per_class: int = 60, seed: int = 0) -> Dataset:
    """Pictures of one split of the combinations as a data set, see `draw_scenes`; nothing is downloaded.

    Args:
        split: "task", the clients' 16 classes, or "pretraining", the other 16.
        per_class: training pictures of each class.
        test_per_class: test pictures of each class.
        seed: of all draws.

    Raises:
        ValueError: an unknown split, or fewer than one picture.
    """
    per_class = check.whole("per_class", per_class, 1, MOST)
    seed = check.whole("seed", seed)
    test_per_class = check.whole("test_per_class", test_per_class, 1, MOST)
    classes = class_names(split)
    (train, y), (test, test_y) = (
        split_scenes(split, count * len(classes), generator(seed, f"scenes {split}", part))
        for part, count in enumerate((per_class, test_per_class))
    )
    mean, std = channel_statistics(train.x)
    return Dataset(
        name="scenes",
        kind="image",
        x=train.x,
        y=y,
        test_x=test.x,
        test_y=test_y,
        classes=classes,
        mean=mean,
        std=std,
        notes=f"generated scenes, {len(classes)} combinations of shape and texture ({split}), seed {seed}",
    )


def _pairs(split: str) -> tuple[tuple[int, int], ...]:
    check.choice("split", split, SPLITS)
    return SPLITS[split]


def _paint(shape: Tensor, texture: Tensor, colour: Tensor, draws: torch.Generator) -> Tensor:
    """uint8 (n, 3, SIZE, SIZE)."""
    n = len(shape)
    u = torch.rand(n, 24, generator=draws)
    axis = torch.linspace(-1 + 1 / SIZE, 1 - 1 / SIZE, SIZE)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), 0).expand(n, 2, SIZE, SIZE)
    radius = _per(7.5 + 5.5 * u[:, 0]) * 2 / SIZE
    room = (1 - radius.flatten()).clamp(min=0)[:, None]
    place = (2 * u[:, 1:3] - 1) * room
    angle = (2 * u[:, 3] - 1) * (25 * torch.pi / 180)
    a, b = ((grid - place[:, :, None, None]) / radius[:, None]).unbind(1)
    cos, sin = _per(angle.cos()), _per(angle.sin())
    a, b = cos * a + sin * b, cos * b - sin * a  # coordinates of the shape, which fills [-1, 1]
    inside = torch.empty(n, SIZE, SIZE)
    for number, outline in enumerate(_OUTLINES):
        mine = shape == number
        inside[mine] = outline(a[mine], b[mine])
    inside = (0.5 - inside * radius * SIZE / 2).clamp(0, 1)  # a soft edge, one pixel wide
    paint = torch.tensor(list(COLOURS.values()))[colour] * (0.8 + 0.2 * u[:, 4:5]) + 0.1 * (u[:, 5:8] - 0.5)
    dark = 0.15 + 0.25 * u[:, 8:9]
    mark = _marks(texture, a, b, u[:, 9:13])[:, None]
    figure = paint[:, :, None, None] * (1 - mark * (1 - dark[:, :, None, None]))
    tint = 0.25 + 0.5 * u[:, 13:14, None] + 0.25 * (torch.rand(n, 3, 2, generator=draws) - 0.5)
    along = _per(u[:, 14] - 0.5) * grid[:, 0] + _per(u[:, 15] - 0.5) * grid[:, 1]
    share = (0.5 + along).clamp(0, 1)[:, None]
    ground = tint[:, :, :1, None] * share + tint[:, :, 1:, None] * (1 - share)
    for k in range(3):
        blot = 2 * torch.rand(n, 3, generator=draws) - 1
        near = torch.exp(-((grid - blot[:, :2, None, None]) ** 2).sum(1) / 0.04)
        ground = ground + (0.35 * blot[:, 2] * (0.5 + 0.5 * u[:, 16 + k]))[:, None, None, None] * near[:, None]
    image = ground + inside[:, None] * (figure - ground)
    image = image + 0.06 * torch.randn(image.shape, generator=draws)
    return image.mul(255).round().clamp(0, 255).to(torch.uint8)


def _marks(texture: Tensor, a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """Where a texture darkens the shape, 0 to 1, (n, SIZE, SIZE), from the shape's own coordinates."""
    pitch = _per(5.2 + 1.6 * u[:, 0])  # radians per unit: a period is 0.9 to 1.2 of the radius
    p, q = pitch * a + 2 * torch.pi * _per(u[:, 1]), pitch * b + 2 * torch.pi * _per(u[:, 2])
    soft = torch.stack([torch.full_like(p, -9.0), p.sin(), p.sin() * q.sin() * 2, p.sin() + q.sin() - 0.9])
    chosen = soft.gather(0, texture[None, :, None, None].expand(1, *p.shape))[0]
    return (0.5 + 3 * chosen).clamp(0, 1)


def _half(a: Tensor, b: Tensor, degrees: float) -> Tensor:
    """Distance along a direction."""
    turn = torch.tensor(degrees * torch.pi / 180)
    return turn.cos() * a + turn.sin() * b


def _star(a: Tensor, b: Tensor) -> Tensor:
    turn = torch.atan2(a, -b) * 5 / (2 * torch.pi)
    return torch.hypot(a, b) - (0.42 + 0.58 * (1 - 2 * (turn - turn.round()).abs()) ** 1.3)


def _box(a: Tensor, b: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(a.abs() - width, b.abs() - height)


_OUTLINES = (  # roughly the signed distance to the edge, negative inside
    lambda a, b: torch.hypot(a, b) - 0.95,
    lambda a, b: (torch.hypot(a, b) - 0.72).abs() - 0.26,
    lambda a, b: _box(a, b, 0.8, 0.8),
    lambda a, b: torch.stack([_half(a, b, d) for d in (90, 210, 330)]).amax(0) - 0.5,
    _star,
    lambda a, b: torch.minimum(_box(a, b, 0.32, 1.0), _box(a, b, 1.0, 0.32)),
    lambda a, b: _box(a, b, 1.0, 0.38),
    lambda a, b: torch.maximum(torch.hypot(a, b) - 1.0, 0.75 - torch.hypot(a - 0.55, b)),
)


def _per(values: Tensor) -> Tensor:
    """(n,) as one number per picture, (n, 1, 1)."""
    return values[:, None, None]
