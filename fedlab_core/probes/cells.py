"""Federated averaging with its causes of loss switched off one by one, each exactly.

Every step of a round takes K slots of B examples, K the number of clients, whatever is switched on or off: all cells
see equally many examples, take equally many steps, and start alike.

| cause | on | off |
|---|---|---|
| skew | a slot holds examples of the client that owns it | the union of the clients' batches, dealt at random |
| local steps | the models are averaged after E steps | after every step; the cohort is kept for E steps |
| participation | m sampled clients own K / m slots each | K clients own one slot each |
| statistics | batch norm sees one slot | mean, variance and their gradients are those of all K slots |

With everything off a step is centralised SGD on the union of the clients' batches. Data, dealing and cohort are drawn
from streams of their own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fedlab_core.batchnorm.lockstep import EVERYTHING, NOTHING, synchronised_gradients
from fedlab_core.batchnorm.neighbours import estimate_anew
from fedlab_core.check import checked
from fedlab_core.data import Dataset
from fedlab_core.engines.stacked.modules import StackedBatchNorm
from fedlab_core.engines.stacked.stack import obstacle, stack
from fedlab_core.engines.stacked.training import client_losses, gather, load, stack_states
from fedlab_core.local.training import as_input, batches, on_device, worker_copy
from fedlab_core.local.work import Engine, Task, Update, Work
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator
from fedlab_core.sampling import sample_clients
from fedlab_core.settings import Settings
from fedlab_core.state import State, batch_norms, get_state, set_state

CAUSES = ("skew", "local steps", "participation", "statistics")
POOLED = 1024
"""Training examples, drawn once per run, that running statistics are estimated on before an evaluation."""


@checked
@dataclass(frozen=True)
class Cell(FedAvg):
    """FedAvg in slots with some of its causes of loss on; see the module.

    The network is evaluated with running statistics estimated anew, on the same examples in every cell, so that what
    is compared are the weights.

    Args:
        on: which of `CAUSES` are on.
    """

    on: tuple[str, ...] = CAUSES
    name = "cell"

    def __post_init__(self) -> None:
        object.__setattr__(self, "on", tuple(cause for cause in CAUSES if cause in each_once(self.on, "on")))

    def local_settings(self, settings: Settings) -> Settings:
        usual = {"optimiser": "sgd", "momentum": 0.0, "keep_optimiser": False, "clip_norm": None}
        usual |= {"mixed_precision": False}
        for name, accepted in usual.items():
            if (value := getattr(settings, name)) != accepted:
                raise ValueError(f"{name}={value!r}: averaging after every step would change it, accepted: {accepted}")
        if settings.batch_norm not in (None, "average", "total_variance"):
            raise ValueError(
                f"batch_norm={settings.batch_norm!r}: its models are several, accepted: 'average', 'total_variance'"
            )
        return settings.replace(drop_last=True)

    def check(self, model: nn.Module, dataset: Dataset, partition: Partition, settings: Settings) -> None:
        """Refuse what slots cannot express, by name."""
        sizes, clients = partition.sizes.unique().tolist(), len(partition)
        count = settings.clients_per_round(clients)
        if clients % count:
            raise ValueError(f"fraction={settings.fraction:g}: {count} of {clients} clients cannot own equally many of "
                             f"{clients} slots, accepted: a number of clients that divides {clients}")  # fmt: skip
        if len(sizes) > 1 and settings.weighting != "uniform":
            raise ValueError(f"weighting={settings.weighting!r}: clients hold {sizes[0]} to {sizes[-1]} examples, and "
                             "their weights would be one more cause, accepted: 'uniform'")  # fmt: skip
        if len(sizes) > 1 and (settings.batch_size is None or sizes[0] < settings.batch_size):
            raise ValueError(f"batch_size={settings.batch_size}: a client holds {sizes[0]} examples, accepted: a whole "
                             f"number of at most {sizes[0]}, so that all slots are full")  # fmt: skip
        if len(steps := {settings.local_steps(size) for size in sizes}) > 1:
            raise ValueError(f"epochs={settings.epochs}: {min(steps)} to {max(steps)} local steps, accepted: steps=E, "
                             "as many for every client")  # fmt: skip
        if dataset.loss is not None or dataset.y.ndim > 1:
            raise ValueError(f"dataset={dataset.name!r}: accepted is one class per example, with cross-entropy")
        if obstacle(model) is None:
            return
        if any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p for module in model.modules()):
            raise ValueError("model: dropout would draw other numbers in other cells, accepted: dropout 0")
        try:
            fx.symbolic_trace(model)
        except Exception as error:
            raise ValueError(f"model: torch.fx cannot trace it, so batch norms cannot be shared: {error}") from None

    def sample(self, clients: int, count: int, seed: int, round: int) -> list[int]:
        return sample_clients(clients, count, seed, round) if "participation" in self.on else list(range(clients))

    def train(self, engine: Engine, work: Work, tasks: Sequence[Task], stop: Callable[[], bool]) -> Iterator[Update]:
        owners = [task.client for task in tasks]
        x, y, rows = slots(work, owners, "skew" in self.on)
        groups = len(tasks) if "local steps" in self.on else 1
        shared = "statistics" not in self.on
        walk = _Stacked if engine.name != "loop" and obstacle(work.model) is None else _LockStep
        stepper = walk(work, [task.state for task in tasks[:groups]], shared, rows.shape[1])
        losses = torch.zeros(groups, dtype=torch.float64)
        for step in rows:
            if stop():
                return
            inputs = as_input(work, work.dataset.prepare(x.index_select(0, step.flatten().to(x.device))))
            losses += stepper.step(inputs, y.index_select(0, step.flatten().to(y.device)))
        ends, steps, seen = stepper.states(), len(rows), rows.numel() // len(tasks)
        for k, task in enumerate(tasks):
            end, loss = ends[k % groups], losses[k % groups].item() / steps
            held = len(work.partition[task.client])
            yield Update(task.client, held, steps, seen, task.state | end, task.memory, {}, loss)

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        if "local steps" not in self.on:  # they are equal
            return updates[0].state, server
        return super().aggregate(start, updates, [1 / len(updates)] * len(updates), server, clients)

    def evaluate(self, engine: Engine, work: Work, states: Sequence[State], split: str) -> list[dict[str, float]]:
        if not batch_norms(work.model):
            return engine.evaluate(work, states, split)
        data = on_device(work.dataset, work.settings.device)
        order = torch.randperm(len(data.x), generator=generator(work.settings.seed, "re-estimation"))[:POOLED]
        pooled = as_input(work, data.prepare(data.x[order.to(data.x.device)]))
        model = worker_copy(work).train()
        renewed = []
        for state in states:
            set_state(model, state)
            estimate_anew(model, [pooled])
            renewed.append(get_state(model))
        return engine.evaluate(work, renewed, split)


@checked
def each_once(causes: Sequence[str], name: str = "causes") -> Sequence[str]:
    """The causes, if they are some of `CAUSES`, each once.

    Raises:
        ValueError: they are not.
    """
    if isinstance(causes, str) or len(set(causes)) < len(causes) or not set(causes) <= set(CAUSES):
        raise ValueError(f"{name}={causes!r}, accepted: some of {list(CAUSES)}, each once")
    return causes


@checked
def subsets(causes: Sequence[str]) -> list[tuple[str, ...]]:
    """All subsets of some causes, from none to all of them."""
    return [chosen for size in range(len(causes) + 1) for chosen in combinations(causes, size)]


@checked
def slots(work: Work, owners: Sequence[int], skew: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What each slot holds in each step of a round.

    Args:
        owners: the clients of the round; each owns the same number of slots, side by side.
        skew: whether a slot holds examples of its owner; otherwise the union of one batch of every client is dealt.

    Returns:
        inputs and targets as they are stored, and (steps, slots, B) where in them the examples lie.
    """
    partition, settings = work.partition, work.settings
    clients, steps = len(partition), settings.local_steps(len(partition[0]))
    x, y, positions = gather(work, range(clients))
    each = clients // len(owners) if skew else 1

    def drawn(client: int) -> Tensor:
        """(steps, slots of the client, B)."""
        draws = generator(settings.seed, "batches", work.round, client)
        place = positions[client]
        own = batches(len(place), settings.replace(steps=steps * each), draws)
        return place[torch.stack(list(own))].unflatten(0, (steps, each))

    rows = torch.cat([drawn(client) for client in (owners if skew else range(clients))], 1)
    if not skew:
        for step in range(steps):
            dealt = torch.randperm(rows[step].numel(), generator=generator(settings.seed, "dealing", work.round, step))
            rows[step] = rows[step].flatten()[dealt].view_as(rows[step])
    return x, y, rows


