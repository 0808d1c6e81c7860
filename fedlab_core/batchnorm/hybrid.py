"""HBN and FBN: batch normalisation with global statistics that are gathered apart from learning.

HBN (Chen et al., arXiv 2505.21877) normalises with (1 - a) * global + a * batch statistics, a = sigmoid(theta) learnt
per channel; FBN (Guerraoui et al., arXiv 2405.14670, by the reimplementation in HBN's published code) with the global
ones alone, as constants. Two things are corrected here: uploaded statistics are those of the batch, not the mixed
ones, and clients' statistics are merged around their common mean before the server smooths them.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedlab_core.check import Many, checked
from fedlab_core.data import Dataset
from fedlab_core.failures import Failures
from fedlab_core.hints import Within
from fedlab_core.local.training import client_data, forward_draws, worker_copy
from fedlab_core.local.work import Context, Engine, Task, Update, Work
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import State, set_state

Moments = tuple[float, Tensor, Tensor]
"""Weight, means and biased variances by channel of one batch, or of several merged."""


@checked
class GlobalNorm(nn.Module):
    """Normalises with statistics that are given to it, in training perhaps mixed with those of the batch.

    Args:
        like: the batch norm that it replaces; its scale, offset and eps are taken over.
        mixed: learn a share a = sigmoid(theta) of the batch statistics, at first 1/2 (HBN); otherwise none (FBN).

    Attributes:
        mean, variance: the global ones.
        seen: while it is a list, the moments of each training batch are appended.
    """

    def __init__(self, like: _BatchNorm, mixed: bool) -> None:
        super().__init__()
        channels, eps = like.num_features, like.eps
        self.weight = nn.Parameter(torch.ones(channels) if like.weight is None else like.weight.detach().clone())
        self.bias = nn.Parameter(torch.zeros(channels) if like.bias is None else like.bias.detach().clone())
        self.theta = nn.Parameter(torch.zeros(channels)) if mixed else None
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.eps = eps
        self.seen: list[Moments] | None = None

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.mean, self.variance
        if self.training and (self.theta is not None or self.seen is not None):
            dims = [d for d in range(x.ndim) if d != 1]
            own_variance, own_mean = torch.var_mean(x, dims, correction=0)
            if self.seen is not None:
                self.seen.append((float(len(x)), own_mean.detach(), own_variance.detach()))
            if self.theta is not None:
                share = self.theta.sigmoid()
                mean = (1 - share) * mean + share * own_mean
                variance = (1 - share) * variance + share * own_variance
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = self.weight * (variance + self.eps).rsqrt()
        return x * scale.view(shape) + (self.bias - mean * scale).view(shape)


@checked
def with_global_norms(model: nn.Module, mixed: bool) -> nn.Module:
    """A copy of a model with a `GlobalNorm` in place of every batch norm."""
    return replaced(model, lambda layer: GlobalNorm(layer, mixed))


@checked
def replaced(model: nn.Module, make: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    """A copy of a model with something else in place of every batch norm.

    Args:
        make: called with each layer.

    Raises:
        ValueError: the model has no batch normalisation.
    """
    model = copy.deepcopy(model)
    if isinstance(model, _BatchNorm):
        return make(model)
    places = [(parent, n, c) for parent in model.modules() for n, c in parent.named_children()]
    found = [(parent, name, child) for parent, name, child in places if isinstance(child, _BatchNorm)]
    if not found:
        raise ValueError("model: has no batch normalisation, accepted: one that has")
    made = {layer: make(layer) for layer in dict.fromkeys(layer for _, _, layer in found)}
    for parent, name, layer in found:
        setattr(parent, name, made[layer])
    return model


@checked
def merged(moments: Sequence[Moments]) -> Moments:
    """The moments of several batches together, by the law of total variance: exactly those of their union."""
    total = sum(weight for weight, _, _ in moments)
    mean = sum((m * (w / total) for w, m, _ in moments), torch.zeros_like(moments[0][1]))
    spread = (w / total * (v + (m - mean).square()) for w, m, v in moments)
    return total, mean, sum(spread, torch.zeros_like(mean))


@checked
@dataclass(frozen=True)
class FBN(FedAvg):
    """FedAvg for models whose batch norms are `GlobalNorm`s without a share of the batch statistics.

    Clients gather the statistics of the batches that they train on; the server merges them, smooths them and sends
    them with the next model. Within a round they are constants, so that all clients apply one function.

    Args:
        step: of the server's moving average, 1 takes the newest statistics alone.
    """

    step: Annotated[float, Within(0, 1)] = 0.1
    name = "FBN"

    def fitted(self, model: nn.Module) -> nn.Module:
        """The model with a `GlobalNorm` in place of every batch norm."""
        return model if norms(model) else with_global_norms(model, mixed=isinstance(self, HBN))

    def check(self, model: nn.Module, dataset: Dataset, partition: Partition, settings: Settings) -> None:
        if not norms(model):
            raise ValueError("model: has no GlobalNorm, accepted: one from with_global_norms(model, mixed)")

    def broadcast(self, server: State) -> State:
        return server

    def begin(self, context: Context) -> None:
        put(context.model, context.received)
        for layer in norms(context.model).values():
            layer.seen = []

    def finish(self, context: Context, end: State) -> tuple[State, State]:
        return collected(context.model), context.memory

    def upload(self, context: Context, end: State) -> State:
        """The client's model, less the statistics that it received: they are the server's."""
        own = {f"{name}.{kind}" for name in norms(context.model) for kind in ("mean", "variance")}
        return {name: context.start[name] if name in own else tensor for name, tensor in end.items()}

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        state, _ = super().aggregate(start, updates, weights, server, clients)
        fresh = merged_all([update.extra for update in updates])
        rest = {"mean": 0.0, "variance": 1.0}  # what a layer begins with

        def before(name: str) -> Any:
            return server.get(name, rest[name.rpartition(":")[2]])

        return state, {n: (1 - self.step) * before(n) + self.step * t for n, t in fresh.items()}

    def evaluate(self, engine: Engine, work: Work, states: Sequence[State], split: str) -> list[dict[str, float]]:
        return engine.evaluate(work, [with_statistics(state, work.received) for state in states], split)


@checked
@dataclass(frozen=True)
class HBN(FBN):
    """FedAvg for models whose batch norms are `GlobalNorm`s with a learnt share of the batch statistics.

    Each client first looks at some of its images with the model as it arrives, without learning, and sends their
    statistics. Its shares return to it in its next round. Before an evaluation the participants of the last round look
    at their images again, with the model that is evaluated, and their merged statistics are used as they are.

    Args:
        step: of the server's moving average; the published code's.
        examples: images of the look.
    """

    step: Annotated[float, Within(0, 1)] = 0.002
    examples: Many = 64
    name = "HBN"

    def begin(self, context: Context) -> None:
        put(context.model, context.received)
        with torch.no_grad():
            for name, layer in norms(context.model).items():
                if layer.theta is not None and f"{name}.theta" in context.memory:
                    layer.theta.copy_(context.memory[f"{name}.theta"])

    def finish(self, context: Context, end: State) -> tuple[State, State]:
        return {}, {name: tensor for name, tensor in end.items() if name.endswith("theta")}

    def train(self, engine: Engine, work: Work, tasks: Sequence[Task], stop: Callable[[], bool]) -> Iterator[Update]:
        looks = [self.look(work, with_statistics(task.state, work.received), task.client) for task in tasks]
        for look, update in zip(looks, super().train(engine, work, tasks, stop), strict=False):
            yield replace(update, extra=update.extra | look)

    def evaluate(self, engine: Engine, work: Work, states: Sequence[State], split: str) -> list[dict[str, float]]:
        clients, settings, round = len(work.partition), work.settings, max(1, work.round - 1)
        sampled = self.sample(clients, settings.clients_per_round(clients), settings.seed, round)
        failed = (settings.failures or Failures()).draw(sampled, clients, settings.seed, round)
        last = [k for k in sampled if k not in failed["unavailable"] + failed["lost"]] or sampled
        fresh = [merged_all([self.look(work, state, client) for client in last]) for state in states]
        filled = [with_statistics(state, found) for state, found in zip(states, fresh, strict=True)]
        return engine.evaluate(work, filled, split)

    def look(self, work: Work, state: State, client: int) -> State:
        """The statistics of some of a client's images, layer by layer, as the model in training mode sees them."""
        model = worker_copy(work)
        set_state(model, state)
        for layer in norms(model).values():
            layer.seen = []
        x, _ = client_data(work, client)
        draws = generator(work.settings.seed, "statistics", work.round, client)
        with torch.no_grad(), forward_draws(work, client):
            model.train()(x[torch.randperm(len(x), generator=draws)[: self.examples].to(x.device)])
        return collected(model)


