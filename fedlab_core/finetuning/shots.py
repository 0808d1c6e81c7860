"""Few-shot data: a few labelled examples of each class, in all or at each client."""

from dataclasses import replace

import torch
from torch import Tensor

from fedlab_core.check import Many, checked
from fedlab_core.data import Dataset
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator


@checked
def few_shot(dataset: Dataset, shots: Many, seed: int = 0) -> Dataset:
    """The data set with `shots` random training examples of each class, in their original order; the test split stays.

    The draws are nested: those of fewer shots are among those of more.

    Raises:
        ValueError: a class has fewer examples.
    """
    counts = torch.bincount(dataset.y, minlength=dataset.num_classes)
    if not 1 <= shots <= int(counts.min()):
        raise ValueError(f"shots={shots}, accepted: 1 to {int(counts.min())}, the smallest class")
    chosen = _first_of_each(dataset.y, shots, generator(seed, "shots"))
    groups = None if dataset.groups is None else dataset.groups[chosen]
    notes = f"{dataset.notes}; {shots} of each class (seed {seed})"
    return replace(dataset, x=dataset.x[chosen], y=dataset.y[chosen], groups=groups, notes=notes)


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
        kept.append(own[_first_of_each(labels[own], shots, generator(seed, "shots", client))])
    offsets = torch.tensor([0, *map(len, kept)]).cumsum(0)
    return replace(
        partition,
        indices=torch.cat(kept),
        offsets=offsets,
        description=f"{partition.description}, at most {shots} per class",
    )


def _first_of_each(labels: Tensor, shots: int, draws: torch.Generator) -> Tensor:
    """Sorted positions of at most `shots` examples of each class."""
    order = torch.randperm(len(labels), generator=draws)
    return torch.cat([order[labels[order] == c][:shots] for c in labels.unique()]).sort().values
