"""The clients' local steps side by side: one network, K models, and a batch norm that sees all clients' activations."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedlab_core.check import Natural, checked
from fedlab_core.local.work import task_loss

Batches = Sequence[tuple[Tensor, Tensor]]
"""One (inputs, targets) per client."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of a batch, from a model's outputs and the targets."""


@checked
@dataclass(frozen=True)
class Sharing:
    """What clients share at every batch-norm layer of a synchronised step.

    Attributes:
        mean: exchange 1, the clients' means; without it everybody uses its own.
        variance: exchange 2, the variances; without it everybody uses its own.
        gradients: exchange 3, the gradients with respect to mean and variance; without it everybody uses its own.
        around_global_mean: variances are taken around the returned mean; False takes them around each client's own
            mean, so that the spread between the clients is lost.
        differentiate: False treats mean and variance as constants in the backward pass, as if they did not depend on
            the weights; there is no third exchange then.
    """

    mean: bool = True
    variance: bool = True
    gradients: bool = True
    around_global_mean: bool = True
    differentiate: bool = True


EVERYTHING = Sharing()
NOTHING = Sharing(mean=False, variance=False, gradients=False)
"""No exchange at all: every client normalises with its own batch, as in FedAvg."""


@checked
@dataclass
class Ledger:
    """What each client exchanged with the server in one synchronised step; filled in by the layers as they do it.

    Attributes:
        exchanges: times that all clients waited for the server: 3 per batch-norm layer in FedTAN.
        floats_up, floats_down: values sent and received by each client: 4 per channel in FedTAN.
    """

    exchanges: Natural = 0
    floats_up: Natural = 0
    floats_down: Natural = 0

    def mean(self, values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """One exchange: every client sends a tensor of the same shape, the server returns the weighted mean."""
        self.exchanges += 1
        self.floats_up += values[0].numel()
        self.floats_down += values[0].numel()
        return functools.reduce(torch.add, [value * weight for value, weight in zip(values, weights, strict=True)])


@checked
def synchronised_gradients(
    models: Sequence[nn.Module],
    batches: Batches,
    rule: Sharing = EVERYTHING,
    ledger: Ledger | None = None,
    weights: Sequence[float] | None = None,
    draws: Sequence[contextlib.AbstractContextManager[Any]] | None = None,
    loss: Loss = task_loss,
) -> list[Tensor]:
    """One forward and backward pass of all clients, in lock step; leaves the gradients in the models' parameters.

    Args:
        models: one per client, in train mode, of one architecture. Running statistics are updated.
        batches: one per client.
        draws: see `lock_step`.
        rule: which of the exchanges take place.
        ledger: counts them.
        weights: p_k of every exchange, adding up to 1. The p_k-weighted mean of the clients' gradients is then the
            gradient of sum_k p_k L_k. By default n_k / n with the examples of the batches, which makes that the mean
            loss over their union.
        loss: see `Loss`.

    Returns:
        Each client's mean loss.

    Raises:
        ValueError: a channel has a single value, so that it has no variance.
    """
    ledger = ledger or Ledger()
    examples = [len(x) for x, _ in batches]
    weights = weights or [n / sum(examples) for n in examples]

    def normalise(layers: list[_BatchNorm], x: list[Tensor]) -> list[Tensor]:
        return _normalise(layers, x, rule, weights, ledger)

    outputs = lock_step(models, [x for x, _ in batches], normalise, draws)
    losses = [loss(output, y) for output, (_, y) in zip(outputs, batches, strict=True)]
    for model in models:
        model.zero_grad(set_to_none=True)
    functools.reduce(torch.add, losses).backward()
    return [one.detach() for one in losses]


@checked
def lock_step(
    models: Sequence[nn.Module],
    inputs: Sequence[Tensor],
    normalise: Callable[[list[_BatchNorm], list[Tensor]], list[Tensor]],
    draws: Sequence[contextlib.AbstractContextManager[Any]] | None = None,
) -> list[Tensor]:
    """The clients' forward passes side by side: operation by operation, and all clients together at every batch norm.

    Args:
        models: one per client, of one architecture that `torch.fx` can trace (no branch that depends on the data).
        inputs: one batch per client; sizes may differ.
        draws: for each client, the block in which its operations run, see `local.training.forward_draws`.
        normalise: called at each batch-norm layer with the clients' layers and inputs; returns their outputs.
    """
    values: dict[fx.Node, list[Any]] = {}
    clients = range(len(models))
    for node in graph(models[0]).nodes:
        target: Any = node.target
        if node.op == "placeholder":
            values[node] = list(inputs)
        elif node.op == "call_module" and isinstance(models[0].get_submodule(target), _BatchNorm):
            read: Any = node.args[0] if node.args else node.kwargs["input"]
            layers: list[Any] = [model.get_submodule(target) for model in models]
            values[node] = normalise(layers, values[read])
        elif node.op == "output":
            (answer,) = node.args
            return values[cast(fx.Node, answer)]
        else:
            values[node] = []
            for k in clients:
                with draws[k] if draws else contextlib.nullcontext():
                    values[node].append(_run(node, models[k], functools.partial(_value, values, k)))
    raise AssertionError("a traced graph ends with an output")


_GRAPHS: WeakKeyDictionary[nn.Module, fx.Graph] = WeakKeyDictionary()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _BatchNorm) or super().is_leaf_module(module, name)


