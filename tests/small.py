"""Small federations that the tests share."""

from typing import Any

import torch
from torch import Tensor, nn

from fedlab_core.data import Dataset
from fedlab_core.federation import Federation
from fedlab_core.local.work import task_loss
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.models import build_model
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import State

OWN_LAYERS = ("hbn", "fbn", "fedsa_lora", "flora", "fedex_lora")
"""Methods that need layers which the networks here do not have."""


def small_data(n: int = 60, classes: int = 3, seed: int = 0) -> Dataset:
    """Random 1x4x4 images whose brightness tells the class apart."""
    draws = generator(seed, "small data")
    y = torch.randint(classes, (n,), generator=draws)
    x = (torch.randint(0, 100, (n, 1, 4, 4), generator=draws) + 50 * y[:, None, None, None]).to(torch.uint8)
    names = tuple("abcdefghij"[:classes])
    return Dataset("small", "image", x, y, x[: n // 3], y[: n // 3], names, (0.4,), (0.2,))


def split(*sizes: int) -> Partition:
    """Consecutive blocks of the given sizes."""
    total = sum(sizes)
    return Partition(torch.arange(total), torch.tensor([0, *sizes]).cumsum(0), f"blocks {sizes}")


def small_federation(
    partition: Partition, method: FedAvg | None = None, norm: str = "none", data: Dataset | None = None, **changes: Any
) -> Federation:
    """Float64, every client in every round, full batches, by the reference loop, unless `changes` say otherwise."""
    data = data or small_data(int(partition.sizes.sum()))
    model = build_model(
        "mlp", data.input_shape, data.num_classes, generator(0, "initial weights"), norm=norm, hidden=(6,)
    )
    settings = Settings(fraction=1.0, batch_size=None, lr=0.3, double=True, engine="loop").replace(**changes)
    return Federation(data, partition, model, settings, method)


def plain_sgd(model: nn.Module, data: Dataset, batches: list[Tensor], lr: float, **options: float) -> State:
    """The oracle: torch's own SGD over the given batches of example numbers, in float64."""
    model = model.double()
    optimiser = torch.optim.SGD(model.parameters(), lr, **options)
    for batch in batches:
        optimiser.zero_grad()
        task_loss(model(data.prepare(data.x[batch]).double()), data.y[batch]).backward()
        optimiser.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def equal(a: State, b: State) -> bool:
    """The same names and the same bits."""
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def gap(a: State, b: State) -> float:
    """The largest difference between two states."""
    assert list(a) == list(b)
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)
