"""Layers with one set of weights per client. A network of them trains many clients at once.

Activations keep their usual shape with the clients folded into the batch, (clients * B, ...), client after client, so
that a model's own `forward` runs as it is; parameters and buffers have a leading client dimension, (clients, ...).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.engines.stacked.functions import Descent, affine, recurrent
from fedlab_core.models.layers import WSConv2d, WSLinear, standardise
from fedlab_core.models.vit import ViT


@dataclass
class Fold:
    """What the layers of one stacked network need to know about the batch at hand.

    Attributes:
        examples: rows of a batch that every client sees alike; 0 where each client has rows of its own.
        real: (clients, B) which rows are examples, None if all are; the others fill up batches of unequal size.
        least: the smallest number of such rows of a client.
        descent: how weights descend during the backward pass, see `functions.Descent`.
    """

    examples: int = 0
    real: Tensor | None = None
    least: int = 0
    descent: Descent | None = None


class _Stacked:
    """What the layers below share."""

    fold: Fold
    _parameters: dict[str, Any]

    @property
    def clients(self) -> int:
        return len(next(iter(self._parameters.values())))

    def folded(self, x: Tensor) -> Tensor:
        """The input (clients * B, ...); one that all clients share is repeated for each."""
        if len(x) != self.fold.examples or self.clients == 1:
            return x
        return x.expand(self.clients, *x.shape).flatten(0, 1)

    def per_client(self, parameter: Tensor, x: Tensor, dim: int) -> Tensor:
        """A parameter (clients, ...) laid along the dimensions of x from `dim` on, repeated over each client's rows."""
        rows = parameter[:, None].expand(-1, len(x) // len(parameter), *parameter.shape[1:]).flatten(0, 1)
        return rows.view(len(x), *[1] * (dim - 1), *parameter.shape[1:], *[1] * (x.ndim - dim - parameter.ndim + 1))


class StackedLinear(_Stacked, nn.Linear):
    """`nn.Linear`: one batched matrix product for all clients."""

    def forward(self, x: Tensor) -> Tensor:
        clients, out, width = self.weight.shape
        if len(x) == self.fold.examples and clients > 1 and not torch.is_grad_enabled():  # one product with all weights
            y = F.linear(x, self.weight.flatten(0, 1), None if self.bias is None else self.bias.flatten())
            return y.unflatten(-1, (clients, out)).movedim(-2, 0).flatten(0, 1)
        x = self.folded(x)
        y = affine(x.reshape(clients, -1, width), self.weight, self.bias, self.fold.descent)
        return y.view(*x.shape[:-1], out)


class StackedWSLinear(_Stacked, WSLinear):
    """`WSLinear`, each client's weights standardised on their own."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.folded(x)
        weight = standardise(self.weight.flatten(0, 1), self.gain.flatten()).view_as(self.weight)
        y = torch.baddbmm(self.bias[:, None], x.reshape(len(weight), -1, x.shape[-1]), weight.transpose(1, 2))
        return y.view(*x.shape[:-1], -1)


class StackedConv2d(_Stacked, nn.Conv2d):
    """`nn.Conv2d`: one convolution with the clients as groups."""

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight.flatten(0, 1))

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.flatten()
        if len(x) == self.fold.examples:  # shared by all clients: no groups, one convolution with all their filters
            if self.groups == 1:
                return _unfold(F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation), self.clients)
            x = self.folded(x)
        groups = self.clients * self.groups
        y = F.conv2d(_channels(x, self.clients), weight, bias, self.stride, self.padding, self.dilation, groups)
        return _unfold(y, self.clients)


class StackedWSConv2d(StackedConv2d, WSConv2d):
    """`WSConv2d`, each client's filters standardised on their own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, standardise(self.weight.flatten(0, 1), self.gain.flatten()))


class StackedBatchNorm(_Stacked, nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with each client's own statistics: the clients' channels side by side."""

    momentum: float
    num_batches_tracked: Any
    running_mean: Any
    running_var: Any

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        x = self.folded(x)
        clients, own = self.clients, self.training or not self.track_running_stats
        if own and self.fold.real is not None:
            return self._filled_up(x, self.fold.real)
        if self.training and self.track_running_stats:
            self.num_batches_tracked += 1
        mean, variance = (None, None) if self.running_mean is None else (self.running_mean, self.running_var)
        mean, variance, weight, bias = (
            None if t is None else t.flatten() for t in (mean, variance, self.weight, self.bias)
        )
        y = F.batch_norm(_channels(x, clients), mean, variance, weight, bias, own, self.momentum, self.eps)
        return _unfold(y, clients)

    def _filled_up(self, x: Tensor, real: Tensor) -> Tensor:
        """Normalise over the real rows of each client only."""
        clients, size = real.shape
        y = x.view(clients, size, x.shape[1], -1)
        weight = real[:, :, None, None].to(x.dtype)
        count = weight.sum((1, 3), keepdim=True) * y.shape[3]
        if self.fold.least * y.shape[3] < 2:
            raise ValueError(f"batch: 1 value per channel has no variance, accepted: 2 or more ({type(self).__name__})")
        mean = (y * weight).sum((1, 3), keepdim=True) / count
        variance = ((y - mean).square() * weight).sum((1, 3), keepdim=True) / count
        if self.training and self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                unbiased = variance * count / (count - 1)
                self.running_mean.lerp_(mean.view_as(self.running_mean), self.momentum)
                self.running_var.lerp_(unbiased.view_as(self.running_var), self.momentum)
        y = (y - mean) * (variance + self.eps).rsqrt()
        if self.weight is not None:
            y = y * self.weight[:, None, :, None] + self.bias[:, None, :, None]
        return y.view_as(x)


class StackedGroupNorm(_Stacked, nn.GroupNorm):
    """`nn.GroupNorm` with each client's gains and biases."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.folded(x)
        y = F.group_norm(x, self.num_groups, None, None, self.eps)
        return torch.addcmul(self.per_client(self.bias, x, 1), y, self.per_client(self.weight, x, 1))


class StackedLayerNorm(_Stacked, nn.LayerNorm):
    """`nn.LayerNorm` with each client's gains and biases."""

    def forward(self, x: Tensor) -> Tensor:
        x, dim = self.folded(x), x.ndim - len(self.normalized_shape)
        y = F.layer_norm(x, self.normalized_shape, None, None, self.eps) * self.per_client(self.weight, x, dim)
        return y if self.bias is None else y + self.per_client(self.bias, x, dim)


class StackedEmbedding(_Stacked, nn.Embedding):
    """`nn.Embedding`: the clients' tables one below the other."""

    def forward(self, x: Tensor) -> Tensor:
        x, (clients, symbols, _) = self.folded(x), self.weight.shape
        first = torch.arange(0, clients * symbols, symbols, device=x.device)
        return F.embedding(x + self.per_client(first, x, 1), self.weight.flatten(0, 1))


class StackedLSTM(_Stacked, nn.LSTM):
    """`nn.LSTM`, batch first, from a zero state; answers (outputs, None)."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        x, clients = self.folded(x), self.clients
        x = x.unflatten(0, (clients, -1)).transpose(1, 2)  # (clients, T, B, width): the rows of a position together
        for layer in range(self.num_layers):
            w, u = getattr(self, f"weight_ih_l{layer}"), getattr(self, f"weight_hh_l{layer}")
            bias = getattr(self, f"bias_ih_l{layer}") + getattr(self, f"bias_hh_l{layer}") if self.bias else None
            gates = affine(x.reshape(clients, -1, x.shape[-1]), w, bias, self.fold.descent)
            x = recurrent(gates.view(*x.shape[:-1], -1), u, self.fold.descent)
        return x.transpose(1, 2).flatten(0, 1), None


class StackedViT(_Stacked, ViT):
    """`ViT` with each client's class token and positions."""

    def with_class_token(self, patches: Tensor) -> Tensor:
        token = self.per_client(self.class_token.flatten(1, 2), patches, 1)
        return torch.cat([token, patches], 1) + self.per_client(self.position.squeeze(1), patches, 1)


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: StackedLinear,
    WSLinear: StackedWSLinear,
    nn.Conv2d: StackedConv2d,
    WSConv2d: StackedWSConv2d,
    nn.BatchNorm1d: StackedBatchNorm,
    nn.BatchNorm2d: StackedBatchNorm,
    nn.GroupNorm: StackedGroupNorm,
    nn.LayerNorm: StackedLayerNorm,
    nn.Embedding: StackedEmbedding,
    nn.LSTM: StackedLSTM,
    ViT: StackedViT,
}
"""The stacked form of every kind of module that holds weights."""


def _channels(x: Tensor, clients: int) -> Tensor:
    """(clients * B, C, ...) -> (B, clients * C, ...)."""
    return x.unflatten(0, (clients, -1)).transpose(0, 1).flatten(1, 2)


def _unfold(y: Tensor, clients: int) -> Tensor:
    """The inverse of `_channels`."""
    return y.unflatten(1, (clients, -1)).transpose(0, 1).flatten(0, 1)
