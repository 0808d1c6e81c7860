"""The stack of a model, and in words what keeps a model or a method from being stacked."""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from fedlab_core.engines.stacked.modules import LAYERS, Fold
from fedlab_core.local.work import LocalMethod, Work
from fedlab_core.models.lstm import CharLSTM
from fedlab_core.models.vit import ViT

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
        if any(isinstance(module, layer) and batch(module) for layer, batch in _BATCH.items()):
            return f"{kind} may work along the batch"
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


def _maybe_batch(dim: Any) -> bool:
    """Whether a dimension may be the batch: not if it is counted from the front and later, nor if it is the last."""
    return not isinstance(dim, int) or (dim < 1 and dim != -1)


_BATCH: dict[type[nn.Module], Callable[[Any], bool]] = {
    nn.Softmax: lambda m: _maybe_batch(m.dim),
    nn.LogSoftmax: lambda m: _maybe_batch(m.dim),
    nn.Unflatten: lambda m: _maybe_batch(m.dim),
    nn.Flatten: lambda m: m.start_dim < 1,
}
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


def work_obstacle(work: Work, method: LocalMethod) -> str | None:
    """What keeps clients from being stacked, whatever their model is, in words; None if nothing does."""
    settings = work.settings
    if settings.mixed_precision:
        return "mixed precision"
    if work.dataset.loss is not None:
        return "a loss of the data set's own"
    if settings.optimiser != "sgd":
        return f"the optimiser {settings.optimiser}"
    if settings.clip_norm is not None:
        return "clipped gradients"
    if settings.keep_optimiser:
        return "an optimiser that is kept"
    if work.traits.random:
        return "a forward pass that draws random numbers"
    return method.stack_obstacle


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
