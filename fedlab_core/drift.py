"""Drift: how the clients' updates of one round differ in size and direction."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab_core.check import Measured, checked
from fedlab_core.state import State, flatten

PAIRS = 64  # clients up to which the products of all pairs take less time than another pass over the updates
_TOGETHER = 2**20  # parameters of all clients that are looked at together: they stay in the processor's cache


@checked
@dataclass(frozen=True)
class Drift:
    """Geometry of the updates D_k = w_k - w_t of m clients with aggregation weights p_k.

    Attributes:
        sizes: (m,) Euclidean norms ||D_k||.
        cosine_to_mean: (m,) cosine between D_k and the weighted mean update.
        size: weighted mean of the sizes.
        relative_size: the same divided by ||w_t||.
        cosine: mean cosine over the pairs of clients: 1 all agree, 0 orthogonal; nan for a single client.
        diversity: gradient diversity sum ||D_k||^2 / ||sum D_k||^2 (Yin et al. 2018): 1/m for identical updates, 1 for
            orthogonal ones, above 1 where updates cancel.
    """

    sizes: Tensor
    cosine_to_mean: Tensor
    size: Measured
    relative_size: Measured
    cosine: Measured
    diversity: Measured


@checked
def drift(start: State, states: Sequence[State], weights: Sequence[float], names: Iterable[str]) -> Drift:
    """Measures the updates from `start` to each of `states`.

    Args:
        start: the model all clients received.
        states: the clients' models.
        weights: aggregation weights, one per client, adding up to 1.
        names: tensors to measure, usually the trainable parameters.
    """
    names, m = list(names), len(states)
    p = torch.tensor(weights, dtype=torch.float64)
    sizes, along, mean, total, cosines = (_by_pairs if m <= PAIRS else _by_sums)(start, states, p, names)
    tiny = torch.finfo(torch.float64).tiny
    size = (p @ sizes).item()
    return Drift(
        sizes=sizes,
        cosine_to_mean=along / (sizes * mean).clamp_min(tiny),
        size=size,
        relative_size=size / max(flatten(start, names).norm().item(), tiny),
        cosine=(cosines / (m * (m - 1))).item() if m > 1 else float("nan"),
        diversity=(sizes.square().sum() / total.clamp_min(tiny)).item(),
    )


Geometry = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""For updates D_k with mean D: ||D_k||, <D_k, D>, ||D||, ||sum D_k||^2, and the cosines of all ordered pairs summed."""


def _by_pairs(start: State, states: Sequence[State], p: Tensor, names: Sequence[str]) -> Geometry:
    """From the products of all pairs, in one pass."""
    gram = torch.zeros(len(states), len(states), dtype=torch.float64)
    for updates in _updates(start, states, names):
        gram += (updates @ updates.T).double().cpu()
    sizes = gram.diagonal().clamp_min(0).sqrt()
    cosines = gram / (sizes[:, None] * sizes[None, :]).clamp_min(torch.finfo(torch.float64).tiny)
    apart = cosines.sum() - cosines.diagonal().sum()
    return sizes, gram @ p, (p @ gram @ p).clamp_min(0).sqrt(), gram.sum(), apart


def _by_sums(start: State, states: Sequence[State], p: Tensor, names: Sequence[str]) -> Geometry:
    """From sums over the clients, in two passes: the time grows with the clients, not with the pairs of them."""
    squares, along = torch.zeros(2, len(states), dtype=torch.float64)
    mean, total, units = torch.zeros(3, dtype=torch.float64)
    for updates in _updates(start, states, names):
        weighted = p.to(updates) @ updates
        squares += updates.square().sum(1).double().cpu()
        along += (updates @ weighted).double().cpu()
        mean += weighted.square().sum().double().cpu()
        total += updates.sum(0).square().sum().double().cpu()
    sizes = squares.sqrt()
    inverse = torch.where(sizes > 0, 1 / sizes, 0)
    for updates in _updates(start, states, names):
        units += (inverse.to(updates) @ updates).square().sum().double().cpu()
    return sizes, along, mean.sqrt(), total, units - (sizes > 0).sum()


def _updates(start: State, states: Sequence[State], names: Sequence[str]) -> Iterator[Tensor]:
    """The updates of all clients, (m, values), a few thousand values of a tensor at a time."""
    piece = min(2**16, max(2**12, _TOGETHER // len(states)))
    for name in names:
        own = [state[name].flatten().split(piece) for state in states]
        for origin, *pieces in zip(start[name].flatten().split(piece), *own, strict=True):
            yield torch.stack(pieces) - origin
