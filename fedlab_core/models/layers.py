"""Building blocks shared by the networks: normalisation by name, weight standardisation, initialisation."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.check import Natural, Size, checked
from fedlab_core.randomness import torch_draws_from

NORMS = ("none", "batch", "group", "layer", "weight")
RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))  # 1.713, of a ReLU of N(0, 1); Brock et al. 2021 use 1.714, measured


@checked
def standardise(weight: Tensor, gain: Tensor) -> Tensor:
    """Standardised weights of one Conv2d or Linear (Brock et al. 2021; used by FedWon, Zhuang and Lyu 2024).

    Every output filter becomes gain * 1.713 * (w - mean(w)) / sqrt(N * var(w)), N = its number of weights (fan-in,
    without the output channels), var the biased variance; 1e-8 under the root keeps a constant filter finite.

    Args:
        weight: (out, ...).
        gain: (out,).
    """
    rows = weight.flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    scale = (rows.square().sum(1) + 1e-8).rsqrt()
    return (rows * (RELU_GAIN * gain * scale)[:, None]).view_as(weight)


@checked
class WSConv2d(nn.Conv2d):
    """Conv2d whose weights are standardised per filter at every use, with a learnt gain per filter."""

    def __init__(self, channels: Size, units: Size, kernel: Size, stride: Size = 1, padding: Natural = 0) -> None:
        super().__init__(channels, units, kernel, stride, padding)
        self.gain = nn.Parameter(torch.ones(units))

    def initialise(self, generator: torch.Generator) -> None:
        _uniform(self, generator)
        nn.init.ones_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, standardise(self.weight, self.gain), self.bias)


@checked
class WSLinear(nn.Linear):
    """Linear whose weights are standardised per unit at every use, with a learnt gain per unit."""

    def __init__(self, width: Size, units: Size) -> None:
        super().__init__(width, units)
        self.gain = nn.Parameter(torch.ones(units))

    def initialise(self, generator: torch.Generator) -> None:
        _uniform(self, generator)
        nn.init.ones_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, standardise(self.weight, self.gain), self.bias)


@checked
def conv(channels: Size, units: Size, norm: str, stride: Size = 1) -> nn.Conv2d:
    """A 3x3 convolution with padding 1; it has a bias unless a normalisation layer with its own bias follows."""
    if norm == "weight":
        return WSConv2d(channels, units, 3, stride, 1)
    return nn.Conv2d(channels, units, 3, stride, 1, bias=norm == "none")


@checked
def linear(width: Size, units: Size, norm: str) -> nn.Linear:
    """A dense layer; it has a bias unless a normalisation layer with its own bias follows."""
    return WSLinear(width, units) if norm == "weight" else nn.Linear(width, units, bias=norm == "none")


@checked
def norm2d(units: Size, norm: str, groups: Size = 2) -> nn.Module:
    """What follows a convolution: BatchNorm2d, GroupNorm(groups), GroupNorm(1) for "layer", else nothing (Identity).

    Raises:
        ValueError: groups do not divide the channels.
    """
    if norm == "group":
        if groups < 1 or units % groups:
            raise ValueError(f"groups={groups}: expected a divisor of every layer's width, here {units}")
        return nn.GroupNorm(groups, units)
    if norm == "layer":
        return nn.GroupNorm(1, units)
    return nn.BatchNorm2d(units) if norm == "batch" else nn.Identity()


@checked
def norm1d(units: Size, norm: str, groups: Size = 2) -> nn.Module:
    """What follows a dense layer: BatchNorm1d, GroupNorm(groups), LayerNorm, else nothing (Identity)."""
    if norm == "layer":
        return nn.LayerNorm(units)
    return nn.BatchNorm1d(units) if norm == "batch" else norm2d(units, norm, groups)


@checked
def check_size(input_shape: tuple[int, ...], least: int, reason: str) -> None:
    """Raise ValueError unless height and width of (channels, height, width) are at least `least`."""
    if min(input_shape[1:]) < least:
        raise ValueError(f"input_shape={input_shape}: expected height and width of at least {least}, {reason}")


@checked
def initialise(
    model: nn.Module,
    generator: torch.Generator,
    weights: Literal["uniform", "kaiming"] = "uniform",
    gamma: Literal["ones", "uniform"] = "ones",
) -> None:
    """Draw every parameter and reset every buffer of `model` in place, module by module in registration order.

    The distributions are PyTorch's defaults: Conv2d and Linear weights and biases U(-1/sqrt(fan_in), 1/sqrt(fan_in)),
    LSTM U(-1/sqrt(hidden), 1/sqrt(hidden)), Embedding N(0, 1), normalisation layers 1 and 0, running statistics 0, 1
    and 0 batches. A module of another type brings a method `initialise(generator)`, or PyTorch's `reset_parameters`,
    which draws from torch's global generator: that is seeded from `generator` for it and put back afterwards.

    Args:
        model: any model made of these; works after `to_empty` as well.
        generator: source of every draw; global random state is left as it was.
        weights: "kaiming" draws Conv2d and Linear weights from N(0, 2 / fan_in) instead (He et al. 2015).
        gamma: "uniform" draws the gains of normalisation layers from U(0, 1) instead of setting them to 1.

    Raises:
        ValueError: a module has parameters or buffers, but no way to draw them.
    """
    for name, module in model.named_modules():
        if not [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            continue
        if hasattr(module, "initialise"):
            module.initialise(generator)
        elif type(module) in (nn.Conv2d, nn.Linear):
            _uniform(module, generator)
            if weights == "kaiming":
                nn.init.kaiming_normal_(module.weight, generator=generator)
        elif type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm):
            module.reset_parameters()  # constants only
            if gamma == "uniform":
                nn.init.uniform_(module.weight, generator=generator)
        elif type(module) is nn.Embedding:
            nn.init.normal_(module.weight, generator=generator)
        elif type(module) is nn.LSTM:
            for parameter in module.parameters():
                bound = 1 / math.sqrt(module.hidden_size)
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif callable(own := getattr(module, "reset_parameters", None)):
            with torch_draws_from(generator):
                own()
        else:
            raise ValueError(
                f"module {name!r} of type {type(module).__name__}: no initialisation known for it, accepted: a method "
                "initialise(generator) or reset_parameters()"
            )


def _uniform(module: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """PyTorch's default for Conv2d and Linear (kaiming_uniform_ with a = sqrt(5) is the same bound)."""
    bound = 1 / math.sqrt(module.weight[0].numel())
    nn.init.uniform_(module.weight, -bound, bound, generator=generator)
    if module.bias is not None:
        nn.init.uniform_(module.bias, -bound, bound, generator=generator)
