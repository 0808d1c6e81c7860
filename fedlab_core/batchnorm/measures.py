"""What batch normalisation does to a federation, at one frozen model and fixed batches: mismatch, gradients,
statistics.

Definitions are the project's own; the paper's abstract (arXiv 2301.02982) names the two quantities, "mismatch between
the local and global statistical parameters" and "gradient deviation"; its exact definitions were not at hand.
"""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedlab_core.batchnorm.lockstep import NOTHING, Batches, Loss, Sharing, synchronised_gradients
from fedlab_core.check import Measured, Size, checked
from fedlab_core.federation import Federation
from fedlab_core.local.fitness import in_precision
from fedlab_core.local.training import client_data
from fedlab_core.local.work import task_loss
from fedlab_core.randomness import generator
from fedlab_core.state import State, batch_norms, set_state


@checked
@dataclass(frozen=True)
class Mismatch:
    """How far the clients' batch statistics are from those of the union batch.

    Attributes:
        layers: names of the batch-norm layers, in the order they are passed.
        clients: numbers of the clients.
        weights: (clients,) p_k = n_k / n of the batches.
        mean: (layers, clients) ||mu_k - mu||^2 / sum_c v_c. Its weighted mean over the clients is the share of the
            layer's variance that lies between the clients (0 none, 1 all): what local normalisation takes away.
        variance: (layers, clients) mean over channels of |log((v_k + eps) / (v + eps))|, v_k around the client's own
            mean.
    """

    layers: tuple[str, ...]
    clients: tuple[int, ...]
    weights: Tensor
    mean: Tensor
    variance: Tensor

    @property
    def between(self) -> Tensor:
        """(layers,) share of the variance that lies between the clients."""
        return self.mean @ self.weights

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer and client, plain data."""
        return [
            {"layer": layer, "client": client, "mean": self.mean[i, k].item(), "variance": self.variance[i, k].item()}
            for i, layer in enumerate(self.layers)
            for k, client in enumerate(self.clients)
        ]


@checked
@dataclass(frozen=True)
class Deviation:
    """How far the clients' gradients, averaged, are from the gradient of the union batch: D = sum_k p_k g_k - grad F.

    Attributes:
        names: trainable parameters, first to last.
        size: (names,) ||D|| / ||grad F|| of each tensor.
        cosine: (names,) between sum_k p_k g_k and grad F.
        total_size, total_cosine: the same over all parameters at once.
    """

    names: tuple[str, ...]
    size: Tensor
    cosine: Tensor
    total_size: Measured
    total_cosine: Measured


@checked
def fixed_batches(federation: Federation, size: Size | None = 64, clients: Sequence[int] | None = None) -> Batches:
    """One fixed batch of every client's training data, prepared as for training.

    Args:
        size: examples per client (all it has if it has fewer); None takes all.
        clients: all of them by default.
    """
    work = federation.rules(federation.round + 1).work(0, federation.past.now.server)
    batches = []
    for client in range(len(federation.partition)) if clients is None else clients:
        x, y = client_data(work, client)
        chosen = torch.randperm(len(x), generator=generator(federation.settings.seed, "measures", client))[:size]
        batches.append((x[chosen], y[chosen]))
    return batches


@checked
def in_training(federation: Federation, state: State) -> nn.Module:
    """A new module with that state, in train mode, in the run's precision and on its device."""
    model = in_precision(copy.deepcopy(federation.model), federation.settings).to(federation.settings.device)
    set_state(model, state)
    return model.train()


@checked
def mismatch(model: nn.Module, batches: Batches, clients: Sequence[int] | None = None) -> Mismatch:
    """Compares each client's batch statistics with the union's, layer by layer, in one forward pass of the union.

    Every layer sees what it would see in centralised training, so that a layer's mismatch is its own and not that of
    the layers below. The model is not changed.

    Args:
        batches: one per client.
        clients: their numbers, 0, 1, ... by default.

    Raises:
        ValueError: the model has no batch normalisation.
    """
    model = copy.deepcopy(model).train()
    layers = batch_norms(model)
    if not layers:
        raise ValueError("model: has no batch normalisation, accepted: one that has")
    sizes = [len(x) for x, _ in batches]
    weights = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name: str, eps: float, x: Tensor) -> None:
        x = x.detach().double()
        dims = [d for d in range(x.ndim) if d != 1]
        variance, mean = torch.var_mean(x, dims, correction=0)
        parts = [torch.var_mean(part, dims, correction=0) for part in x.split(sizes)]
        distance = torch.stack([(m - mean).square().sum() for _, m in parts]) / variance.sum().clamp_min(eps)
        ratio = torch.stack([((v + eps) / (variance + eps)).log().abs().mean() for v, _ in parts])
        found[name] = distance.cpu(), ratio.cpu()

    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda module, args, name=name: look(name, module.eps, args[0]))
    with torch.no_grad():
        model(torch.cat([x for x, _ in batches]))
    return Mismatch(
        layers=tuple(found),
        clients=tuple(range(len(sizes)) if clients is None else clients),
        weights=weights,
        mean=torch.stack([m for m, _ in found.values()]),
        variance=torch.stack([v for _, v in found.values()]),
    )


