"""Methods that differ at the clients: a corrected gradient or an objective of their own."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedlab_core.check import checked
from fedlab_core.local.work import Context, Update, batch_loss
from fedlab_core.methods.fedavg import FedAvg, stackable
from fedlab_core.methods.server import uniform_mean
from fedlab_core.settings import Settings
from fedlab_core.state import State, mean_state, set_state


@checked
@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with a proximal term mu/2 ||w - w_t||^2 in the local objective (Li et al. 2020, MLSys, equation 2).

    Args:
        mu: strength of the pull towards the received model; 0 is FedAvg.
    """

    mu: float = 0.01
    name = "FedProx"

    def __post_init__(self) -> None:
        if not self.mu >= 0:
            raise ValueError(f"mu={self.mu!r}, accepted: a number >= 0")

    @stackable
    def correct(self, context: Context, grads: State, weights: State) -> None:
        start = context.start
        if self.mu:
            for name, grad in grads.items():
                grad.add_(weights[name].detach() - start[name], alpha=self.mu)


@checked
@dataclass(frozen=True)
class Scaffold(FedAvg):
    """SCAFFOLD: control variates take the expected drift out of every local step (Karimireddy et al. 2020, option II).

    Each step follows g - c_k + c. Afterwards c_k+ = c_k - c + (w_t - w_k) / (steps * lr), and the server's c moves by
    the sum of the sampled clients' changes, each times its part p_k of the objective sum_k p_k F_k that is minimised:
    n_k / n, or 1 / K under uniform weighting, the only case that the paper treats. The formula presumes plain SGD: no
    momentum, no weight decay, no clipping.
    """

    name = "SCAFFOLD"

    def local_settings(self, settings: Settings) -> Settings:
        if settings.momentum or settings.weight_decay:
            raise ValueError(
                f"momentum={settings.momentum}, weight_decay={settings.weight_decay}: SCAFFOLD's controls presume "
                "plain SGD, accepted: 0 for both"
            )
        if settings.optimiser != "sgd" or settings.clip_norm is not None:
            raise ValueError(
                f"optimiser={settings.optimiser!r}, clip_norm={settings.clip_norm}: SCAFFOLD's controls presume plain "
                "SGD, accepted: 'sgd' and None"
            )
        return settings

    def server_memory(self, state: State) -> State:
        return {f"control.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}

    def broadcast(self, server: State) -> State:
        return server

    @stackable
    def correct(self, context: Context, grads: State, weights: State) -> None:
        received, memory = context.received, context.memory
        for key, control in received.items():
            grad = grads.get(key.removeprefix("control."))
            if grad is not None:
                grad.add_(control)
                if key in memory:
                    grad.sub_(memory[key])

    def finish(self, context: Context, end: State) -> tuple[State, State]:
        sent, kept, memory = {}, dict(context.memory), context.memory
        for key, control in context.received.items():
            name = key.removeprefix("control.")
            old: Tensor | float = memory.get(key, 0.0)
            kept[key] = old - control + (context.start[name] - end[name]) / (context.step * context.lr)
            sent[key] = kept[key] - old
        return sent, kept

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        state, _ = super().aggregate(start, updates, weights, server, clients)
        change = mean_state([update.extra for update in updates], [update.share for update in updates])
        return state, {key: server[key] + change[key] for key in server}


@checked
@dataclass(frozen=True)
class FedDyn(FedAvg):
    """Dynamic regularisation: the clients' objectives are bent until they share the global minimiser (Acar et al. 2021,
    algorithm 1).

    Client k minimises f_k(w) - <h_k, w> + alpha/2 ||w - w_t||^2 and moves h_k by -alpha (w_k - w_t), so that h_k tends
    to its own gradient at the common optimum. The server keeps h, the mean of the h_k, and takes mean(w_k) - h/alpha.
    As in the paper, clients count equally, whatever `weighting` says. There is no limit alpha -> 0 that is FedAvg: the
    local models become FedAvg's, but -h / alpha stays the sum of all past updates.

    Args:
        alpha: strength; the paper tries 0.001 to 0.1.
    """

    alpha: float = 0.1
    name = "FedDyn"

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha!r}, accepted: a number > 0")

    def server_memory(self, state: State) -> State:
        return {f"h.{name}": torch.zeros_like(state[name]) for name in state}

    @stackable
    def correct(self, context: Context, grads: State, weights: State) -> None:
        start, memory = context.start, context.memory
        for name, grad in grads.items():
            grad.add_(weights[name].detach() - start[name], alpha=self.alpha)
            if f"h.{name}" in memory:
                grad.sub_(memory[f"h.{name}"])

    def finish(self, context: Context, end: State) -> tuple[State, State]:
        start, memory = context.start, context.memory
        moved = {f"h.{name}": self.alpha * (end[name] - start[name]) for name in context.travelling}
        return {}, {key: memory[key] - change if key in memory else -change for key, change in moved.items()}

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        state, share = uniform_mean(updates), len(updates) / clients
        memory = {}
        for name in start:
            key = f"h.{name}"
            memory[key] = server[key] - self.alpha * share * (state[name] - start[name])
            state[name] = state[name] - memory[key] / self.alpha
        return state, memory


@checked
@dataclass(frozen=True)
class Moon(FedAvg):
    """MOON: features are pulled to the received model's and pushed from the client's own last ones (Li, He and Song
    2021).

    Adds mu * -log[e^(cos(z, z_global) / tau) / (e^(cos(z, z_global) / tau) + e^(cos(z, z_previous) / tau))] to the
    task's loss, with z the features below the classifier (the paper puts a projection head in between). The two
    compared models are frozen, in evaluation mode. In a client's first round both are the received one, and the term
    is constant. The client keeps a whole model.

    Args:
        mu: weight of the term; 0 is FedAvg.
        tau: temperature.
    """

    mu: float = 1.0
    tau: float = 0.5
    name = "MOON"

    def __post_init__(self) -> None:
        if not self.mu >= 0:
            raise ValueError(f"mu={self.mu!r}, accepted: a number >= 0")
        if not self.tau > 0:
            raise ValueError(f"tau={self.tau!r}, accepted: a number > 0")

    def begin(self, context: Context) -> None:
        model, start, memory = context.model, context.start, context.memory
        if not (hasattr(model, "features") and hasattr(model, "head")):
            raise ValueError(f"model {type(model).__name__}: MOON needs one with `features` and `head`")
        previous = {name: memory.get(f"previous.{name}", tensor) for name, tensor in start.items()}
        frozen = []
        for state in (start, previous):
            frozen.append(copy.deepcopy(model).eval().requires_grad_(False))
            set_state(frozen[-1], state)
        context.scratch = frozen

    def loss(self, context: Context, x: Tensor, y: Tensor) -> Tensor:
        model: Any = context.model
        if not self.mu:
            return batch_loss(context.dataset, model(x), y)
        features = model.features(x)
        with torch.no_grad():
            others = [frozen.features(x) for frozen in context.scratch]
        cosines = torch.stack([F.cosine_similarity(features, other, dim=-1) for other in others], -1)
        contrast = -F.log_softmax(cosines / self.tau, -1)[..., 0].mean()
        return batch_loss(context.dataset, model.head(features), y) + self.mu * contrast

    def finish(self, context: Context, end: State) -> tuple[State, State]:
        return {}, {f"previous.{name}": tensor for name, tensor in end.items()}
