"""Fractals from iterated function systems: codes sampled and rendered as the released code of fractal pair similarity
does (Chen et al. 2023; after Anderson and Farrell 2022), for many codes at once."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab_core.check import Many, Size, checked

MOST_MAPS = 4  # a code has 2, 3 or 4 maps
_TOGETHER = 1024  # codes rendered at once


@checked
@dataclass(frozen=True, eq=False)
class Codes:
    """Iterated function systems: sets of affine maps x -> A x + b in the plane, float64.

    Attributes:
        a: (codes, 4, 2, 2); maps that a code does not have are zero.
        b: (codes, 4, 2).
        maps: (codes,) number of maps, 2 to 4.
    """

    a: Tensor
    b: Tensor
    maps: Tensor

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, chosen: Tensor | slice) -> "Codes":
        return Codes(self.a[chosen], self.b[chosen], self.maps[chosen])


@checked
def sample_codes(count: Many, draws: torch.Generator) -> Codes:
    """Random codes: N uniform in {2, 3, 4}, b uniform in [-1, 1]^2, A_i = U_i diag(s_i1, s_i2) V_i.

    U_i and V_i are rotations by angles uniform in [-pi, pi] times random diag(+-1, +-1). The singular values have
    0 <= s_i2 <= s_i1 <= 1 and sum (s_i1 + 2 s_i2) uniform in [(5 + N) / 2, (6 + N) / 2], which keeps the fractals
    neither dust nor blobs.

    Raises:
        ValueError: count below 1.
    """
    if count < 1:
        raise ValueError(f"count={count}, accepted: at least 1")
    maps = torch.randint(2, MOST_MAPS + 1, (count,), generator=draws)
    b = torch.rand(count, MOST_MAPS, 2, generator=draws, dtype=torch.float64) * 2 - 1
    angles = (torch.rand(2, count, MOST_MAPS, generator=draws, dtype=torch.float64) * 2 - 1) * math.pi
    signs = torch.randint(0, 2, (2, count, MOST_MAPS, 2), generator=draws) * 2.0 - 1
    u, v = (_rotation(angle) * sign[..., None, :] for angle, sign in zip(angles, signs.double(), strict=True))
    values = torch.zeros(count, MOST_MAPS, 2, dtype=torch.float64)
    for n in range(2, MOST_MAPS + 1):
        of_n = maps == n
        values[of_n, :n] = singular_values(n, int(of_n.sum()), draws)
    a = u @ torch.diag_embed(values) @ v
    has = (torch.arange(MOST_MAPS) < maps[:, None]).double()
    return Codes(a * has[..., None, None], b * has[..., None], maps)


@checked
def singular_values(n: Many, count: Many, draws: torch.Generator) -> Tensor:
    """(count, n, 2) singular values s_i1 >= s_i2 of the n maps of each code, by the released code's sequential draw."""

    def uniform(low: Tensor, high: Tensor) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=draws, dtype=torch.float64)

    zero = torch.zeros(count, dtype=torch.float64)
    p = uniform(zero + (5 + n) / 2, zero + (6 + n) / 2)  # what is left to give
    q = p - 3 * n + 3  # what is left if all later maps take the most, 3
    pairs = []
    for _ in range(n - 1):
        first = uniform((q / 3).clamp(min=0), p.clamp(max=1))
        q, p = q - first, p - first
        second = uniform((q / 2).clamp(min=0), torch.minimum(first, p / 2))
        q, p = q - 2 * second + 3, p - 2 * second
        pairs.append(torch.stack((first, second), 1))
    second = uniform(((p - 1) / 2).clamp(min=0), p / 3)
    pairs.append(torch.stack((p - 2 * second, second), 1))
    return torch.stack(pairs, 1)


@checked
def jittered(codes: Codes, draws: torch.Generator, tries: Many = 4) -> Codes:
    """Each code with one random map (A and b) times U(0.8, 1.1): the first of some tries that leaves all singular
    values at most 1, the code itself if none does."""
    n = len(codes)
    which = (torch.rand(tries, n, generator=draws) * codes.maps).long()
    factor = 0.8 + 0.3 * torch.rand(tries, n, generator=draws, dtype=torch.float64)
    largest = torch.linalg.matrix_norm(codes.a, 2)  # (codes, maps)
    fits = torch.gather(largest, 1, which.T).T * factor <= 1
    first = fits.to(torch.uint8).argmax(0)
    chosen = torch.arange(n)
    scale = torch.ones(n, MOST_MAPS, dtype=torch.float64)
    scale[chosen, which[first, chosen]] = torch.where(fits.any(0), factor[first, chosen], 1.0)
    return Codes(codes.a * scale[..., None, None], codes.b * scale[..., None], codes.maps)


