"""Stacks of dense networks: every local step written out, because autograd would take longer than the arithmetic."""

import torch
from torch import Tensor, nn

from fedlab_core.engines.stacked.functions import Descent
from fedlab_core.models.convnets import MLP
from fedlab_core.state import State


def dense_layers(model: nn.Module) -> list[str] | None:
    """Prefixes of the layers of a plain multilayer perceptron, from input to output; None for any other model.

    Such a network is Linears with a ReLU between them, and nothing else.
    """
    if type(model) is not MLP or any(type(m) not in (nn.Linear, nn.ReLU, nn.Identity) for m in _leaves(model)):
        return None
    if not all(parameter.requires_grad for parameter in model.parameters()):
        return None
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return layers if all(model.get_submodule(name).bias is not None for name in layers) else None


def _leaves(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if not list(module.children())]


class DenseStack:
    """The weights of some clients' multilayer perceptrons, and plain SGD on them.

    Args:
        state: stacked tensors, (clients, ...) each; they are changed in place.
        layers: from `dense_layers`.
        descent: the step.
    """

    def __init__(self, state: State, layers: list[str], descent: Descent) -> None:
        self.weights = [state[f"{name}.weight"] for name in layers]
        self.transposed = [weight.transpose(1, 2) for weight in self.weights]
        self.biases = [state[f"{name}.bias"] for name in layers]
        self.rows = [bias[:, None] for bias in self.biases]
        self.descent = descent

    def forward(self, x: Tensor) -> list[Tensor]:
        """The input of every layer and the logits, (clients, B, width) each, from examples (clients * B, ...)."""
        values = [x.view(len(self.weights[0]), -1, self.weights[0].shape[2])]
        for row, transposed in zip(self.rows, self.transposed, strict=True):
            if len(values) > 1:
                values[-1].relu_()
            values.append(torch.baddbmm(row, values[-1], transposed))
        return values

    def backward(self, values: list[Tensor], gradient: Tensor) -> None:
        """Takes the step.

        Args:
            values: from `forward`.
            gradient: of the loss with respect to the logits, (clients * B, classes).
        """
        g = gradient.view(values[-1].shape)
        for layer in reversed(range(len(self.weights))):
            x, weight, bias = values[layer], self.weights[layer], self.biases[layer]
            below = torch.bmm(g, weight) if layer else g
            self.descent.weight(weight, g, x)
            self.descent.bias(bias, g.sum(1))
            g = torch.ops.aten.threshold_backward(below, x, 0) if layer else g
