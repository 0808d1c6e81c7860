"""What differs between federated algorithms, as hooks around one round loop.

A method says which local work a client does, how its gradients are corrected, what travels besides the model, and how
the server makes the next model. Server and client memories are plain states, so that checkpoints, rewinding and engines
need to know nothing about a method. A method of one's own is a frozen dataclass derived from `FedAvg`; it overrides the
hooks it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedlab_core.check import checked
from fedlab_core.data import Dataset
from fedlab_core.local.optimisers import make_optimiser
from fedlab_core.local.work import Context, Engine, Task, Update, Work, batch_loss
from fedlab_core.partition import Partition
from fedlab_core.sampling import sample_clients
from fedlab_core.settings import Settings
from fedlab_core.state import State, mean_state

Hook = TypeVar("Hook", bound=Callable[..., None])


@checked
def stackable(correct: Hook) -> Hook:
    """Mark a `correct` that works on tensors of any leading shape and looks at nothing but `start`, `received` and
    `memory`, so that the stacked engine may call it once for many clients."""
    correct.stackable = True  # type: ignore[attr-defined]
    return correct


@dataclass(frozen=True)
class FedAvg:
    """Federated averaging: local SGD, then the mean of the models (McMahan et al. 2017, algorithm 1, erratum form).

    Attributes:
        name: what the method is called in legends and records.
        full_batches: whether clients leave out the smaller last batch of an epoch.
        personal: whether every client keeps its whole model to itself; clients are evaluated then, not their mean.
    """

    name = "FedAvg"
    full_batches = False
    personal = False

    def local_settings(self, settings: Settings) -> Settings:
        """The local work of a client under these settings; a method may insist on its own, or refuse some."""
        return settings

    def fitted(self, model: nn.Module) -> nn.Module:
        """The network as clients of this method train it: as it is, unless a method has layers of its own."""
        return model

    def check(self, model: nn.Module, dataset: Dataset, partition: Partition, settings: Settings) -> None:
        """Called when a federation is built; raises a ValueError where the method cannot work with what it is given."""

    def kept(self, names: Sequence[str]) -> frozenset[str]:
        """Which of the model's tensors never leave a client: none, or all of a `personal` method's."""
        return frozenset(names) if self.personal else frozenset()

    def server_memory(self, state: State) -> State:
        """What the server remembers besides the model, before the first round.

        Args:
            state: the trained parameters that travel.
        """
        return {}

    def sample(self, clients: int, count: int, seed: int, round: int) -> list[int]:
        """The `count` clients of a round out of 0 .. clients - 1, ascending: a uniform random subset."""
        return sample_clients(clients, count, seed, round)

    def broadcast(self, server: State) -> State:
        """What travels to each client besides the model."""
        return {}

    def train(self, engine: Engine, work: Work, tasks: Sequence[Task], stop: Callable[[], bool]) -> Iterator[Update]:
        """The clients' local training. A method whose clients talk to the server meanwhile overrides it."""
        return engine.train(work, tasks, self, stop)

    def evaluate(self, engine: Engine, work: Work, states: Sequence[State], split: str) -> list[dict[str, float]]:
        """Measures of each state on a split: loss and accuracy, unless the model does not answer with logits."""
        return engine.evaluate(work, states, split)

    def optimiser(self, parameters: Sequence[nn.Parameter], context: Context) -> torch.optim.Optimizer:
        """The client's optimiser, made in every round: the one that the settings name."""
        return make_optimiser(parameters, context.settings, context.lr)

    def begin(self, context: Context) -> None:
        """Called before a client's first step; may put into `context.scratch` what the other hooks need."""

    def loss(self, context: Context, x: Tensor, y: Tensor) -> Tensor:
        """The local objective on one batch: the data set's mean loss, unless a method has its own.

        Args:
            context: its `model` is in training mode.
            x, y: inputs as the model reads them, and targets.
        """
        return batch_loss(context.dataset, context.model(x), y)

    def correct(self, context: Context, grads: State, weights: State) -> None:
        """Change the gradients of the trainable parameters in place, before the optimiser's step.

        Args:
            grads, weights: gradients and current weights by parameter name.
        """

    def upload(self, context: Context, end: State) -> State:
        """The model that the client sends back: the one it ended with, by name. An attacker sends another."""
        return end

    def finish(self, context: Context, end: State) -> tuple[State, State]:
        """After local training: (tensors to send up besides the model, tensors to keep on the client).

        Args:
            end: the tensors of the client's model that are not frozen.
        """
        return {}, context.memory

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        """The next global model and server memory, as far as the trained parameters that travel are concerned.

        Running statistics follow `Settings.batch_norm`; other buffers stay as they are where clients agree.

        Args:
            start: those parameters of the global model of this round.
            updates: one per sampled client, ordered by client number; their states have the same names as `start`.
            weights: one per update. What they lack to 1 falls to `start` (nothing in FedAvg's usual form).
            server: the server's memory.
            clients: number of clients that exist.
        """
        rest = 1.0 - sum(weights)
        states, shares = [update.state for update in updates], list(weights)
        if rest > 1e-9:
            states, shares = [start, *states], [rest, *shares]
        return mean_state(states, shares), server

    @property
    def corrects(self) -> bool:
        """Whether `correct` does anything, so that engines can leave it out."""
        return type(self).correct is not FedAvg.correct

    @property
    def stack_obstacle(self) -> str | None:
        """What keeps clients of this method from being trained as one network, in words; None if nothing does."""
        hooks = ("optimiser", "begin", "loss")
        own = [hook for hook in hooks if getattr(type(self), hook) is not getattr(FedAvg, hook)]
        if own:
            return f"{self.name} has {' and '.join(own)} of its own"
        if self.corrects and not getattr(type(self).correct, "stackable", False):
            return f"{self.name} corrects gradients in a way that is not known to work for many clients at once"
        return None

    @property
    def asks_for_logits(self) -> bool:
        """Whether clients ask the model for nothing but an answer to a batch, each on its own."""
        hooks = ("loss", "train")
        return all(getattr(type(self), hook) is getattr(FedAvg, hook) for hook in hooks)

    @property
    def plain(self) -> bool:
        """Whether clients minimise the task's loss with the settings' optimiser and nothing else reads a gradient."""
        return not self.corrects and self.stack_obstacle is None


@dataclass(frozen=True)
class FedSGD(FedAvg):
    """One gradient step on all of a client's data per round: FedAvg with E = 1 and B = all (McMahan et al. 2017,
    section 2)."""

    name = "FedSGD"

    def local_settings(self, settings: Settings) -> Settings:
        return replace(settings, epochs=1, steps=None, batch_size=None)


@dataclass(frozen=True)
class LocalOnly(FedAvg):
    """No communication: each client trains its own model and never sends it. The reference that FL has to beat."""

    name = "local only"
    personal = True
