"""Learning without labels: two views of an image by augmentations on tensors, and the losses that compare the views."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.check import Depth, Size, checked
from fedlab_core.models.layers import initialise, norm1d
from fedlab_core.state import State


@checked
@dataclass(frozen=True)
class Augmentation:
    """How far a view may be from the image; the defaults are MoCo v2's (Chen et al. 2020, arXiv 2003.04297).

    Attributes:
        scale: smallest area of the random crop, as a share of the image; 1 crops nothing.
        flip: probability of a horizontal flip; 0 for characters.
        rotate: largest rotation in degrees, either way (not part of MoCo v2).
        jitter: probability of the colour jitter.
        brightness, contrast, saturation: largest relative change, factors in [1 - v, 1 + v].
        hue: largest turn of the hue, in turns.
        grey: probability of a grey image; no effect with one channel.
        blur: probability of a Gaussian blur with sigma in [0.1, 2] pixels.
        kernel: width of the blur's kernel in pixels, odd.
        solarise: probability of inverting all values above 1/2.
    """

    scale: float = 0.2
    flip: float = 0.5
    rotate: float = 0.0
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.5
    kernel: int = 5
    solarise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grey", "blur", "solarise", "brightness", "contrast", "saturation", "hue"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}, accepted: a number in [0, 1]")
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale={self.scale!r}, accepted: a number in (0, 1]")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel!r}, accepted: an odd number of pixels")


CHARACTERS = Augmentation(scale=0.6, flip=0.0, rotate=10.0, kernel=3)
"""For small grey pictures of characters, which a flip or a small crop would turn into others."""


@checked
def augment(
    x: Tensor,
    draws: torch.Generator,
    recipe: Augmentation = Augmentation(),
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Tensor:
    """One view of each image: crop, rotation, flip, colour jitter, grey, blur, solarise, in this order, image by image.

    The hue is turned in the YIQ plane, which is linear in the colours; torchvision turns it in HSV.

    Args:
        x: float (n, 1 or 3, height, width), normalised with `mean` and `std`.
        draws: a CPU generator; every image takes the same number of draws, whatever happens to it.
        recipe: see `Augmentation`.
        mean, std: per channel; x * std + mean lies in [0, 1]. A `Dataset` has both.

    Returns:
        Like x, normalised with the same mean and std.

    Raises:
        ValueError: x is not a batch of images with one or three channels.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.is_floating_point():
        raise ValueError(f"x of {x.dtype} {tuple(x.shape)}, accepted: float (n, 1 or 3, height, width)")
    n = len(x)
    u = torch.rand(n, 17, generator=draws).to(x.device, x.dtype)
    shift, scale = (torch.tensor(tuple(v), dtype=x.dtype, device=x.device).view(1, -1, 1, 1) for v in (mean, std))
    image = _moved(x * scale + shift, u[:, :6], recipe)

    def maybe(changed: Tensor, column: int, probability: float) -> Tensor:
        return torch.where((u[:, column] < probability).view(n, 1, 1, 1), changed, image)

    def factor(column: int, most: float) -> Tensor:
        return (1 + most * (2 * u[:, column] - 1)).view(n, 1, 1, 1)

    if recipe.jitter:
        changed = image * factor(7, recipe.brightness)
        middle = _luma(changed).mean((2, 3), keepdim=True)
        changed = middle + (changed - middle) * factor(8, recipe.contrast)
        if x.shape[1] == 3:
            grey = _luma(changed)
            changed = grey + (changed - grey) * factor(9, recipe.saturation)
            changed = _turn_hue(changed, recipe.hue * (2 * u[:, 10] - 1))
        image = maybe(changed.clamp(0, 1), 6, recipe.jitter)
    if recipe.grey and x.shape[1] == 3:
        image = maybe(_luma(image).expand_as(image), 11, recipe.grey)
    if recipe.blur and recipe.kernel > 1:
        image = maybe(_blurred(image, 0.1 + 1.9 * u[:, 13], recipe.kernel), 12, recipe.blur)
    if recipe.solarise:
        image = maybe(torch.where(image > 0.5, 1 - image, image), 14, recipe.solarise)
    return (image - shift) / scale


@checked
def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.5) -> Tensor:
    """SimCLR's loss: find the other view of the same image among the 2n - 1 other views (Chen et al. 2020, equation 1).

    Args:
        z1, z2: (n, width) projections of the two views; row i of both belongs to image i.
    """
    z = F.normalize(torch.cat((z1, z2)), dim=1)
    n = len(z1)
    similarity = (z @ z.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), -torch.inf)
    return F.cross_entropy(similarity, (torch.arange(2 * n, device=z.device) + n) % (2 * n))


@checked
def info_nce(queries: Tensor, keys: Tensor, temperature: float = 0.2) -> Tensor:
    """MoCo v3's loss of one direction, 2 tau * cross-entropy (Chen, Xie and He 2021, algorithm 1); no gradient through
    the keys.

    Args:
        queries: (n, width) predictions of one view.
        keys: (n, width) the momentum encoder's projections of the other view; row i is the positive of query i.
    """
    logits = F.normalize(queries, dim=1) @ F.normalize(keys.detach(), dim=1).T / temperature
    return 2 * temperature * F.cross_entropy(logits, torch.arange(len(queries), device=queries.device))


@checked
def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """-1/2 [cos(p1, sg z2) + cos(p2, sg z1)] (Chen and He 2021, algorithm 1): -1 at best.

    Args:
        p1, p2: (n, width) predictions of the two views.
        z1, z2: (n, width) their projections, through which no gradient flows.
    """
    cosines = F.cosine_similarity(p1, z2.detach()).mean() + F.cosine_similarity(p2, z1.detach()).mean()
    return -0.5 * cosines


