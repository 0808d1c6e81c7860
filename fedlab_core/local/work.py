"""What a round gives its clients to do, and what they hand back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlab_core.check import Client, Measured, Natural, checked
from fedlab_core.data import Dataset
from fedlab_core.local.fitness import Traits, model_dtype
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import Roles, State


@checked
@dataclass(frozen=True)
class Task:
    """What one client starts a round with: the model as it arrives there, and what the client kept from earlier
    rounds."""

    client: Client
    state: State
    memory: State


@checked
@dataclass(frozen=True)
class Work:
    """One round's work, common to all its clients.

    Attributes:
        model: a module to copy the structure from; engines load states into their own copies.
        settings: local work as the method wants it.
        received: what travels to each client besides the model.
        round: number of the round, from 1.
        roles: what happens to each tensor of the model.
        traits: what engines have to know about the model.
        stop: asked before every batch of an evaluation; once it is true, `Stopped` is raised.
        tested: an evaluation takes so many examples of a split, see `evaluated_rows`; None: all.
    """

    model: nn.Module
    dataset: Dataset
    partition: Partition
    settings: Settings
    received: State
    round: Natural
    roles: Roles = Roles()
    traits: Traits = Traits()
    stop: Callable[[], bool] = field(default=lambda: False, compare=False, repr=False)
    tested: int | None = None

    def evaluated_rows(self, split: str) -> Tensor:
        """The examples of a split that an evaluation takes, int64, ascending: drawn once, whatever the run's seed."""
        examples = len(self.dataset.split(split)[0])
        if self.tested is None or self.tested >= examples:
            return torch.arange(examples)
        return torch.randperm(examples, generator=generator(0, "evaluated examples"))[: self.tested].sort().values

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of images and of convolutions' weights."""
        return self.settings.memory_format if self.traits.channels_last else torch.contiguous_format

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """The type that the model computes in."""
        return model_dtype(self.model, self.settings)


class Stopped(Exception):
    """Work was asked to stop and is given up: an evaluation with its round, the run of a study before its end."""


@checked
@dataclass(frozen=True)
class Update:
    """What a client hands back after its local training.

    Attributes:
        client: its number.
        examples: how many training examples it holds (n_k).
        steps: local gradient steps it took.
        seen: examples that went through them; a repeated epoch counts again.
        state: its whole model; only the names that travel are sent.
        memory: tensors that stay with the client for its next round.
        extra: tensors sent up besides the model.
        loss: mean training loss over its local steps, each at the weights of that step.
        exchanges: times it waited for the server during local training; 0 for all but layer-wise methods.
        bytes_up, bytes_down: what it sent and received during local training.
        round: number of the round, from 1; filled in by the federation.
        share: its part p_k of the global objective, among all clients that exist: n_k / n, or 1 / K under uniform
            weighting; filled in by the federation.
        sent, fetched: names of the model's tensors that it sent back, and that it received before; None for all
            that travel.
    """

    client: Client
    examples: Natural
    steps: Natural
    seen: Natural
    state: State
    memory: State
    extra: State
    loss: Measured
    exchanges: Natural = 0
    bytes_up: Natural = 0
    bytes_down: Natural = 0
    round: Natural = 0
    share: float = 0.0
    sent: frozenset[str] | None = None
    fetched: frozenset[str] | None = None


@checked
@dataclass
class Context:
    """Where a client stands in its local training: what every hook of a method is given.

    Attributes:
        client: its number. In a stack of clients -1: their tensors then have a leading client dimension.
        round: number of the round, from 1.
        settings: local work as the method wants it.
        dataset: training and test data, with their mean and standard deviation.
        model: the module being trained; in a stack the network of all its clients.
        start: the model that the client received.
        received: what the method's `broadcast` sent besides.
        memory: what the client kept from its last round; empty before its first.
        lr: learning rate of the round.
        travelling: names of the trained parameters that are sent; the others stay with the client.
        step: local gradient steps taken so far.
        scratch: whatever a method's `begin` wants to keep until `finish`.
    """

    client: Client
    round: Natural
    settings: Settings
    dataset: Dataset
    model: nn.Module
    start: State
    received: State
    memory: State
    lr: float
    travelling: tuple[str, ...] = ()
    step: Natural = 0
    scratch: Any = None

    @functools.cached_property
    def draws(self) -> torch.Generator:
        """The client's generator for this round, for augmentations and the like."""
        return generator(self.settings.seed, "loss", self.round, self.client)


class LocalMethod(Protocol):
    """The part of a method that acts on a client, see `methods.fedavg.FedAvg` for each hook."""

    @property
    def name(self) -> str: ...
    @property
    def full_batches(self) -> bool: ...
    @property
    def corrects(self) -> bool: ...
    @property
    def stack_obstacle(self) -> str | None: ...
    @property
    def plain(self) -> bool: ...
    def optimiser(self, parameters: Sequence[nn.Parameter], context: Context) -> torch.optim.Optimizer: ...
    def begin(self, context: Context) -> None: ...
    def loss(self, context: Context, x: Tensor, y: Tensor) -> Tensor: ...
    def correct(self, context: Context, grads: State, weights: State) -> None: ...
    def upload(self, context: Context, end: State) -> State: ...
    def finish(self, context: Context, end: State) -> tuple[State, State]: ...


class Engine(Protocol):
    """Trains clients and evaluates models.

    Attributes:
        name: what it is called in records.
    """

    name: str

    def check(self, work: Work, method: LocalMethod) -> None:
        """Raise a ValueError where this engine cannot do such work; called when a federation is built."""
        ...

    def train(
        self, work: Work, tasks: Sequence[Task], method: LocalMethod, stop: Callable[[], bool]
    ) -> Iterator[Update]:
        """Yield the updates in the order of the tasks; return early once `stop()` is true, asked before every local
        step, and leave nothing running when closed."""
        ...

    def evaluate(self, work: Work, states: Sequence[State], split: str = "test") -> list[dict[str, float]]:
        """Mean loss and accuracy of each state on a split of the data, in evaluation mode."""
        ...


@checked
def batch_loss(dataset: Dataset, outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of a batch: the data set's own, or cross-entropy."""
    return task_loss(outputs, targets) if dataset.loss is None else dataset.loss(outputs, targets).mean()


@checked
def task_loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits (..., classes) and targets (...); targets of -100 are padding and count nowhere."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-100, reduction=reduction)
