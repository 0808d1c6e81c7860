"""What is added to a frozen Transformer: prompts, bottleneck adapters, low-rank updates, a gate on the embedding."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.check import Size, checked


@checked
class Prompted(nn.Module):
    """A block with k learnt tokens after the class token of what it reads (Jia et al. 2022, visual prompt tuning).

    Args:
        block: maps (B, T, dim) to (B, T, dim).
        prompt: (k, dim).
        replace: the input already has k tokens there, left by the block before; they are thrown away.
    """

    def __init__(self, block: nn.Module, prompt: Tensor, replace: bool) -> None:
        super().__init__()
        self.block, self.prompt, self.replace = block, nn.Parameter(prompt), replace

    def forward(self, x: Tensor) -> Tensor:
        rest = x[:, 1 + self.replace * len(self.prompt) :]
        return self.block(torch.cat([x[:, :1], self.prompt.expand(len(x), -1, -1), rest], 1))


@checked
class Bottleneck(nn.Module):
    """up(gelu(down(x))). Down is drawn from N(0, 0.02^2), up is zero: were both zero, neither would ever get a
    gradient."""

    def __init__(self, dim: Size, width: Size, generator: torch.Generator, like: Tensor) -> None:
        super().__init__()
        self.down, self.up = linear_like(dim, width, like), linear_like(width, dim, like)
        nn.init.normal_(self.down.weight, std=0.02, generator=generator)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(x)))


@checked
class Adapted(nn.Module):
    """The last Linear of a block's MLP with a bottleneck behind it, h + up(gelu(down(h))), inside the residual branch
    (Pfeiffer et al. 2021).

    Args:
        linear: maps (..., in) to (..., dim).
        bottleneck: its own, a part of this module.
        borrowed: or another block's, which is in the state there, once.
    """

    def __init__(
        self, linear: nn.Linear, bottleneck: Bottleneck | None = None, borrowed: Bottleneck | None = None
    ) -> None:
        super().__init__()
        self.linear, self.bottleneck = linear, bottleneck
        self.borrowed: tuple[Any] = (borrowed,)  # in a tuple, where `nn.Module` does not take it for a part
        if borrowed is not None:
            self.obstacle = "shares its weights with another block"  # what `engines.stacked` says of it

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return h + (self.bottleneck or self.borrowed[0])(h)


@checked
class LoRA(nn.Module):
    """W x + (alpha / r) (B A + D) x, with B = 0 at first (Hu et al. 2022).

    Args:
        linear: W.
        rank: r.
        alpha: a number; alpha / r is the factor.
        generator: of A ~ U(-1/sqrt(in), 1/sqrt(in)), as peft draws it.
        delta: whether there is a D, of the shape of W and 0 at first, which is not trained: a server adds to it what
            has been learnt (`finetuning.lora`).
    """

    def __init__(
        self, linear: nn.Linear, rank: Size, alpha: float, generator: torch.Generator, delta: bool = False
    ) -> None:
        super().__init__()
        self.linear = linear
        self.a = linear_like(linear.in_features, rank, linear.weight, bias=False)
        self.b = linear_like(rank, linear.out_features, linear.weight, bias=False)
        self.factor = alpha / rank
        uniform(self.a, generator)
        nn.init.zeros_(self.b.weight)
        self.delta = nn.Parameter(torch.zeros_like(linear.weight), requires_grad=False) if delta else None

    def forward(self, x: Tensor) -> Tensor:
        update = self.b(self.a(x))
        if self.delta is not None:
            update = update + F.linear(x, self.delta)
        return self.linear(x) + self.factor * update


@checked
class Gated(nn.Module):
    """f * softmax(W2 tanh(W1 f)) of an embedding f = linear(x): FedCLIP's feature adapter (Lu et al. 2023)."""

    def __init__(self, linear: nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        width = linear.out_features
        self.linear = linear
        self.first, self.second = (linear_like(width, width, linear.weight) for _ in range(2))
        for layer in (self.first, self.second):
            uniform(layer, generator)

    def forward(self, x: Tensor) -> Tensor:
        f = self.linear(x)
        return f * self.second(self.first(f).tanh()).softmax(-1)


@checked
def uniform(layer: nn.Linear, generator: torch.Generator) -> nn.Linear:
    """Draws weight and bias from U(-1/sqrt(in), 1/sqrt(in)), PyTorch's default, in place."""
    bound = 1 / math.sqrt(layer.in_features)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


@checked
def linear_like(inputs: Size, outputs: Size, like: Tensor, bias: bool = True) -> nn.Linear:
    """A Linear on the device and in the precision of a tensor, not yet drawn: no global random state is used."""
    layer = nn.Linear(inputs, outputs, bias, device="meta")
    return layer._apply(lambda t: torch.empty(t.shape, dtype=like.dtype, device=like.device))
