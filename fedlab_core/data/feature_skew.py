"""Feature skew: the same digits seen by different cameras. A fixed input transform for each client."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab_core.check import checked, choice, number
from fedlab_core.randomness import generator as addressed

SkewKind = Literal["rotation", "contrast", "noise"]
_STARTS = 65_537  # places where an image's noise may start in its client's sequence


@checked
@dataclass(frozen=True, eq=False)
class FeatureSkew:
    """A fixed input transform per client; build it with `partition.with_feature_skew`.

    Attributes:
        kind: "rotation" (degrees, anticlockwise), "contrast" (factor around each image's mean) or "noise" (standard
            deviation of additive Gaussian noise, 1.0 = the full intensity range).
        parameters: float32 (clients,), one strength per client.
        seed: key of the noise fields, drawn once; unused by the other kinds.
    """

    kind: SkewKind
    parameters: Tensor
    seed: int = 0

    def __post_init__(self) -> None:
        choice("kind", self.kind, get_args(SkewKind))

    @classmethod
    def drawn(cls, kind: SkewKind, strength: float, clients: int, generator: torch.Generator) -> "FeatureSkew":
        """A transform for each of some clients.

        Args:
            strength: "rotation": angle ~ U(-strength, strength) degrees, at most 180; "contrast": factor = exp(u),
                u ~ U(-strength, strength); "noise": standard deviation ~ U(0, strength), 1.0 = full intensity range.
            generator: source of every draw.

        Raises:
            ValueError: unknown kind; strength negative, not finite or above 180 degrees.
        """
        limit = {"rotation": 180.0, "contrast": math.inf, "noise": math.inf}
        choice("kind", kind, limit)
        number("strength", strength, 0, limit[kind])
        u = torch.rand(clients, generator=generator)
        parameters = u * strength if kind == "noise" else (2 * u - 1) * strength
        seed = int(torch.randint(2**62, (1,), generator=generator))
        return cls(kind, parameters.exp() if kind == "contrast" else parameters, seed)

    def apply(self, x: Tensor, client: int, generator: torch.Generator | None = None) -> Tensor:
        """What `client` sees instead of the images x (batch, channels, height, width).

        uint8 images (0..255) come back as uint8, floating ones (0..1, that is x / 255) in their own dtype; both are
        clamped to their range, so the transform comes before normalisation. Rotation is bilinear about the centre, with
        zeros outside.

        Noise belongs to the example, not to the call: each client has one long sequence of white noise, drawn from the
        generator addressed (seed, "feature noise", client), and an image receives the stretch of it that starts at a
        place computed from its own pixels. The same image on the same client therefore always gets the same noise, in
        any batch and any order. Pass a `generator` to draw fresh noise for every pixel of the batch instead.

        Raises:
            ValueError: x is not a batch of images or, if floating, not within 0..1; client is out of range.
        """
        if x.ndim != 4:
            raise ValueError(f"x has shape {tuple(x.shape)}: expected images (batch, channels, height, width)")
        if not 0 <= client < len(self.parameters):
            raise ValueError(f"client={client}: expected 0 to {len(self.parameters) - 1}")
        if not len(x):
            return x
        if x.is_floating_point() and (x.min() < 0 or x.max() > 1):
            raise ValueError(f"x: values {x.min():.3g} to {x.max():.3g}, expected 0 to 1 (not yet normalised) or uint8")
        value = float(self.parameters[client])
        images = x.float() / 255 if x.dtype == torch.uint8 else x
        if self.kind == "rotation":
            images = _rotate(images, value)
        elif self.kind == "contrast":
            mean = images.mean(dim=(1, 2, 3), keepdim=True)
            images = mean + value * (images - mean)
        else:
            images = images + value * self._noise(images, client, generator)
        images = images.clamp(0, 1)
        return (images * 255).round().to(torch.uint8) if x.dtype == torch.uint8 else images

    def _noise(self, images: Tensor, client: int, generator: torch.Generator | None) -> Tensor:
        if generator is not None:
            return torch.randn(images.shape, generator=generator).to(images)
        pixels = (images * 255).round().long().flatten(1)
        position = torch.arange(pixels.shape[1], device=images.device)
        weights = position * 2654435761 % 1048573 + 1  # fixed, scrambled by Knuth's multiplicative hash
        start = (pixels * weights).sum(1, keepdim=True) % _STARTS
        sequence = torch.randn(_STARTS + len(position), generator=addressed(self.seed, "feature noise", client))
        return sequence.to(images)[start + position].view_as(images)


def _rotate(images: Tensor, degrees: float) -> Tensor:
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    theta = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]).to(images)
    grid = F.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
