"""Which clients take part in a round, and how much each counts in the average."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlab_core.check import Many, Natural, checked
from fedlab_core.randomness import generator


@checked
def sample_clients(clients: Many, count: int, seed: int, round: Natural) -> list[int]:
    """A uniform random subset of `count` of the clients 0 .. clients - 1, ascending.

    Its cost grows with the clients sampled, not with those that exist.
    """
    if not 1 <= count <= clients:
        raise ValueError(f"count={count}, accepted: 1 to {clients}")
    draws = generator(seed, "sampling", round)
    if 10 * count > clients:
        return sorted(torch.randperm(clients, generator=draws)[:count].tolist())
    chosen: set[int] = set()
    for last in range(clients - count, clients):  # Floyd's algorithm: a uniform subset from `count` draws
        pick = int(torch.randint(last + 1, (), generator=draws))
        chosen.add(last if pick in chosen else pick)
    return sorted(chosen)


@checked
def aggregation_weights(sizes: Tensor, sampled: Sequence[int], weighting: str) -> list[float]:
    """Weight of each sampled client in the average, see `settings.WEIGHTINGS`.

    Args:
        sizes: (clients,) examples of every client that exists.
        sampled: the clients of the round.
    """
    if weighting == "uniform":
        return [1 / len(sampled)] * len(sampled)
    own = sizes[list(sampled)].tolist()
    total = sum(own) if weighting == "examples" else int(sizes.sum())
    return [size / total for size in own]


@checked
def objective_shares(sizes: Tensor, sampled: Sequence[int], weighting: str) -> list[float]:
    """Part p_k of each sampled client in the global objective sum_k p_k F_k over all clients that exist."""
    if weighting == "uniform":
        return [1 / len(sizes)] * len(sampled)
    total = int(sizes.sum())
    return [size / total for size in sizes[list(sampled)].tolist()]
