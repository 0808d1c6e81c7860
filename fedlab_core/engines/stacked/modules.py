"""Layers with one set of weights per client. A network of them trains many clients at once.

Activations keep their usual shape with the clients folded into the batch, (clients * B, ...), client after client, so
that a model's own `forward` runs as it is; parameters and buffers have a leading client dimension, (clients, ...).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.engines.stacked.functions import Descent, affine, recurrent
from fedlab_core.models.layers import WSConv2d, WSLinear, standardise
from fedlab_core.models.lstm import CharLSTM
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
    def forward(self, x: Tensor) -> Tensor:
        x = self.folded(x)
        y = F.group_norm(x, self.num_groups, None, None, self.eps)
        return torch.addcmul(self.per_client(self.bias, x, 1), y, self.per_client(self.weight, x, 1))


class StackedLayerNorm(_Stacked, nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x, dim = self.folded(x), x.ndim - len(self.normalized_shape)
        y = F.layer_norm(x, self.normalized_shape, None, None, self.eps) * self.per_client(self.weight, x, dim)
        return y if self.bias is None else y + self.per_client(self.bias, x, dim)


class StackedEmbedding(_Stacked, nn.Embedding):
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


INDEPENDENT: tuple[type[nn.Module], ...] = (
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
    *(nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Threshold),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.Upsample, nn.PixelShuffle),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Softmax, nn.LogSoftmax),
)
"""Modules of torch without weights that treat the examples of a batch each by itself; a softmax over the batch, and
dropout that drops, are looked for besides."""
OWN = ("fedlab_core.models.", "fedlab_core.finetuning.", "fedlab_core.layerwise.")
_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("parametrizations",),
)


def obstacle(model: nn.Module) -> str | None:
    """What keeps a model from being stacked, in words; None if nothing does.

    Only modules are stacked that are known to treat the examples of a batch, and so the clients, each by itself.
    """
    for name, module in model.named_modules():
        kind = f"{name or 'model'} ({type(module).__name__})"
        if any(getattr(module, hook, None) for hook in _HOOKS):
            return f"{kind} has hooks or parametrisations"
        if isinstance(module, nn.Softmax | nn.LogSoftmax) and module.dim in (None, 0):
            return f"{kind} looks at the whole batch"
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)] and type(module) not in LAYERS:
            return f"{kind} holds weights of an unknown kind"
        if type(module) not in LAYERS and type(module) not in INDEPENDENT and not _own(module):
            return f"{kind} has a forward pass of its own"
        if reason := getattr(module, "obstacle", None):
            return f"{kind} {reason}"
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p:
            return f"{kind} draws random numbers"
        if any(isinstance(module, layer) and unusual(module) for layer, unusual in _UNUSUAL.items()):
            return f"{kind} has options that are not supported"
    if len(list(model.named_parameters())) < len(list(model.named_parameters(remove_duplicate=False))):
        return "some of its weights are shared between layers"
    return None


_UNUSUAL: dict[type[nn.Module], Callable[[Any], bool]] = {
    nn.modules.batchnorm._BatchNorm: lambda m: m.momentum is None or not m.affine,
    nn.GroupNorm: lambda m: not m.affine,
    nn.LayerNorm: lambda m: not m.elementwise_affine,
    nn.Conv2d: lambda m: m.padding_mode != "zeros",
    nn.Embedding: lambda m: m.padding_idx is not None or m.max_norm is not None or m.sparse,
    nn.LSTM: lambda m: m.bidirectional or m.proj_size > 0 or m.dropout > 0 or not m.batch_first,
}


def _own(module: nn.Module) -> bool:
    return type(module).__module__.startswith(OWN)


def is_dense(model: nn.Module) -> bool:
    """Whether the model has dense layers and normalisations only."""
    wide = (nn.modules.conv._ConvNd, nn.RNNBase, nn.Embedding, ViT)
    return not any(isinstance(module, wide) for module in model.modules())


def refuse(reason: str | None) -> None:
    """Raise ValueError where something keeps clients from being stacked."""
    if reason is not None:
        raise ValueError(f"engine='stacked': {reason}, accepted: 'threads', 'loop' or 'auto'")


def stack(model: nn.Module) -> tuple[nn.Module, Fold]:
    """A copy of the model whose layers are stacked; their weights are to be loaded.

    Raises:
        ValueError: the model cannot be stacked, see `obstacle`.
    """
    refuse(obstacle(model))
    network, fold = copy.deepcopy(model), Fold()
    for module in network.modules():
        if type(module) in LAYERS:
            module.__class__ = LAYERS[type(module)]
            module.fold = fold  # type: ignore[assignment]
        elif isinstance(module, CharLSTM):
            module.fused = True  # it computes with the layer, not with the layer's weights
    return network, fold


def _channels(x: Tensor, clients: int) -> Tensor:
    """(clients * B, C, ...) -> (B, clients * C, ...)."""
    return x.unflatten(0, (clients, -1)).transpose(0, 1).flatten(1, 2)


def _unfold(y: Tensor, clients: int) -> Tensor:
    """The inverse of `_channels`."""
    return y.unflatten(1, (clients, -1)).transpose(0, 1).flatten(0, 1)
