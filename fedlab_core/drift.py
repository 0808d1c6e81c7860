"""Drift: how the clients' updates of one round differ in size and direction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab_core.check import Measured, checked
from fedlab_core.state import State, flatten

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
    piece = min(2**16, max(2**12, _TOGETHER // m))
    gram = torch.zeros(m, m, dtype=torch.float64, device=next(iter(start.values())).device)
    for name in names:
        own = [state[name].flatten().split(piece) for state in states]
        for origin, *pieces in zip(start[name].flatten().split(piece), *own, strict=True):
            updates = torch.stack(pieces) - origin
            gram += (updates @ updates.T).double()
    gram = gram.cpu()
    sizes = gram.diagonal().clamp_min(0).sqrt()
    p = torch.tensor(weights, dtype=torch.float64)
    mean_size = (p @ gram @ p).clamp_min(0).sqrt()
    tiny = torch.finfo(torch.float64).tiny
    cosines = gram / (sizes[:, None] * sizes[None, :]).clamp_min(tiny)
    pairs = m * (m - 1)
    size = (p @ sizes).item()
    return Drift(
        sizes=sizes,
        cosine_to_mean=(gram @ p) / (sizes * mean_size).clamp_min(tiny),
        size=size,
        relative_size=size / max(flatten(start, names).norm().item(), tiny),
        cosine=((cosines.sum() - cosines.diagonal().sum()) / pairs).item() if pairs else float("nan"),
        diversity=(gram.diagonal().sum() / gram.sum().clamp_min(tiny)).item(),
    )