@checked
def byol_loss(p1: Tensor, p2: Tensor, target1: Tensor, target2: Tensor) -> Tensor:
    """||p - t||^2 of unit vectors, both directions added (Grill et al. 2020, equation 2): 4 + 4 * SimSiam's value.

    Args:
        p1, p2: (n, width) the online network's predictions of the two views.
        target1, target2: (n, width) the target network's projections of the same views.
    """
    return 4 + 4 * simsiam_loss(p1, p2, target1, target2)


@checked
def move_target(target: State, online: State, momentum: float = 0.99) -> State:
    """The target network of BYOL and MoCo after a step: momentum * target + (1 - momentum) * online.

    Args:
        target: tensors by name; whole-number buffers are taken from `online`.
        online: at least the same names.

    Returns:
        New tensors; the arguments stay as they are.
    """
    return {
        name: torch.lerp(online[name].detach(), old, momentum) if old.is_floating_point() else online[name].clone()
        for name, old in target.items()
    }


@checked
def projector(
    width: Size,
    draws: torch.Generator,
    *,
    hidden: Size = 512,
    out: Size = 256,
    layers: Depth = 3,
    norm: str = "batch",
    last_norm: bool = True,
) -> nn.Sequential:
    """The head between encoder and loss: `layers` dense layers with normalisation, ReLU between them.

    Args:
        width: of the encoder's features.
        draws: source of the initial weights.
        hidden, out: widths of the hidden layers and of the output.
        norm: "batch" (SimSiam, BYOL, MoCo v3), "layer" or "none".
        last_norm: normalise the output too (SimSiam's projector does, its predictor does not).

    Raises:
        ValueError: fewer than one layer.
    """
    if layers < 1:
        raise ValueError(f"layers={layers}, accepted: 1 or more")
    parts: list[nn.Module] = []
    with torch.device("meta"):
        for i in range(layers):
            last = i == layers - 1
            units = out if last else hidden
            normed = norm != "none" and (last_norm or not last)
            parts.append(nn.Linear(width, units, bias=not normed))
            parts += [norm1d(units, norm)] * normed + [nn.ReLU()] * (not last)
            width = units
        head = nn.Sequential(*parts)
    head.to_empty(device="cpu")
    initialise(head, draws)
    return head


@checked
def predictor(width: Size, draws: torch.Generator, *, hidden: Size = 128, norm: str = "batch") -> nn.Sequential:
    """SimSiam's and BYOL's predictor, width -> hidden -> width: two dense layers, normalisation after the first."""
    return projector(width, draws, hidden=hidden, out=width, layers=2, norm=norm, last_norm=False)


@checked
def spread(z: Tensor) -> float:
    """Mean standard deviation of unit vectors (n, width) times sqrt(width): 1 where they fill the sphere, 0 where they
    have collapsed to a point (Chen and He 2021)."""
    return (F.normalize(z.detach(), dim=1).std(0).mean() * math.sqrt(z.shape[1])).item()


def _moved(image: Tensor, u: Tensor, recipe: Augmentation) -> Tensor:
    """Crop of a random place, area and aspect ratio (3/4 to 4/3), rotation and flip as one resampling."""
    area = recipe.scale + (1 - recipe.scale) * u[:, 0]
    ratio = torch.exp(math.log(4 / 3) * (2 * u[:, 1] - 1)) if recipe.scale < 1 else torch.ones_like(area)
    sides = torch.stack(((area * ratio).sqrt(), (area / ratio).sqrt()), 1).clamp(max=1)
    place = (1 - sides) * (2 * u[:, 2:4] - 1)
    angle = math.radians(recipe.rotate) * (2 * u[:, 4] - 1)
    mirror = torch.where(u[:, 5] < recipe.flip, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        (
            torch.stack((sides[:, 0] * cos * mirror, -sides[:, 0] * sin, place[:, 0]), 1),
            torch.stack((sides[:, 1] * sin * mirror, sides[:, 1] * cos, place[:, 1]), 1),
        ),
        1,
    )
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    edge = "border" if recipe.rotate == 0 else "zeros"
    return F.grid_sample(image, grid, padding_mode=edge, align_corners=False)


def _luma(image: Tensor) -> Tensor:
    """(n, 1, h, w) brightness, ITU-R 601 weights."""
    if image.shape[1] == 1:
        return image
    return (image * image.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _turn_hue(image: Tensor, turns: Tensor) -> Tensor:
    """(n, 3, h, w) with the colours turned about the grey axis by (n,) turns, brightness kept."""
    to_yiq = image.new_tensor(((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)))
    cos, sin = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    turn = torch.stack((one, zero, zero, zero, cos, -sin, zero, sin, cos), 1).view(-1, 3, 3)
    return torch.einsum("nij,njhw->nihw", torch.linalg.inv(to_yiq) @ turn @ to_yiq, image)


def _blurred(image: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Gaussian blur with one sigma (n,) per image, the edge repeated outwards."""
    n, channels, height, width = image.shape
    at = torch.arange(kernel, device=image.device) - kernel // 2
    weights = torch.softmax(-0.5 * (at / sigma[:, None]).square(), 1).repeat_interleave(channels, 0)
    pad = kernel // 2
    flat = F.pad(image.reshape(1, n * channels, height, width), (pad, pad, pad, pad), mode="replicate")
    flat = F.conv2d(flat, weights[:, None, None, :], groups=n * channels)
    return F.conv2d(flat, weights[:, None, :, None], groups=n * channels).view_as(image)
