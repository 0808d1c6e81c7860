"""Where clients run. An engine trains the sampled clients of a round and evaluates models; it decides nothing else."""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from fedlab_core.data import Dataset
from fedlab_core.methods import FedAvg, Update
from fedlab_core.partition import Partition
from fedlab_core.settings import Settings
from fedlab_core.state import State


@dataclass(frozen=True)
class Task:
    """What one client starts a round with: the model as it arrives there, and what the client kept from earlier
    rounds."""

    client: int
    state: State
    memory: State


@dataclass(frozen=True)
class Work:
    """One round's work, the same for all its clients.

    Attributes:
        model: a module to copy the structure from; engines load states into their own copies.
        settings: local work as the method wants it.
        received: what travels to each client besides the model.
        round: number of the round, from 1.
    """

    model: nn.Module
    dataset: Dataset
    partition: Partition
    settings: Settings
    method: FedAvg
    received: State
    round: int


class Engine(Protocol):
    """Trains clients and evaluates models.

    Attributes:
        name: what it is called in records.
    """

    name: str

    def train(self, work: Work, tasks: Sequence[Task], stop: Callable[[], bool]) -> Iterator[Update]:
        """A generator of the updates in the order of the tasks; it returns early once `stop()` is true, asked before
        every client, and leaves nothing running when it is closed."""
        ...

    def evaluate(self, work: Work, states: Sequence[State], split: str = "test") -> list[dict[str, float]]:
        """Mean loss and accuracy of each state on a split of the data, in evaluation mode."""
        ...


ENGINES = {
    "loop": "one client after the other; the reference",
    "threads": "one client per core; the bits of loop",
    "stacked": "many clients as one network; loop within rounding",
    "auto": "stacked or threads, by model, batch and device",
    "ray": "clients on many processes or machines; 'ray:10.0.0.1:6379' is a cluster's address",
}
"""What `Settings.engine` may name."""


def get_engine(name: str) -> Engine:
    """The engine called `name`, a key of `ENGINES`; "ray" may be followed by an address."""
    kind, _, address = name.partition(":")
    if kind not in ENGINES or (address and kind != "ray"):
        raise ValueError(f"engine={name!r} is unknown, accepted: {sorted(ENGINES)}")
    module = importlib.import_module(f"fedlab_core.engines.{kind}")
    return getattr(module, f"{kind.capitalize()}Engine")(*[address] if address else [])


@contextlib.contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """That many cores for each operation of this thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def single_threaded() -> contextlib.AbstractContextManager[None]:
    """One intra-op thread inside the block, so that results do not depend on the number of cores."""
    return intra_op_threads(1)
