"""What the server makes of the clients' models, apart from the method: weights, running statistics, other buffers."""

from collections.abc import Sequence

from torch import nn

from fedlab_core.check import checked
from fedlab_core.local.work import Update
from fedlab_core.state import Roles, State, agreed_or_mean, total_variance


@checked
def merge_untrained(
    model: nn.Module,
    roles: Roles,
    start: State,
    updates: Sequence[Update],
    weights: Sequence[float],
    policy: str | None,
) -> State:
    """The next global values of all tensors that a method does not see.

    Running statistics, parameters that stay on the clients, and buffers on which clients disagree become weighted
    means over the clients that sent them; the mean of what stays on the clients is for evaluation only. Buffers on
    which all agree keep their bits.

    Args:
        start: the global model of this round; it has a part in the mean where weights add up to less than 1.
        updates: one per client, with whole models.
        policy: the batch-norm policy; "total_variance" adds the spread of the means to the merged variances.
    """
    rest = max(0.0, 1.0 - sum(weights))
    merged: State = {}
    for name in (*roles.statistics, *roles.buffers, *(n for n in roles.trained if n in roles.local)):
        pairs = [(u.state, w) for u, w in zip(updates, weights, strict=True) if u.sent is None or name in u.sent]
        if not pairs:
            continue
        if rest > 1e-9:
            pairs.append((start, rest))
        total = sum(weight for _, weight in pairs)
        merged |= agreed_or_mean([state for state, _ in pairs], [weight / total for _, weight in pairs], [name])
    if policy == "total_variance":
        merged = total_variance(model, [update.state for update in updates], weights, start | merged)
        merged = {name: merged[name] for name in (*roles.statistics, *roles.buffers)}
    return merged


@checked
def unchanged(roles: Roles, start: State, updates: Sequence[Update]) -> frozenset[str]:
    """Buffers that no client has changed: nothing is sent for them."""
    return frozenset(
        name
        for name in roles.buffers
        if all(update.state[name] is start[name] or update.state[name].equal(start[name]) for update in updates)
    )
