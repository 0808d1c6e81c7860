"""An encoder that can run, freeze or leave out single blocks, with the heads of a self-supervised loss on top."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.check import Depth, Size, checked
from fedlab_core.models import build_model, initialise
from fedlab_core.models.resnet import ResNet
from fedlab_core.models.vit import ViT
from fedlab_core.selfsupervised import predictor, projector


@checked
class StagedModel(nn.Module):
    """A ViT, whose units are its blocks, or a ResNet, whose units are its stages, and the heads of a loss.

    Parts: the stem (patch embedding, class token and positions; or the first convolution with its norm), the units, and
    the heads (projector, predictor, a ViT's last norm), which are trained at every stage. A ResNet stage of another
    width than the last one has a temporary Linear between it and the projector (LW-FedSSL, arXiv 2401.11647).

    Args:
        encoder: copied; its classifier is left out.
        projector: maps the encoder's features, (B, width), to what the loss compares.
        predictor: on top of the projector, for losses that have one.
        draws: source of the temporary Linears' weights.

    Raises:
        ValueError: another kind of encoder.
    """

    def __init__(
        self, encoder: nn.Module, projector: nn.Module, predictor: nn.Module | None, draws: torch.Generator
    ) -> None:
        super().__init__()
        if not isinstance(encoder, ViT | ResNet):
            raise ValueError(f"encoder is a {type(encoder).__name__}, accepted: a ViT or a ResNet")
        self.width = encoder.head.in_features
        self.encoder: Any = copy.deepcopy(encoder)
        self.encoder.add_module("head", nn.Identity())
        self.projector, self.predictor = projector, predictor or nn.Identity()
        with torch.device("meta"):
            self.adapters = nn.ModuleList(
                nn.Identity() if width == self.width else nn.Linear(width, self.width) for width in self._widths()
            )
        initialise(self.adapters.to_empty(device="cpu"), draws)

    @property
    def units(self) -> nn.ModuleList:
        """What is frozen, trained or dropped as a whole, from the input up."""
        return self.encoder.blocks if isinstance(self.encoder, ViT) else self.encoder.stages

    @property
    def stem_modules(self) -> list[nn.Module]:
        """Modules of the stem, besides a ViT's class token and positions."""
        return [self.encoder.embed] if isinstance(self.encoder, ViT) else [self.encoder.conv, self.encoder.norm]

    def stem(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to what the first unit reads."""
        if isinstance(self.encoder, ViT):
            return self.encoder.tokens(x)
        return F.relu(self.encoder.norm(self.encoder.conv(x)))

    def run(self, x: Tensor, first: int, last: int, kept: Sequence[bool] | None = None) -> Tensor:
        """Units `first` to `last` - 1; one that is not kept is reduced to its shortcuts (the identity in a ViT)."""
        for number in range(first, last):
            unit: Any = self.units[number]
            if kept is None or kept[number]:
                x = unit(x)
            elif isinstance(self.encoder, ResNet):
                for block in unit:
                    x = block.shortcut(x)
        return x

    def pool(self, x: Tensor) -> Tensor:
        """The last unit's output as one vector per image: the normalised class token, or the mean over pixels."""
        return self.encoder.norm(x)[:, 0] if isinstance(self.encoder, ViT) else x.mean((2, 3))

    def project(self, x: Tensor, depth: int) -> Tensor:
        """The output of unit `depth` - 1 as the loss reads it."""
        return self.projector(self.adapters[depth - 1](self.pool(x)))

    def features(self, x: Tensor, depth: int | None = None) -> Tensor:
        """Images to (B, width): the first `depth` units, all of them by default, and no heads."""
        return self.pool(self.run(self.stem(x), 0, len(self.units) if depth is None else depth))

    def forward(self, x: Tensor) -> Tensor:
        """The features: this model has no logits."""
        return self.features(x)

    def parts(self) -> dict[str, list[frozenset[str]]]:
        """Names of the state by part: "stem" and "heads" with one set, "units" and "adapters" with one set per unit."""
        names = list(self.state_dict())
        vit = isinstance(self.encoder, ViT)
        units = "encoder.blocks" if vit else "encoder.stages"
        top = ("projector.", "predictor.", *(["encoder.norm."] if vit else []))
        heads = frozenset(n for n in names if n.startswith(top))
        rest = frozenset(n for n in names if n.startswith("encoder.") and not n.startswith(f"{units}.")) - heads
        numbers = range(len(self.units))
        return {
            "stem": [rest],
            "units": [frozenset(n for n in names if n.startswith(f"{units}.{i}.")) for i in numbers],
            "adapters": [frozenset(n for n in names if n.startswith(f"adapters.{i}.")) for i in numbers],
            "heads": [heads],
        }

    def _widths(self) -> list[int]:
        if isinstance(self.encoder, ViT):
            return [self.width] * len(self.units)
        stages: Any = self.units
        return [stage[-1].conv2.out_channels for stage in stages]


@checked
def build_staged(
    input_shape: tuple[int, ...],
    draws: torch.Generator,
    *,
    model: str = "vit",
    norm: str = "none",
    hidden: Size = 512,
    out: Size = 256,
    layers: Depth = 3,
    predictor_hidden: Size | None = None,
    **options: Any,
) -> StagedModel:
    """A `StagedModel` with freshly drawn weights; the heads are dense layers with biases and without normalisation.

    Args:
        input_shape: (channels, height, width).
        draws: source of every weight.
        model, norm, options: see `build_model`; "vit", "resnet8" or "resnet20".
        hidden, out, layers: of the projector (LW-FedSSL: 512, 256, 3).
        predictor_hidden: width of the predictor's hidden layer (LW-FedSSL: 512); without it there is no predictor.
    """
    encoder: Any = build_model(model, input_shape, 1, draws, norm=norm, **options)
    head = projector(encoder.head.in_features, draws, hidden=hidden, out=out, layers=layers, norm="none")
    top = None if predictor_hidden is None else predictor(out, draws, hidden=predictor_hidden, norm="none")
    return StagedModel(encoder, head, top, draws)