@checked
def chaos_game(codes: Codes, points: Many, draws: torch.Generator) -> Tensor:
    """(points, codes, 2) float32 orbit: from the fixed point of the first map, at every step a map drawn with
    probability |det A_i| / sum |det A_j| is applied; the fixed point itself is left out."""
    n = len(codes)
    share = torch.linalg.det(codes.a).abs() + 1e-12 * (torch.arange(MOST_MAPS) < codes.maps[:, None])
    # float32 matrices as (codes * maps,) columns: a step is one gather and four products
    flat = torch.cat((codes.a.flatten(2), codes.b), 2).reshape(n * MOST_MAPS, 6).float()
    uniform = torch.rand(points, n, generator=draws)
    edges = (share.cumsum(1) / share.sum(1, keepdim=True)).float()[:, :-1]
    drawn = (uniform[:, :, None] >= edges).sum(2).clamp(max=codes.maps - 1)
    row = drawn + torch.arange(n) * MOST_MAPS
    eye = torch.eye(2, dtype=torch.float64)
    at = torch.linalg.solve(eye - codes.a[:, 0] + 1e-9 * eye, codes.b[:, 0]).float()
    orbit = torch.empty(points, n, 2)
    x, y = at[:, 0], at[:, 1]
    for step in range(points):
        m = flat[row[step]].T
        across = torch.addcmul(torch.addcmul(m[4], m[0], x), m[1], y)
        x, y = across, torch.addcmul(torch.addcmul(m[5], m[2], x), m[3], y)
        orbit[step, :, 0], orbit[step, :, 1] = x, y
    return orbit


@checked
def render(codes: Codes, draws: torch.Generator, *, size: Size = 32, points: Many = 1000) -> Tensor:
    """Grey pictures, uint8 (codes, size, size): 255 * hits / most hits of a pixel.

    The bounding box of all points is stretched to the square, x and y independently. Every point stamps one random
    binary 3 x 3 pattern, drawn once per picture (its middle is set where all nine came out empty: ours).

    Args:
        size: pixels along each side.
        points: of the orbit; the released code takes 1,000 for 32 pixels.

    Raises:
        ValueError: size below 3 or no points.
    """
    if size < 3 or points < 1:
        raise ValueError(f"size={size}, points={points}, accepted: at least 3 pixels and 1 point")
    images = torch.empty(len(codes), size, size, dtype=torch.uint8)
    for part in torch.arange(len(codes)).split(_TOGETHER):
        n = len(part)
        orbit = chaos_game(codes[part], points, draws)
        low, high = orbit.amin(0), orbit.amax(0)
        pixel = ((orbit - low) / (high - low).clamp(min=1e-9) * size).long().clamp_(0, size - 1)
        index = (torch.arange(n) * size + pixel[:, :, 1]) * size + pixel[:, :, 0]
        hits = torch.bincount(index.flatten(), minlength=n * size * size).view(1, n, size, size).float()
        pattern = torch.randint(0, 2, (n, 1, 3, 3), generator=draws).float()
        pattern[:, 0, 1, 1] += pattern.sum((1, 2, 3)) == 0
        stamped = F.conv2d(hits, pattern.flip(2, 3), padding=1, groups=n)[0]
        images[part] = (stamped * (255 / stamped.amax((1, 2), keepdim=True))).round().to(torch.uint8)
    return images


@checked
def coloured(grey: Tensor, draws: torch.Generator) -> Tensor:
    """(n, 3, h, w) float in [0, 1]: hue = grey + shift (of 256), one shift in [0, 255), saturation in [0.3, 1] and
    value in [0.5, 1] per picture, all uniform; empty pixels are black.

    Args:
        grey: uint8 (n, h, w).
    """
    u = torch.rand(3, len(grey), 1, 1, generator=draws)
    hue = (grey.float() + 255 * u[0]).remainder(256) / 256
    saturation, value = 0.3 + 0.7 * u[1], 0.5 + 0.5 * u[2]
    # HSV to RGB: channel k = value - value * saturation * clip(min(h, 4 - h), 0, 1) with h = (k + 6 hue) mod 6
    h = (torch.tensor((5.0, 3.0, 1.0)).view(1, 3, 1, 1) + 6 * hue[:, None]).remainder(6)
    rgb = value[:, None] * (1 - saturation[:, None] * torch.minimum(h, 4 - h).clamp(0, 1))
    return rgb * (grey[:, None] > 0)


def _rotation(angle: Tensor) -> Tensor:
    """(..., 2, 2) rotations by angles (...)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)
