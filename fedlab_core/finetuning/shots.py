"""Few-shot data: a few labelled examples of each class at each client."""

from dataclasses import replace

import torch
from torch import Tensor

from fedlab_core.check import Many, checked
from fedlab_core.data.statistics import some_of_each
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator


@checked
def few_shot_clients(partition: Partition, labels: Tensor, shots: Many, seed: int = 0) -> Partition:
    """A partition in which every client keeps at most `shots` random examples of each class that it holds.

    Args:
        labels: (n,) of the whole training split.

    Raises:
        ValueError: fewer than one.
    """
    if shots < 1:
        raise ValueError(f"shots={shots}, accepted: a whole number >= 1")
    kept = []
    for client in range(len(partition)):
        own = partition[client]
        kept.append(own[some_of_each(labels[own], shots, generator(seed, "shots", client))])
    offsets = torch.tensor([0, *map(len, kept)]).cumsum(0)
    return replace(
        partition,
        indices=torch.cat(kept),
        offsets=offsets,
        description=f"{partition.description}, at most {shots} per class",
    )