class _LockStep:
    """The plain reference: the models side by side, operation by operation, in the order of the slots."""

    def __init__(self, work: Work, states: Sequence[State], shared: bool, count: int) -> None:
        self.models = [worker_copy(work) for _ in states]
        for model, state in zip(self.models, states, strict=True):
            set_state(model, state)
            model.train()
        self.rule, self.count, self.each = EVERYTHING if shared else NOTHING, count, count // len(states)
        settings = work.settings
        self.lr, self.decay = settings.lr_at(work.round), settings.weight_decay

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One SGD step of every model on the mean gradient of its slots; its mean loss."""
        owned = [self.models[slot // self.each] for slot in range(self.count)]
        parts = list(zip(x.chunk(self.count), y.chunk(self.count), strict=True))
        losses = synchronised_gradients(owned, parts, self.rule, weights=[1 / self.count] * self.count)
        for model in self.models:
            _descend(model.parameters(), self.lr, self.decay, 1 / self.each)
        return torch.stack(losses).double().view(len(self.models), -1).mean(1).cpu()

    def states(self) -> list[State]:
        """The parameters of every model."""
        return [{name: p.detach().clone() for name, p in model.named_parameters()} for model in self.models]


class _Stacked:
    """The models as one network of stacked layers, see `engines.stacked`."""

    def __init__(self, work: Work, states: Sequence[State], shared: bool, count: int) -> None:
        self.names = [name for name, _ in work.model.named_parameters()]
        trained = {name for name, p in work.model.named_parameters() if p.requires_grad}
        self.network, fold = stack(worker_copy(work).to(memory_format=torch.contiguous_format))
        fold.examples = 0
        norms: list[Any] = [m for m in self.network.modules() if isinstance(m, StackedBatchNorm)]
        for norm in norms:
            norm.__class__, norm.slots = SlotNorm, 1 if shared else count
        self.end = {n: t.clone(memory_format=torch.contiguous_format) for n, t in stack_states(states).items()}
        self.parameters = load(self.network, self.end, trained)
        self.network.train()
        settings, self.groups = work.settings, len(states)
        self.lr, self.decay = settings.lr_at(work.round), settings.weight_decay

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """See `_LockStep.step`."""
        logits = self.network(x.contiguous())
        losses, gradient = client_losses(logits.detach(), y, self.groups, len(y) // self.groups)
        (logits * gradient).sum().backward()  # as backward(gradient), which imports sympy
        _descend(self.parameters.values(), self.lr, self.decay)
        return losses.double().cpu()

    def states(self) -> list[State]:
        """See `_LockStep.states`."""
        return [{name: self.end[name][k].clone() for name in self.names} for k in range(self.groups)]


class SlotNorm(StackedBatchNorm):
    """Batch normalisation by slots: consecutive rows of the batch, which may belong to one model or to several.

    Attributes:
        slots: how many; 1 takes the statistics of the whole batch, and their gradients go through it.
    """

    slots: int

    def forward(self, x: Tensor) -> Tensor:
        x = self.folded(x)
        beside = x.unflatten(0, (self.slots, -1)).transpose(0, 1).flatten(1, 2)  # the slots' channels side by side
        y = F.batch_norm(beside, None, None, None, None, True, 0.0, self.eps)
        y = y.unflatten(1, (self.slots, -1)).transpose(0, 1).flatten(0, 1)
        return torch.addcmul(self.per_client(self.bias, x, 1), y, self.per_client(self.weight, x, 1))


def _descend(parameters: Any, lr: float, decay: float, share: float = 1.0) -> None:
    """w <- w - lr (share * gradient + decay w)."""
    with torch.no_grad():
        for weight in parameters:
            if weight.grad is not None:
                weight.add_(weight.grad.mul_(share).add_(weight, alpha=decay), alpha=-lr)
                weight.grad = None
