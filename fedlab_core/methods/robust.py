"""Aggregation that a few wrong clients cannot decide: medians, trimmed means, Krum, clipped updates.

Updates with a value that is not finite are left out by all of them; that takes `non_finite="keep"` in the settings,
whose default is to stop the run. Only `GeometricMedian` and `NormClipping` use the aggregation weights; the others
count every client alike.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab_core import check
from fedlab_core.local.work import Update
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.state import State, is_finite, mean_state


class Robust(FedAvg):
    """FedAvg that combines the clients' models in another way; nothing changes where none of them is usable."""

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        states, shares = _usable(updates, weights)
        return (self.combine(start, states, shares, len(updates)) if states else start), server

    @abstractmethod
    def combine(self, start: State, states: list[State], weights: list[float], sent: int) -> State:
        """The new global model.

        Args:
            start: the global model that the round began with.
            states: the clients' models, at least one; all their values are finite.
            weights: of these models; they add up to what those of all clients did.
            sent: how many clients sent a model, usable or not.
        """


@dataclass(frozen=True)
class Median(Robust):
    """The median of the clients' models, coordinate by coordinate (Yin et al. 2018, ICML, definition 1).

    Of an even number of clients it is the mean of the middle two. Fewer than half of the clients, whatever they send,
    cannot move a coordinate out of the range of the honest ones.
    """

    name = "median"

    def combine(self, start: State, states: list[State], weights: list[float], sent: int) -> State:
        return _middle(states, (len(states) - 1) // 2)


@dataclass(frozen=True)
class TrimmedMean(Robust):
    """The mean of what is left, coordinate by coordinate, without the largest and the smallest values (Yin et al.
    2018, ICML, definition 2).

    Args:
        trim: share of the clients left out at each end, below 1/2; their number is rounded down. 0 is the plain mean.
    """

    trim: float = 0.2
    name = "trimmed mean"

    def __post_init__(self) -> None:
        check.number("trim", self.trim, 0, below=0.5)

    def combine(self, start: State, states: list[State], weights: list[float], sent: int) -> State:
        return _middle(states, int(self.trim * len(states) + 1e-9))


@dataclass(frozen=True)
class GeometricMedian(Robust):
    """The point with the smallest weighted sum of distances to the clients' models, f(z) = sum_k p_k ||z - w_k||
    (Pillutla et al. 2022, IEEE TSP, definition 2).

    From the mean, or from the client's model with the smallest f where that is below the mean's, Weiszfeld's steps
    z <- sum_k b_k w_k / sum_k b_k with b_k = p_k / ||z - w_k||, as Vardi and Zhang (2000, PNAS) correct them for a z
    that lies on models: these are left out of the sums, and hold z back by their weight.

    Args:
        steps: most steps towards it; they end earlier once f is within 2e-6 of its minimum, relative to f: where the
            subgradient of least norm, divided by the sum of all p_k, is at most 1e-6.
    """

    steps: int = 100
    name = "geometric median"

    def __post_init__(self) -> None:
        check.whole("steps", self.steps, 1)

    def combine(self, start: State, states: list[State], weights: list[float], sent: int) -> State:
        median, whole = mean_state(states, _scaled(weights)), sum(weights)
        sums = _distances([median, *states])[:, 1:] @ torch.tensor(weights, dtype=torch.float64)
        if sums[1:].min() < sums[0] * (1 - 1e-9):
            median = states[int(sums[1:].argmin())]
        for _ in range(self.steps):
            distances = [_distance(median, state) for state in states]
            pulls = [p / d if d else 0.0 for p, d in zip(weights, distances, strict=True)]
            if not any(pulls):
                break
            target = mean_state(states, _scaled(pulls))
            force = sum(pulls) * _distance(target, median)
            hold = sum(p for p, d in zip(weights, distances, strict=True) if not d)
            if force <= hold + 1e-6 * whole:
                break
            median = mean_state([median, target], [hold / force, 1 - hold / force]) if hold else target
        return median


@dataclass(frozen=True)
class Krum(Robust):
    """The client's model that has the closest neighbours, or the mean of several such (Blanchard et al. 2017, NeurIPS,
    section 4).

    A client's score is the sum of the squared distances to its n - f - 2 nearest others, of n clients; the lowest wins.
    The paper's guarantee needs n >= 2 f + 3.

    Args:
        liars: f, how many of the sampled clients may lie.
        chosen: how many models of the lowest scores are averaged: 1 is Krum, more is Multi-Krum.
    """

    liars: int = 1
    chosen: int = 1
    name = "Krum"

    def __post_init__(self) -> None:
        check.whole("liars", self.liars, 0)
        check.whole("chosen", self.chosen, 1)

    def combine(self, start: State, states: list[State], weights: list[float], sent: int) -> State:
        neighbours = max(1, sent - self.liars - 2)
        squares = _distances(states).square()
        scores = squares.sort(1).values[:, 1 : neighbours + 1].sum(1)  # the nearest of all is the client itself
        best = sorted(scores.argsort(stable=True)[: self.chosen].tolist())
        return mean_state([states[k] for k in best], [1 / len(best)] * len(best))


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the models with the closest neighbours, see `Krum`."""

    chosen: int = 5
    name = "Multi-Krum"


@dataclass(frozen=True)
class NormClipping(Robust):
    """FedAvg of updates that are scaled down to a norm (Sun et al. 2019, arXiv 1911.07963, section 4):
    w+ = w + sum_k p_k D_k min(1, bound / ||D_k||) with D_k = w_k - w.

    Args:
        bound: the largest norm of an update that counts in full.
    """

    bound: float = 1.0
    name = "norm clipping"

    def __post_init__(self) -> None:
        check.number("bound", self.bound, above=0)

    def combine(self, start: State, states: list[State], weights: list[float], sent: int) -> State:
        norms = [_distance(state, start) for state in states]
        shares = [p * min(1.0, self.bound / n) if n else p for p, n in zip(weights, norms, strict=True)]
        return mean_state([start, *states], [1 - sum(shares), *shares])


def _usable(updates: Sequence[Update], weights: Sequence[float]) -> tuple[list[State], list[float]]:
    """Models without a value that is not finite, and their weights, which add up to what all together had."""
    kept = [
        (update.state, weight)
        for update, weight in zip(updates, weights, strict=True)
        if is_finite([update.state], update.state)
    ]
    total = sum(weight for _, weight in kept)
    return [state for state, _ in kept], [weight * sum(weights) / total for _, weight in kept]


def _scaled(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def _middle(states: Sequence[State], trimmed: int) -> State:
    """The mean of each coordinate without so many values at each end."""

    def middle(values: list[Tensor]) -> Tensor:
        if values[0].is_complex():  # real and imaginary parts are coordinates
            return torch.view_as_complex(middle([torch.view_as_real(value) for value in values]))
        return torch.stack(values).sort(0).values[trimmed : len(values) - trimmed].mean(0)

    return {name: middle([state[name] for state in states]) for name in states[0]}


def _distance(a: State, b: State) -> float:
    """Euclidean distance over all tensors, added up in float64; at most 1e300, which can still be divided by."""
    return min(float(sum((a[name] - b[name]).abs().double().square().sum() for name in a)) ** 0.5, 1e300)


def _distances(states: Sequence[State]) -> Tensor:
    """Between every two models: (models, models), float64."""
    apart = torch.zeros(len(states), len(states), dtype=torch.float64)
    for j, one in enumerate(states):
        for k in range(j):
            apart[j, k] = apart[k, j] = _distance(one, states[k])
    return apart
