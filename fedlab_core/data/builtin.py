"""Image data sets that need no download: scikit-learn's digits and rendered letters."""

from __future__ import annotations

import string
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab_core import check
from fedlab_core.data.dataset import Dataset
from fedlab_core.data.statistics import channel_statistics, stratified_split
from fedlab_core.randomness import generator

# Capitals, and the 11 lower-case letters whose shape is not their capital's (the classes of EMNIST Balanced without its
# digits: Cohen et al., 2017, section II-C). No digit is among them, so a task on digits stays unseen.
LETTERS = string.ascii_uppercase + "abdefghnqrt"
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmtt10"),
)
DIGITS = "sklearn/datasets/data/digits.csv.gz"  # read from the file: importing scikit-learn takes over a second
MOST = 10_000  # images of a class
CANVAS, GLYPH = 64, 48  # pixels: a glyph's longer side is GLYPH in the middle of CANVAS x CANVAS


def digits() -> Dataset:
    """scikit-learn's 1,797 scanned digits of 8 x 8 pixels: 1,437 for training, 360 for testing, stratified.

    The original grey values v in 0..16 are kept without loss as x = round(255 v / 16), so v = round(16 x / 255).
    The split is fixed. Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI (1998), test part.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    rows = np.loadtxt(str(distribution("scikit-learn").locate_file(DIGITS)), delimiter=",")  # unpacks it by its name
    x = torch.from_numpy(rows[:, :-1]).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    y = torch.from_numpy(rows[:, -1]).to(torch.int64)
    train, test = stratified_split(y, _largest_remainder(torch.bincount(y), 360), generator(0, "digits split"))
    mean, std = channel_statistics(x[train])
    return Dataset(
        name="digits",
        kind="image",
        x=x[train],
        y=y[train],
        test_x=x[test],
        test_y=y[test],
        classes=tuple("0123456789"),
        mean=mean,
        std=std,
        notes="scikit-learn's digits (UCI optdigits, 8x8 scans), fixed stratified 80/20 split",
    )


def letters(size: int = 28, per_class: int = 300, test_per_class: int = 60, seed: int = 0) -> Dataset:
    """White characters on black, drawn from the fonts matplotlib ships under random affine maps; 37 classes, no digit.

    Classes: the 26 capitals and a b d e f g h n q r t. Every image has a random font of `FONTS`, is rotated by up to
    15 degrees, sheared by up to 0.2, scaled by 0.75 to 1.15 in each direction, and moved, but never cut off. Labels
    come in turn (0, 1, ..., 36, 0, ...), so any beginning of the data is as balanced as it can be. The test images are
    further draws from the same fonts.

    Args:
        size: height and width in pixels, 4 to 64.
        per_class: training images of each class.
        test_per_class: test images of each class.
        seed: of fonts and maps.

    Raises:
        ValueError: a size or number out of range.
        FileNotFoundError: matplotlib lacks one of the fonts.
    """
    size = check.whole("size", size, 4, CANVAS)
    seed = check.whole("seed", seed)
    per_class = check.whole("per_class", per_class, 1, MOST)
    test_per_class = check.whole("test_per_class", test_per_class, 1, MOST)
    glyphs, halves = _glyphs()
    (x, y), (test_x, test_y) = (
        _warped(glyphs, halves, size, count * len(LETTERS), generator(seed, "letters", part))
        for part, count in enumerate((per_class, test_per_class))
    )
    mean, std = channel_statistics(x)
    return Dataset(
        name="letters",
        kind="image",
        x=x,
        y=y,
        test_x=test_x,
        test_y=test_y,
        classes=tuple(LETTERS),
        mean=mean,
        std=std,
        notes=f"26 capitals, 11 lower-case letters, {len(FONTS)} fonts of matplotlib, random affine, seed {seed}",
    )


def _glyphs() -> tuple[Tensor, Tensor]:
    """Every character in every font, float (fonts, classes, 1, CANVAS, CANVAS) in 0..1, and half its width and height
    (fonts, classes, 2) in units of half the canvas."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    images = np.zeros((len(FONTS), len(LETTERS), 1, CANVAS, CANVAS), np.float32)
    halves = np.zeros((len(FONTS), len(LETTERS), 2), np.float32)
    for i, name in enumerate(FONTS):
        path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
        if not path.is_file():
            raise FileNotFoundError(f"letters needs the font {path}, which matplotlib {matplotlib.__version__} lacks")
        font = ImageFont.truetype(str(path), 4 * GLYPH, layout_engine=ImageFont.Layout.BASIC)
        for j, character in enumerate(LETTERS):
            big = Image.new("L", (12 * GLYPH, 12 * GLYPH))
            ImageDraw.Draw(big).text((3 * GLYPH, 3 * GLYPH), character, fill=255, font=font)
            glyph = big.crop(big.getbbox())
            scale = GLYPH / max(glyph.size)
            width, height = (max(1, round(side * scale)) for side in glyph.size)
            left, top = (CANVAS - width) // 2, (CANVAS - height) // 2
            small = np.asarray(glyph.resize((width, height), Image.Resampling.BOX), np.float32)
            images[i, j, 0, top : top + height, left : left + width] = small / 255
            halves[i, j] = (width + 1) / CANVAS, (height + 1) / CANVAS
    return torch.from_numpy(images), torch.from_numpy(halves)


def _warped(glyphs: Tensor, halves: Tensor, size: int, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """`n` images, uint8 (n, 1, size, size), and their labels: x -> A x + t with A = rotation . shear . scaling."""
    y = torch.arange(n) % glyphs.shape[1]
    font = torch.randint(glyphs.shape[0], (n,), generator=draw)
    uniform = torch.rand(n, 6, generator=draw) * 2 - 1
    angle, shear = uniform[:, 0] * torch.pi / 12, uniform[:, 1] * 0.2
    scale = 0.95 + 0.2 * uniform[:, 2:4]
    cos, sin = angle.cos(), angle.sin()
    first = torch.stack((cos, sin), 1) * scale[:, :1]  # columns of A
    second = torch.stack((cos * shear - sin, sin * shear + cos), 1) * scale[:, 1:]
    matrix = torch.stack((first, second), 2)
    half = halves[font, y]
    matrix = matrix / (matrix.abs() @ half[:, :, None]).amax((1, 2), keepdim=True).clamp(min=1)  # fits the image
    room = 1 - (matrix.abs() @ half[:, :, None]).squeeze(2)
    shift = uniform[:, 4:] * room.clamp(min=0, max=0.3)
    inverse = torch.linalg.inv(matrix)  # grid_sample asks where an output pixel comes from
    theta = torch.cat((inverse, -inverse @ shift[:, :, None]), 2)
    fine = -(-56 // size)  # supersampling: averaging fine x fine samples a pixel keeps thin strokes
    x = torch.empty(n, 1, size, size, dtype=torch.uint8)
    for part in torch.arange(n).split(1024):
        grid = F.affine_grid(theta[part], [len(part), 1, size * fine, size * fine], align_corners=False)
        image = F.grid_sample(glyphs[font[part], y[part]], grid, align_corners=False)
        x[part] = F.avg_pool2d(image, fine).mul(255).round().clamp(0, 255).to(torch.uint8)
    return x, y


def _largest_remainder(counts: Tensor, total: int) -> Tensor:
    """`total` seats in proportion to int64 (classes,) `counts`: Hamilton's method, ties to the lower index."""
    seats = counts * total // counts.sum()
    remainder = counts * total - seats * counts.sum()
    seats[remainder.argsort(descending=True, stable=True)[: total - int(seats.sum())]] += 1
    return seats
