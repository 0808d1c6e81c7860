"""Images composed of fractals: pairs with the same codes (fractal pair similarity), multi-label images, and controls.

Chen et al. 2023: the two images of a pair hold the same set of codes, each drawn anew, so what they share is the codes
and not the pixels. Which image sizes, numbers of codes and jitters: those of the released code at 32 x 32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab_core.check import Many, Size, checked
from fedlab_core.pretraining.fractals import coloured, jittered, render, sample_codes
from fedlab_core.randomness import generator


@checked
@dataclass(frozen=True, eq=False)
class Renders:
    """Renders of some codes, each with another jitter, to compose images of.

    Attributes:
        grey: uint8 (codes, renders, size, size).
    """

    grey: Tensor

    @property
    def codes(self) -> int:
        """Number of codes."""
        return len(self.grey)


@checked
def make_renders(codes: Many, each: Many = 32, seed: int = 0, *, size: Size = 32, points: Many = 1000) -> Renders:
    """Samples codes and renders each `each` times (32 in the released code's cache) with a jitter of its own."""
    chosen = sample_codes(codes, generator(seed, "fractal codes"))
    draws = generator(seed, "fractal renders")
    every = chosen[torch.arange(codes).repeat_interleave(each)]
    return Renders(render(jittered(every, draws), draws, size=size, points=points).view(codes, each, size, size))


@checked
def compose(renders: Renders, sets: Tensor, draws: torch.Generator, *, blur: bool = True) -> Tensor:
    """One image per set of codes: every code a random render, transposed and flipped at random (p = 1/2 each), in a
    fresh colour, 0.45 to 0.75 of the canvas wide, at a random place, later ones over earlier ones.

    A fractal may hang out of the canvas by a quarter of its own width; only its own pixels cover what lies below (both
    our reading of the released code's rule). A 3 x 3 Gaussian blur with sigma in [0.5, 2] ends it with p = 1/2.

    Args:
        sets: int64 (images, k) codes of each image.

    Returns:
        float (images, 3, size, size) in [0, 1].
    """
    n, k = sets.shape
    size = renders.grey.shape[-1]
    canvas = torch.zeros(n, 3, size, size)
    for j in range(k):
        u = torch.rand(n, 7, generator=draws)
        which = (u[:, 0] * renders.grey.shape[1]).long()
        picture = coloured(renders.grey[sets[:, j], which], draws)
        width = 0.45 + 0.3 * u[:, 1]
        room = (1 - 0.5 * width)[:, None]  # of the middle, in half canvases: a quarter of the width may hang out
        place = room * (2 * u[:, 2:4] - 1)
        swap, flips = u[:, 4] < 0.5, torch.where(u[:, 5:7] < 0.5, -1.0, 1.0)
        across, along = torch.where(swap, 0.0, 1.0), torch.where(swap, 1.0, 0.0)
        # output pixel -> place in the picture: flip or transpose of (pixel - place) / width
        rows = []
        for i, (first, second) in enumerate(((across, along), (along, across))):
            x, y = first / width * flips[:, i], second / width * flips[:, i]
            rows.append(torch.stack((x, y, -(x * place[:, 0] + y * place[:, 1])), 1))
        grid = F.affine_grid(torch.stack(rows, 1), [n, 3, size, size], align_corners=False)
        moved = F.grid_sample(picture, grid, align_corners=False)
        canvas = torch.where((moved > 0).any(1, keepdim=True), moved, canvas)
    if blur:
        u = torch.rand(n, 2, generator=draws)
        side = torch.exp(-0.5 / (0.5 + 1.5 * u[:, 0]).square())
        side = torch.where(u[:, 1] < 0.5, side, torch.zeros_like(side))
        weights = torch.stack((side, torch.ones_like(side), side), 1) / (1 + 2 * side)[:, None]
        kernel = (weights[:, :, None] * weights[:, None, :]).repeat_interleave(3, 0)[:, None]
        flat = F.pad(canvas.view(1, 3 * n, size, size), (1, 1, 1, 1), mode="replicate")
        canvas = F.conv2d(flat, kernel, groups=3 * n).view_as(canvas)
    return canvas


@checked
def random_sets(codes: Many, images: Many, each: Many, draws: torch.Generator) -> Tensor:
    """int64 (images, each) distinct codes per image.

    Raises:
        ValueError: more codes per image than there are.
    """
    if not 1 <= each <= codes:
        raise ValueError(f"each={each}, accepted: 1 to {codes}, the number of codes")
    return torch.rand(images, codes, generator=draws).argsort(1)[:, :each]


@checked
def fractal_pairs(renders: Renders, pairs: Many, draws: torch.Generator, each: Many = 2) -> tuple[Tensor, Tensor]:
    """Two images of the same codes per pair: fractal pair similarity ("gen_num_augs = 2" of the released code).

    Args:
        each: codes per image, 2 at 32 x 32.

    Returns:
        Two tensors (pairs, 3, size, size).
    """
    sets = random_sets(renders.codes, pairs, each, draws)
    return compose(renders, sets, draws), compose(renders, sets, draws)


@checked
def fractal_twins(renders: Renders, pairs: Many, draws: torch.Generator, each: Many = 2) -> tuple[Tensor, Tensor]:
    """The control: the same image twice, so that only the augmentation tells the views apart ("gen_num_augs = 1")."""
    image = compose(renders, random_sets(renders.codes, pairs, each, draws), draws)
    return image, image


@checked
def multi_label(renders: Renders, images: Many, draws: torch.Generator, most: Many = 5) -> tuple[Tensor, Tensor]:
    """Images of 1 to `most` codes and which codes they hold (multi-instance prediction, Anderson and Farrell 2022).

    Returns:
        float (images, 3, size, size), and float (images, codes) of zeros and ones.
    """
    counts = torch.randint(1, min(most, renders.codes) + 1, (images,), generator=draws)
    canvas = torch.empty(images, 3, *renders.grey.shape[2:])
    labels = torch.zeros(images, renders.codes)
    for k in counts.unique().tolist():
        rows = (counts == k).nonzero().flatten()
        sets = random_sets(renders.codes, len(rows), k, draws)
        canvas[rows] = compose(renders, sets, draws)
        labels[rows[:, None], sets] = 1.0
    return canvas, labels


@checked
def noise_images(images: Many, size: Size, draws: torch.Generator) -> Tensor:
    """The control without any structure: (images, 3, size, size) of independent uniform pixels."""
    return torch.rand(images, 3, size, size, generator=draws)


@checked
def fitted(images: Tensor, input_shape: Sequence[int]) -> Tensor:
    """Images (n, 3, size, size) in [0, 1] made to fit a model: area-averaged or enlarged to its height and width, and
    grey where it reads one channel.

    Raises:
        ValueError: a model that reads neither one nor three channels.
    """
    channels, height, width = input_shape
    if channels not in (1, 3):
        raise ValueError(f"input_shape={tuple(input_shape)}, accepted: one or three channels")
    if images.shape[2] % height == 0 and images.shape[3] % width == 0:
        images = F.adaptive_avg_pool2d(images, (height, width))
    else:
        images = F.interpolate(images, (height, width), mode="bilinear", antialias=True, align_corners=False)
    if channels == 3:
        return images
    return (images * images.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(1, keepdim=True)
