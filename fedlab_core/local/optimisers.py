"""The clients' optimisers, and their moments as plain tensors that a client can keep from round to round."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fedlab_core.check import checked
from fedlab_core.settings import Settings
from fedlab_core.state import State

PREFIX = "optimiser/"


@checked
def make_optimiser(parameters: Sequence[nn.Parameter], settings: Settings, lr: float) -> torch.optim.Optimizer:
    """The optimiser that the settings name, without any past."""
    decay = settings.weight_decay
    if settings.optimiser == "sgd":
        return torch.optim.SGD(parameters, lr, settings.momentum, weight_decay=decay, foreach=True)
    kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return kind(parameters, lr, weight_decay=decay, foreach=True)


@checked
def moments(optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> State:
    """What an optimiser remembers of each parameter, by "optimiser/KEY/NAME"."""
    return {
        f"{PREFIX}{key}/{name}": torch.as_tensor(value).detach().clone()
        for name, parameter in parameters.items()
        for key, value in optimiser.state.get(parameter, {}).items()
        if value is not None
    }


@checked
def forgotten(memory: State) -> State:
    """A client's memory without what `moments` took down."""
    return {label: tensor for label, tensor in memory.items() if not label.startswith(PREFIX)}


@checked
def recall(optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], memory: State) -> None:
    """Give an optimiser back what `moments` took down."""
    for label, tensor in memory.items():
        if label.startswith(PREFIX):
            key, name = label.removeprefix(PREFIX).split("/", 1)
            if name in parameters:
                optimiser.state[parameters[name]][key] = tensor.clone()