@checked
def graph(model: nn.Module) -> fx.Graph:
    """The operations of a model, with its batch norms whole; traced once.

    Raises:
        ValueError: it cannot be traced.
    """
    if model not in _GRAPHS:
        try:
            _GRAPHS[model] = _Tracer().trace(model)
        except Exception as error:
            raise ValueError(
                f"model: torch.fx cannot trace {type(model).__name__} ({error}), accepted: a model whose forward pass "
                "takes one tensor and does not branch on its values"
            ) from error
    return _GRAPHS[model]


def _value(values: Mapping[fx.Node, Sequence[Any]], client: int, node: fx.Node) -> Any:
    return values[node][client]


def _run(node: fx.Node, model: nn.Module, value: Callable[[fx.Node], Any]) -> Any:
    args: Any = fx.map_arg(node.args, value)
    kwargs: Any = fx.map_arg(node.kwargs, value)
    target: Any = node.target
    if node.op == "call_module":
        return model.get_submodule(target)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    if node.op == "call_function":
        return target(*args, **kwargs)
    path, _, name = target.rpartition(".")  # get_attr: a parameter used outside a module of torch.nn
    return getattr(model.get_submodule(path), name)


def _normalise(
    layers: list[Any], x: list[Tensor], rule: Sharing, weights: Sequence[float], ledger: Ledger
) -> list[Tensor]:
    values = [t.numel() // t.shape[1] for t in x]  # m_k, per channel
    counts = [sum(values)] * len(x) if rule.mean or rule.variance else values
    if min(counts) < 2:
        raise ValueError(f"batch: {min(counts)} value per channel has no variance, accepted: 2 or more")
    gamma = [t.new_ones(t.shape[1]) if n.weight is None else n.weight for n, t in zip(layers, x, strict=True)]
    beta = [t.new_zeros(t.shape[1]) if n.bias is None else n.bias for n, t in zip(layers, x, strict=True)]
    kept: list[tuple[Tensor, Tensor]] = []
    outputs = _SharedNorm.apply(rule, weights, layers[0].eps, ledger, kept, *x, *gamma, *beta)
    for layer, (mean, variance), own, t in zip(layers, kept, values, x, strict=True):
        if layer.track_running_stats:
            count = sum(values) if rule.variance else own
            layer.num_batches_tracked += 1
            rate = 1 / layer.num_batches_tracked.item() if layer.momentum is None else layer.momentum
            layer.running_mean.lerp_(mean.to(t.dtype), rate)
            layer.running_var.lerp_(variance * (count / max(count - 1, 1)), rate)
    return list(outputs)


class _SharedNorm(torch.autograd.Function):
    """Batch normalisation of K clients' activations at once; inputs and outputs are K tensors (B_k, C, ...)."""

    @staticmethod
    def forward(ctx: Any, rule: Sharing, weights: Any, eps: float, ledger: Ledger, kept: list, *tensors: Tensor) -> Any:
        clients = len(tensors) // 3
        x, gamma, beta = tensors[:clients], tensors[clients : 2 * clients], tensors[2 * clients :]
        dims = [d for d in range(x[0].ndim) if d != 1]
        own = [t.mean(dims) for t in x]
        mean = [ledger.mean(own, weights)] * clients if rule.mean else own
        centre = mean if rule.around_global_mean else own
        variance = [(t - _wide(c, t)).square().mean(dims) for t, c in zip(x, centre, strict=True)]
        if rule.variance:
            variance = [ledger.mean(variance, weights)] * clients
        kept.extend(zip(mean, variance, strict=True))
        scale = [(v + eps).rsqrt() for v in variance]
        ctx.rule, ctx.weights, ctx.ledger, ctx.dims = rule, weights, ledger, dims
        ctx.save_for_backward(*x, *gamma, *mean, *centre, *scale)
        return tuple(
            _wide(g * s, t) * (t - _wide(m, t)) + _wide(b, t)
            for t, g, b, m, s in zip(x, gamma, beta, mean, scale, strict=True)
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        saved, rule, dims = ctx.saved_tensors, ctx.rule, ctx.dims
        x, gamma, mean, centre, scale = (saved[i * len(grads) : (i + 1) * len(grads)] for i in range(5))
        normed = [(t - _wide(m, t)) * _wide(s, t) for t, m, s in zip(x, mean, scale, strict=True)]
        dbeta = [g.sum(dims) for g in grads]
        dgamma = [(g * n).sum(dims) for g, n in zip(grads, normed, strict=True)]
        dmean = [-s * w * d for s, w, d in zip(scale, gamma, dbeta, strict=True)]  # dL_k/dmu, through x - mu only
        dvariance = [-0.5 * s**2 * w * d for s, w, d in zip(scale, gamma, dgamma, strict=True)]  # dL_k/dv
        if not rule.differentiate:
            dmean = dvariance = [torch.zeros_like(d) for d in dmean]
        elif rule.gradients:
            both = [torch.cat([a, b]) for a, b in zip(dmean, dvariance, strict=True)]
            for_mean, for_variance = ctx.ledger.mean(both, ctx.weights).chunk(2)
            dmean, dvariance = [for_mean] * len(x), [for_variance] * len(x)
        dx = []
        for g, t, w, s, c, a, b in zip(grads, x, gamma, scale, centre, dmean, dvariance, strict=True):
            values = t.numel() // t.shape[1]
            dx.append(g * _wide(w * s, t) + _wide(a / values, t) + _wide(2 * b / values, t) * (t - _wide(c, t)))
        return None, None, None, None, None, *dx, *dgamma, *dbeta


def _wide(channels: Tensor, like: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...), to go with activations (B, C, ...)."""
    return channels.view(1, -1, *[1] * (like.ndim - 2))