@checked
def union_gradient(model: nn.Module, batches: Batches, loss: Loss = task_loss) -> State:
    """Gradients of the union batch's mean loss by parameter name: plain PyTorch on one big batch. The model is kept."""
    model = copy.deepcopy(model).train()
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss(model(x), y), list(named.values())), strict=True))


@checked
def mean_gradient(
    model: nn.Module,
    batches: Batches,
    rule: Sharing = NOTHING,
    weights: Sequence[float] | None = None,
    loss: Loss = task_loss,
) -> State:
    """sum_k p_k g_k by parameter name: every client's gradient at the same model, under a rule of exchange.

    Args:
        rule: `NOTHING` is FedAvg with batch normalisation, `Sharing()` the full exchange.
        weights: p_k; n_k / n of the batches by default. The model is not changed.
    """
    models = [copy.deepcopy(model).train() for _ in batches]
    synchronised_gradients(models, batches, rule, weights=weights, loss=loss)
    sizes = [len(x) for x, _ in batches]
    shares = weights or [n / sum(sizes) for n in sizes]
    grads = [{n: p.grad for n, p in m.named_parameters() if p.requires_grad and p.grad is not None} for m in models]
    parts = [{n: share * grad for n, grad in own.items()} for share, own in zip(shares, grads, strict=True)]
    return {name: functools.reduce(torch.add, [part[name] for part in parts]) for name in parts[0]}


@checked
def deviation(mean: State, union: State) -> Deviation:
    """Compares `mean_gradient` with `union_gradient`, tensor by tensor and over all."""
    a = [mean[name].double().flatten() for name in union]
    b = [gradient.double().flatten() for gradient in union.values()]
    size, cosine = zip(*[_compare(x, y) for x, y in zip(a, b, strict=True)], strict=True)
    total = _compare(torch.cat(a), torch.cat(b))
    return Deviation(tuple(union), torch.tensor(size), torch.tensor(cosine), *total)


@checked
def deviation_by_source(model: nn.Module, batches: Batches, loss: Loss = task_loss) -> dict[str, Deviation]:
    """The gradient deviation of local batch normalisation, and of its two sources alone.

    "local": nothing is exchanged. "forward": only the gradients of the statistics are exchanged, so what is wrong are
    mean and variance. "backward": mean and variance are exchanged, their gradients are not. "none": everything is; zero
    up to rounding.
    """
    rules = {
        "local": NOTHING,
        "forward": Sharing(mean=False, variance=False),
        "backward": Sharing(gradients=False),
        "none": Sharing(),
    }
    union = union_gradient(model, batches, loss)
    return {source: deviation(mean_gradient(model, batches, rule, loss=loss), union) for source, rule in rules.items()}


@checked
def running_gap(model: nn.Module, state: State, reference: State) -> dict[str, tuple[float, float]]:
    """How far a state's running statistics are from another's: by layer, (mean, variance) measured as in `Mismatch`.

    Args:
        model: says which tensors are running statistics; its own are not looked at.
        state: a client's model, or the global one.
        reference: the global model, or one with `neighbours.reestimate`d statistics.
    """
    gaps = {}
    for name, layer in batch_norms(model).items():
        if layer.running_mean is None:  # it keeps none
            continue
        prefix = f"{name}." if name else ""
        mean, other_mean = (s[f"{prefix}running_mean"].double() for s in (state, reference))
        variance, other = (s[f"{prefix}running_var"].double() for s in (state, reference))
        distance = (mean - other_mean).square().sum() / other.sum().clamp_min(layer.eps)
        gaps[name] = distance.item(), ((variance + layer.eps) / (other + layer.eps)).log().abs().mean().item()
    return gaps


def _compare(a: Tensor, b: Tensor) -> tuple[float, float]:
    tiny = torch.finfo(torch.float64).tiny
    size = (a - b).norm() / b.norm().clamp_min(tiny)
    return size.item(), (a @ b / (a.norm() * b.norm()).clamp_min(tiny)).item()