@checked
def norms(model: nn.Module) -> dict[str, GlobalNorm]:
    """The `GlobalNorm`s by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, GlobalNorm)}


@checked
def put(model: nn.Module, statistics: State) -> None:
    """Give the layers of a model global statistics, in place; those without any keep theirs."""
    for name, layer in norms(model).items():
        if f"{name}:mean" in statistics:
            layer.mean.copy_(statistics[f"{name}:mean"])
            layer.variance.copy_(statistics[f"{name}:variance"])


@checked
def with_statistics(state: State, statistics: State) -> State:
    """A state with global statistics in it."""
    return state | {name.replace(":", "."): t for name, t in statistics.items() if not name.endswith(":weight")}


@checked
def collected(model: nn.Module) -> State:
    """The merged moments of the batches that each layer has seen, which are forgotten then."""
    found: State = {}
    for name, layer in norms(model).items():
        weight, mean, variance = merged(layer.seen or [])
        found |= {f"{name}:weight": mean.new_tensor(weight), f"{name}:mean": mean, f"{name}:variance": variance}
        layer.seen = None
    return found


@checked
def merged_all(clients: Sequence[State]) -> State:
    """The clients' `collected` moments, merged layer by layer, without the weights."""
    result: State = {}
    for layer in [name.removesuffix(":mean") for name in clients[0] if name.endswith(":mean")]:
        parts = [(c[f"{layer}:weight"].item(), c[f"{layer}:mean"], c[f"{layer}:variance"]) for c in clients]
        _, result[f"{layer}:mean"], result[f"{layer}:variance"] = merged(parts)
    return result
