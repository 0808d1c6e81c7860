"""Methods that differ at the server: normalised averaging, and optimisers that take the mean update for a gradient."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab_core.check import checked
from fedlab_core.local.work import Update
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.settings import Settings
from fedlab_core.state import State, mean_state


@checked
@dataclass(frozen=True)
class FedNova(FedAvg):
    """FedAvg with each update divided by its number of local steps, so that clients with more steps do not count more
    (Wang et al. 2020, NeurIPS, for plain SGD).

    w+ = w + tau sum_k p_k (w_k - w) / tau_k with tau = sum_k p_k tau_k. Equal numbers of steps give FedAvg.
    """

    name = "FedNova"

    def local_settings(self, settings: Settings) -> Settings:
        if settings.momentum:
            raise ValueError(f"momentum={settings.momentum}: FedNova divides by steps of plain SGD, accepted: 0")
        if settings.optimiser != "sgd":
            raise ValueError(
                f"optimiser={settings.optimiser!r}: FedNova divides by steps of plain SGD, accepted: 'sgd'"
            )
        return settings

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        state: State = {}
        tau = sum(p * update.steps for p, update in zip(weights, updates, strict=True)) / sum(weights)
        for name in start:
            total = torch.zeros_like(start[name])
            for p, update in zip(weights, updates, strict=True):
                total.add_(update.state[name] - start[name], alpha=p * tau / update.steps)
            state[name] = start[name] + total
        return state, server


@checked
@dataclass(frozen=True)
class FedAvgM(FedAvg):
    """FedAvg with momentum at the server (Hsu et al. 2019, arXiv 1909.06335): m+ = beta m + D, w+ = w + server_lr m+,
    where D is the clients' mean update.

    Args:
        beta: momentum; 0 with server_lr 1 is FedAvg.
        server_lr: step size of the server.
    """

    beta: float = 0.9
    server_lr: float = 1.0
    name = "FedAvgM"

    def __post_init__(self) -> None:
        _check(self, beta=(0, 1), server_lr=(0, None))

    def server_memory(self, state: State) -> State:
        return {f"momentum.{name}": torch.zeros_like(state[name]) for name in state}

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        state, _ = super().aggregate(start, updates, weights, server, clients)
        memory = {}
        for name in start:
            key = f"momentum.{name}"
            memory[key] = self.beta * server[key] + (state[name] - start[name])
            state[name] = start[name] + self.server_lr * memory[key]
        return state, memory


@checked
@dataclass(frozen=True)
class FedAdam(FedAvg):
    """Adam at the server (Reddi et al. 2021, algorithm 2), without bias correction, as there.

    m+ = beta1 m + (1 - beta1) D;  v+ = beta2 v + (1 - beta2) D^2, from v = tau^2;  w+ = w + server_lr m+ / (sqrt(v+) +
    tau), where D is the clients' mean update. Its step per weight is bounded by about server_lr whatever the clients'
    learning rate.

    Args:
        server_lr: step size of the server.
        beta1, beta2: decay of the two moments.
        tau: adaptivity; the larger, the more like FedAvgM.
    """

    server_lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    name = "FedAdam"

    def __post_init__(self) -> None:
        _check(self, server_lr=(0, None), beta1=(0, 1), beta2=(0, 1), tau=(0, None))

    def server_memory(self, state: State) -> State:
        first = {f"first.{name}": torch.zeros_like(state[name]) for name in state}
        return first | {f"second.{name}": torch.full_like(state[name], self.tau**2) for name in state}

    def second_moment(self, old: Tensor, square: Tensor) -> Tensor:
        """The next estimate of D^2."""
        return self.beta2 * old + (1 - self.beta2) * square

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        state, _ = super().aggregate(start, updates, weights, server, clients)
        memory = {}
        for name in start:
            update = state[name] - start[name]
            first = memory[f"first.{name}"] = self.beta1 * server[f"first.{name}"] + (1 - self.beta1) * update
            second = memory[f"second.{name}"] = self.second_moment(server[f"second.{name}"], update.square())
            state[name] = start[name] + self.server_lr * first / (second.sqrt() + self.tau)
        return state, memory


@checked
@dataclass(frozen=True)
class FedYogi(FedAdam):
    """FedAdam with Yogi's second moment, v+ = v - (1 - beta2) D^2 sign(v - D^2), which changes by no more than D^2
    (Reddi et al. 2021, algorithm 2)."""

    name = "FedYogi"

    def second_moment(self, old: Tensor, square: Tensor) -> Tensor:
        return old - (1 - self.beta2) * square * torch.sign(old - square)


@checked
def uniform_mean(updates: Sequence[Update]) -> State:
    """The plain mean of the clients' models, whatever their numbers of examples."""
    return mean_state([update.state for update in updates], [1 / len(updates)] * len(updates))


def _check(method: FedAvg, **limits: tuple[float, float | None]) -> None:
    """Momenta lie in [low, high); step sizes, without a high end, above low."""
    for name, (low, high) in limits.items():
        value = getattr(method, name)
        fits = value > low if high is None else low <= value < high
        if not fits:
            accepted = f"a number > {low}" if high is None else f"a number in [{low}, {high})"
            raise ValueError(f"{name}={value!r}, accepted: {accepted}")
