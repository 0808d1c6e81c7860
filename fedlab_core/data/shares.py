"""How much each client gets: shares drawn from a Dirichlet distribution, and sizes with a minimum."""

import torch
from torch import Tensor

from fedlab_core.check import Amount, Many, Natural, checked


@checked
def dirichlet_rows(alpha: Amount, rows: Many, columns: Many, generator: torch.Generator) -> Tensor:
    """float64 (rows, columns), each row ~ Dirichlet(alpha, ..., alpha): normalised gammas.

    In logarithms, by gamma(a) = gamma(a + 1) * U^(1/a) (Marsaglia and Tsang 2000), so that no alpha underflows.
    """
    gamma = torch._standard_gamma(torch.full((rows, columns), alpha + 1.0, dtype=torch.float64), generator=generator)
    u = 1 - torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    return (gamma.log() + u.log() / alpha).softmax(1)


@checked
def raised_to(sizes: Tensor, least: Natural) -> Tensor:
    """Raise every size to `least` and keep the total: the largest are levelled down."""
    missing = int((least - sizes).clamp(min=0).sum())
    low, high = least, int(sizes.max())  # the lowest level that the top must give down to, by bisection
    while low < high:
        level = (low + high + 1) // 2
        low, high = (level, high) if int((sizes - level).clamp(min=0).sum()) >= missing else (low, level - 1)
    raised = sizes.clamp(min=least, max=max(low, least))
    above = (sizes > low).nonzero().flatten()
    raised[above[: int(sizes.sum() - raised.sum())]] += 1  # the rounding stays with the first of the largest
    return raised
