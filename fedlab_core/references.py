"""Runs to compare a federation with: the same gradient steps, but without federated averaging."""

from torch import Tensor

from fedlab_core.check import checked
from fedlab_core.federation import Federation
from fedlab_core.methods.fedavg import FedAvg, LocalOnly
from fedlab_core.partition import pooled


@checked
def local_only(federation: Federation) -> Federation:
    """Every client trains its own model: the same clients, the same local work, no communication."""
    first = federation.segments[0]
    return Federation(
        federation.dataset, federation.partition, federation.model, first.settings, LocalOnly(), name="local only"
    )


@checked
def centralised(federation: Federation) -> Federation:
    """One client holds all the data and takes, per round, as many steps as all sampled clients take together on
    average.

    The batch size is the clients' own; where they take all their data at once, it is their mean number of examples.
    """
    first = federation.segments[0]
    local, sizes = first.method.local_settings(first.settings), federation.partition.sizes
    steps = sum(count * local.local_steps(size) for size, count in zip(*_counted(sizes), strict=True)) / len(sizes)
    settings = local.replace(
        fraction=1.0,
        steps=max(1, round(local.clients_per_round(len(sizes)) * steps)),
        batch_size=local.batch_size or max(1, round(sizes.double().mean().item())),
        evaluate_clients=False,
    )
    everything = pooled(len(federation.dataset.x))
    return Federation(federation.dataset, everything, federation.model, settings, FedAvg(), name="centralised")


def _counted(sizes: Tensor) -> tuple[list[int], list[int]]:
    values, counts = sizes.unique(return_counts=True)
    return values.tolist(), counts.tolist()
