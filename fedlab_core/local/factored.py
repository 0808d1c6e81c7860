"""Plain SGD on wide dense layers without storing the weight gradient.

The gradient of a Linear's weight is g^T x: x its input, g the gradient of its output, one row per example. One matrix
product computes it and subtracts it from the weight. Storing it first would write and read it once more; for the first
dense layer of McMahan's CNN that is 6 MiB each at every step.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.check import checked

Factors = list[tuple[Tensor, Tensor]]
WIDE = 2**18  # weights of a layer: in smaller ones an autograd function of our own costs more than it saves


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, factors: Factors) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.factors = factors
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        ctx.factors.append((g, x))
        inputs = g @ weight if ctx.needs_input_grad[0] else None
        return inputs, None, g.sum(0) if ctx.needs_input_grad[2] else None, None


class FactoredLinear(nn.Linear):
    """`nn.Linear` whose weight gets no `grad` from inputs (rows, in); `factors` holds (g, x) of each backward pass."""

    factors: Factors

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or not torch.is_grad_enabled():
            return super().forward(x)
        return _Product.apply(x, self.weight, self.bias, self.factors)

    @torch.no_grad()
    def descend(self, lr: float, decay: float) -> None:
        """The step w <- (1 - lr * decay) w - lr g^T x, to be taken after `torch.optim.SGD`'s of all other weights."""
        for i, (g, x) in enumerate(self.factors):
            decays = not i and self.weight.grad is None
            self.weight.addmm_(g.T, x, beta=1 - lr * decay if decays else 1, alpha=-lr)
        self.factors.clear()


@checked
@contextlib.contextmanager
def factored(model: nn.Module, optimiser: torch.optim.Optimizer, plain: bool) -> Iterator[Sequence[FactoredLinear]]:
    """The trained wide layers of a model; inside the block they keep (g, x), and the optimiser's step takes theirs too.

    Args:
        plain: whether nothing but this optimiser, plain SGD, reads the gradients; otherwise none is factored.
    """
    shared = len(list(model.parameters())) < len(list(model.named_parameters(remove_duplicate=False)))
    trained = [m for m in model.modules() if type(m) is nn.Linear and m.weight.requires_grad]
    layers: list[Any] = [m for m in trained if m.weight.numel() >= WIDE] if plain and not shared else []
    for layer in layers:
        layer.__class__, layer.factors = FactoredLinear, []

    def descend(stepped: torch.optim.Optimizer, *_: Any) -> None:
        rate, decay = (stepped.param_groups[0][name] for name in ("lr", "weight_decay"))
        for layer in layers:
            layer.descend(rate, decay)

    hook = optimiser.register_step_post_hook(descend)
    try:
        yield layers
    finally:
        hook.remove()
        for layer in layers:
            layer.__class__ = nn.Linear
            del layer.factors
