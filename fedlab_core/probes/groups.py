"""Group connectivity: what is lost or gained when all clients' models of a round are averaged at once."""

from dataclasses import dataclass
from itertools import combinations

import torch

from fedlab_core.check import Many, Measured, Natural, checked
from fedlab_core.federation import Federation
from fedlab_core.probes.gradients import client_loss
from fedlab_core.probes.lines import recalibrate
from fedlab_core.state import mean_state

ALPHAS = (0.25, 0.5, 0.75)
"""Where between two models a barrier is looked for."""


@checked
@dataclass(frozen=True)
class Connectivity:
    """How the models of a round's clients hang together (FedGuCci, arXiv 2402.18949).

    Attributes:
        clients: sum_k p_k L(w_k), mean loss of their models.
        mean: L(sum_k p_k w_k), loss of their mean.
        pairs: mean over the pairs of max_a [L(a w_1 + (1 - a) w_2) - a L(w_1) - (1 - a) L(w_2)], at least 0.
        worst: the largest of them.
        own: sum_k p_k [L_k(sum_j p_j w_j) - L_k(w_k)], what each client loses on its own training data.
    """

    clients: Measured
    mean: Measured
    pairs: Measured
    worst: Measured
    own: Measured

    @property
    def barrier(self) -> float:
        """L(mean w_k) - mean L(w_k): above 0 averaging loses, below it gains; never above 0 for a convex loss."""
        return self.mean - self.clients


@checked
def connectivity(
    federation: Federation, round: Natural, *, split: str = "test", recalibrate_with: Many | None = None
) -> Connectivity:
    """Barriers among a round's clients on one split, and what the mean costs each on its own data.

    The two may differ in sign. The mean is that of FedAvg, whatever the method makes of it.

    Args:
        round: from 1 on.
        recalibrate_with: re-estimate the statistics of batch normalisation of every model with this many training
            examples; without it they are averaged too.
    """
    inside = federation.inside(round)
    weights, own = inside.shares, [update.state for update in inside.updates]
    pairs = list(combinations(range(len(own)), 2))
    between = [mean_state([own[i], own[j]], [a, 1 - a]) for i, j in pairs for a in ALPHAS]
    states = [mean_state(own, weights), *own, *between]
    states = [recalibrate(federation, state, recalibrate_with) for state in states]
    results = federation.evaluate_states(states, split, round)
    found = torch.tensor([result[f"{split}_loss"] for result in results], dtype=torch.float64)
    ends, inner = found[1 : 1 + len(own)], found[1 + len(own) :].view(len(pairs), len(ALPHAS))
    a = torch.tensor(ALPHAS, dtype=torch.float64)
    line = torch.stack([a * ends[i] + (1 - a) * ends[j] for i, j in pairs]) if pairs else inner
    barriers = (inner - line).clamp_min(0).amax(1) if pairs else torch.zeros(1, dtype=torch.float64)
    clients = float(torch.tensor(weights, dtype=torch.float64) @ ends)
    lost = [
        client_loss(federation, states[0], u.client) - client_loss(federation, state, u.client)
        for u, state in zip(inside.updates, states[1:], strict=False)
    ]
    rise = sum(w * value for w, value in zip(weights, lost, strict=True))
    return Connectivity(clients, found[0].item(), barriers.mean().item(), barriers.max().item(), rise)
