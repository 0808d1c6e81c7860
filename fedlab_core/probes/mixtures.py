"""Mixtures of the clients' models: how much does the next global model depend on how exactly they are averaged?"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedlab_core.check import Depth, Many, Measured, Natural, checked
from fedlab_core.data.shares import dirichlet_rows
from fedlab_core.federation import Federation
from fedlab_core.probes.lines import recalibrate
from fedlab_core.randomness import generator
from fedlab_core.state import State, mean_state

_TOGETHER = 64


@checked
@dataclass(frozen=True)
class Mixtures:
    """Loss and accuracy of weighted means of the same models.

    Attributes:
        loss, accuracy: one value per row of weights.
    """

    loss: tuple[float, ...]
    accuracy: tuple[Measured, ...]

    def summary(self) -> dict[str, float]:
        """Mean, standard deviation (n - 1 in the denominator) and worst value of both measures."""
        result: dict[str, float] = {}
        for name, values, worst in (("loss", self.loss, max), ("accuracy", self.accuracy, min)):
            mean = sum(values) / len(values)
            squares = sum((v - mean) ** 2 for v in values)
            sd = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0
            result |= {f"{name}_mean": mean, f"{name}_sd": sd, f"{name}_worst": worst(values)}
        return result


@checked
def dirichlet_weights(clients: Many, count: Many, concentration: float, draws: torch.Generator) -> Tensor:
    """(count, clients) rows from a symmetric Dirichlet distribution: the simplex of all averages, sampled as FedBE
    samples its candidates for the global model (Chen and Chao 2021).

    Args:
        concentration: 1 is uniform over the simplex, larger values stay near the plain average.

    Raises:
        ValueError: a number that is not positive.
    """
    if clients < 1 or count < 1 or not concentration > 0:
        raise ValueError(f"clients={clients}, count={count}, concentration={concentration}, accepted: all positive")
    return dirichlet_rows(concentration, count, clients, draws)


@checked
def leave_one_out(weights: Sequence[float]) -> Tensor:
    """(m, m) rows: the aggregation weights without one client each, scaled to add up to 1. Needs at least two."""
    m = len(weights)
    if m < 2:
        raise ValueError(f"weights of {m} client, accepted: at least 2")
    rows = torch.tensor(weights, dtype=torch.float64).repeat(m, 1)
    rows.fill_diagonal_(0)
    return rows / rows.sum(1, keepdim=True)


@checked
def random_halves(weights: Sequence[float], count: Many, draws: torch.Generator) -> Tensor:
    """(count, m) rows: the aggregation weights of a random half of the clients (rounded down), adding up to 1."""
    m = len(weights)
    if m < 2:
        raise ValueError(f"weights of {m} client, accepted: at least 2")
    kept = torch.rand(count, m, generator=draws).argsort(1) < m // 2
    rows = torch.tensor(weights, dtype=torch.float64) * kept
    return rows / rows.sum(1, keepdim=True)


@checked
def triangle_weights(intervals: Depth) -> Tensor:
    """(points, 3) all weights of three models whose parts are multiples of 1 / intervals; the corners are exact."""
    if intervals < 1:
        raise ValueError(f"intervals={intervals}, accepted: at least 1")
    pairs = itertools.product(range(intervals + 1), repeat=2)
    whole = [(a, b, intervals - a - b) for a, b in pairs if a + b <= intervals]
    return torch.tensor(whole, dtype=torch.float64) / intervals


@checked
def mix(states: Sequence[State], weights: Sequence[float]) -> State:
    """The weighted mean; all weight on one state gives that state itself.

    Raises:
        ValueError: the weights do not add up to 1.
    """
    if abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"weights add up to {sum(weights):g}, accepted: 1")
    chosen = [(state, weight) for state, weight in zip(states, weights, strict=True) if weight]
    return chosen[0][0] if len(chosen) == 1 else mean_state(*map(list, zip(*chosen, strict=True)))


@checked
def mixtures(
    federation: Federation,
    states: Sequence[State],
    weights: Tensor,
    *,
    split: str = "test",
    recalibrate_with: Many | None = None,
) -> Mixtures:
    """Loss and accuracy of a weighted mean of the states for every row of weights (rows, states).

    Args:
        federation: gives data, model and engine; it is not changed.
        split: "test" or "train".
        recalibrate_with: see `lines.line`.
    """
    results: list[dict[str, float]] = []
    for part in weights.split(_TOGETHER):
        points = [recalibrate(federation, mix(states, row), recalibrate_with) for row in part.tolist()]
        results += federation.evaluate_states(points, split)
    return Mixtures(
        tuple(result[f"{split}_loss"] for result in results),
        tuple(result.get(f"{split}_accuracy", math.nan) for result in results),
    )


@checked
def spread(
    federation: Federation,
    round: Natural,
    *,
    count: Many = 20,
    concentration: float = 1.0,
    split: str = "test",
    recalibrate_with: Many | None = None,
) -> dict[str, float]:
    """How much Dirichlet mixtures of a round's client models differ: the part of `stability` to follow over rounds.

    Args:
        round, count, concentration, split: see `stability`, which draws the same mixtures.
        recalibrate_with: see `lines.line`.

    Returns:
        Plain data: "round", the mixtures' `Mixtures.summary`, "average_accuracy" and "average_loss" of the aggregation
        weights' mean, and "size", mean size of the clients' updates.
    """
    inside = federation.inside(round)
    states = [update.state for update in inside.updates]
    drawn = dirichlet_weights(len(states), count, concentration, generator(federation.settings.seed, "mixtures", round))
    rows = torch.cat((drawn, torch.tensor([inside.shares], dtype=torch.float64)))
    found = mixtures(federation, states, rows, split=split, recalibrate_with=recalibrate_with)
    summary = Mixtures(found.loss[:count], found.accuracy[:count]).summary()
    average = {"average_accuracy": found.accuracy[-1], "average_loss": found.loss[-1]}
    return {"round": round, **summary, **average, "size": federation.history[round].metrics["drift"]}


@checked
def stability(
    federation: Federation, round: Natural, *, count: Many = 20, concentration: float = 1.0, split: str = "test"
) -> dict[str, Any]:
    """How stable the aggregation of a round is (our operationalisation; the rule of sampling is FedBE's).

    Args:
        round: from 1; replayed.
        count: Dirichlet mixtures, and random halves.
        concentration: see `dirichlet_weights`.

    Returns:
        Plain data. For each of "dirichlet", "leave_one_out" and "halves" the `Mixtures.summary`; "average": accuracy
        and loss of the aggregation weights' mean; "clients": accuracy of the clients' own models, mean by aggregation
        weight; "gain": average minus clients; "size": mean size of the clients' updates, since the spread shrinks with
        it.
    """
    inside = federation.inside(round)
    states, weights = [update.state for update in inside.updates], inside.shares
    m, seed = len(states), federation.settings.seed
    rows = {
        "dirichlet": dirichlet_weights(m, count, concentration, generator(seed, "mixtures", round)),
        "leave_one_out": leave_one_out(weights),
        "halves": random_halves(weights, count, generator(seed, "halves", round)),
        "average": torch.tensor([weights], dtype=torch.float64),
        "clients": torch.eye(m, dtype=torch.float64),
    }
    found = mixtures(federation, states, torch.cat(list(rows.values())), split=split)
    result: dict[str, Any] = {"round": round}
    first = 0
    for name, part in rows.items():
        last = first + len(part)
        result[name] = Mixtures(found.loss[first:last], found.accuracy[first:last]).summary()
        first = last
    result["average"] = {key: result["average"][f"{key}_mean"] for key in ("loss", "accuracy")}
    own = found.accuracy[len(found.accuracy) - m :]
    result["clients"] = sum(weight * accuracy for weight, accuracy in zip(weights, own, strict=True))
    result["gain"] = result["average"]["accuracy"] - result["clients"]
    result["size"] = federation.history[round].metrics["drift"]
    return result
