"""What differs between federated algorithms, as hooks around one round loop.

A method says which local work a client does, how its gradients are corrected, what travels besides the model, and how
the server
makes the next model. Server and client memories are plain states, so that checkpoints, rewinding and engines need to
know nothing
about a method. Hooks work on tensors of any leading shape, so that many clients can be stacked along a first dimension.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlab_core.state import State, mean_state

if TYPE_CHECKING:
    from fedlab_core.engines import Engine, Task, Work
    from fedlab_core.settings import Settings


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
        sent, fetched: names of the model's tensors that it sent back, and that it received before; None for all
            that travel.
    """

    client: int
    examples: int
    steps: int
    seen: int
    state: State
    memory: State
    extra: State
    loss: float
    exchanges: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    sent: frozenset[str] | None = None
    fetched: frozenset[str] | None = None


@dataclass(frozen=True)
class FedAvg:
    """Federated averaging: local SGD, then the mean of the models (McMahan et al. 2017, algorithm 1, erratum form)."""

    name = "FedAvg"
    full_batches = False  # whether a client leaves out the smaller last batch of an epoch

    def local_settings(self, settings: "Settings") -> "Settings":
        """The local work of a client under these settings; a method may insist on its own."""
        return settings

    def server_memory(self, state: State) -> State:
        """What the server remembers besides the model, before the first round."""
        return {}

    def broadcast(self, server: State) -> State:
        """What travels to each client besides the model."""
        return {}

    def train(
        self, engine: "Engine", work: "Work", tasks: "Sequence[Task]", stop: Callable[[], bool]
    ) -> Iterator[Update]:
        """The clients' local training. A method whose clients talk to the server meanwhile overrides it."""
        return engine.train(work, tasks, stop)

    def evaluate(self, engine: "Engine", work: "Work", states: Sequence[State], split: str) -> list[dict[str, float]]:
        """Measures of each state on a split: loss and accuracy, unless the model does not answer with logits."""
        return engine.evaluate(work, states, split)

    def optimiser(self, parameters: Sequence[nn.Parameter], settings: "Settings", lr: float) -> torch.optim.Optimizer:
        """The clients' optimiser, new in every round: SGD."""
        return torch.optim.SGD(parameters, lr, settings.momentum, weight_decay=settings.weight_decay, foreach=True)

    def prepare(self, model: nn.Module, start: State, memory: State) -> Any:
        """Anything the loss needs besides the model, made once per client and round (a frozen copy of `start`, say)."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, draws: torch.Generator, prepared: Any) -> Tensor:
        """The local objective on one batch: the task's cross-entropy, unless a method has its own.

        Args:
            model: the client's model, in training mode.
            x, y: inputs as the model reads them, and targets.
            draws: the client's generator for this round (for augmentations and the like).
            prepared: what `prepare` returned.
        """
        return task_loss(model(x), y)

    def correct(self, grads: State, weights: State, start: State, received: State, memory: State) -> None:
        """Changes the gradients of the trainable parameters in place, before the optimiser's step.

        Args:
            grads, weights: gradients and current weights by parameter name.
            start: the model that the client received.
            received: what `broadcast` sent.
            memory: what the client kept from its last round; empty before its first.
        """

    def finish(
        self, start: State, end: State, received: State, memory: State, steps: int, lr: float
    ) -> tuple[State, State]:
        """After local training: (tensors to send up besides the model, tensors to keep on the client)."""
        return {}, memory

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        """The next global model and server memory.

        Args:
            start: the global model of this round.
            updates: one per sampled client, ordered by client number.
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
    def own_loss(self) -> bool:
        """Whether `loss` is the method's own; engines that stack clients cannot run such a method."""
        return type(self).loss is not FedAvg.loss


@dataclass(frozen=True)
class FedSGD(FedAvg):
    """One gradient step on all of a client's data per round: FedAvg with E = 1 and B = all (McMahan et al. 2017,
    section 2)."""

    name = "FedSGD"

    def local_settings(self, settings: "Settings") -> "Settings":
        return replace(settings, epochs=1, steps=None, batch_size=None)


@dataclass(frozen=True)
class LocalOnly(FedAvg):
    """No communication: each client trains its own model and never sends it. The reference that FL has to beat."""

    name = "local only"


def task_loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits (..., classes) and targets (...); targets of -100 are padding and count nowhere."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-100, reduction=reduction)
