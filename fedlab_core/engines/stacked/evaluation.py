"""Many states evaluated in one pass over the data."""

import torch
from torch import Tensor, nn

from fedlab_core.engines.stacked.modules import Fold
from fedlab_core.engines.stacked.training import IGNORED, load
from fedlab_core.local.training import as_input
from fedlab_core.local.work import Stopped, Work
from fedlab_core.state import State


@torch.no_grad()
def evaluate_together(
    network: nn.Module, fold: Fold, work: Work, state: State, batches: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Sums over the examples of some batches, for every state of a stack, in evaluation mode.

    Args:
        network, fold: from `stack.stack`.
        state: stacked, (states, ...) each.
        batches: inputs and targets as they are stored.

    Returns:
        (states, 2, 2) float64: summed loss and right answers, and the number of targets twice.

    Raises:
        Stopped: the work was asked to stop.
    """
    load(network, state)
    network.eval()
    total = torch.zeros(3, len(next(iter(state.values()))), dtype=torch.float64, device=work.settings.device)
    for x, y in batches:
        if work.stop():
            raise Stopped
        fold.examples = len(x)
        logits = network(as_input(work, work.dataset.prepare(x))).unflatten(0, (-1, len(x)))
        targets = y.expand(len(logits), *y.shape)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        right, counted = logits.argmax(-1) == targets, targets != IGNORED
        for sums, values in zip(total, (losses.view(targets.shape), right, counted), strict=True):
            sums += values.flatten(1).sum(1)
    loss, right, count = total
    return torch.stack([torch.stack([loss, right], 1), torch.stack([count, count], 1)], 1)
