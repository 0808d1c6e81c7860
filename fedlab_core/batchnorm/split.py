"""The split of FedTAN's published code, with a dial: who holds which labels, from IID to blocks."""

import torch
from torch import Tensor

from fedlab_core.check import checked
from fedlab_core.data import arguments
from fedlab_core.partition import Partition


@checked
def label_blocks(labels: Tensor, clients: int, skew: float, generator: torch.Generator) -> Partition:
    """Equal clients; a share `skew` of each one's examples is a block of the examples in order of their labels, the
    rest IID.

    At skew 1 and balanced labels it is the non-IID split of FedTAN's published code: sort by label, cut into K blocks.

    Args:
        skew: 0 (IID) to 1.
        generator: draws which examples belong to which share, and the order of equal labels.

    Raises:
        ValueError: a skew outside of 0 to 1.
    """
    labels = arguments.labels_of(labels)
    arguments.check_generator(generator)
    n, clients = arguments.check_clients(len(labels), clients)
    if not 0 <= skew <= 1:
        raise ValueError(f"skew={skew}, accepted: 0 (IID) to 1 (blocks of labels)")
    order = torch.randperm(n, generator=generator)
    free, bound = order[: round((1 - skew) * n)], order[round((1 - skew) * n) :]
    bound = bound[labels[bound].argsort(stable=True)]
    parts = [torch.cat(pair) for pair in zip(bound.tensor_split(clients), free.tensor_split(clients), strict=True)]
    sizes = torch.tensor([0, *map(len, parts)])
    return Partition(torch.cat(parts), sizes.cumsum(0), f"label blocks, skew {skew:g}, {clients} clients")
