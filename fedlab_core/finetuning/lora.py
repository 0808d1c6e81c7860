"""LoRA in federated learning: what averaging its two factors gets wrong, and methods that do without the error.

A LoRA layer computes (W + s (D + B A)) x with s = alpha / r, B (m, r), A (r, n), D (m, n). Clients train A and B. The
mean of their updates is sum_k p_k B_k A_k; averaging A and B separately gives Bbar Abar instead. The difference is

    sum_k p_k B_k A_k - Bbar Abar = sum_k p_k (B_k - Bbar)(A_k - Abar),

of rank at most (K - 1) r. It vanishes with one client, with equal A_k or equal B_k, and after one step from B = 0.

What travels per client, layer and round, in values:

    FedAvg                                  up r (m + n)   down r (m + n)         error as above
    FFA-LoRA (arXiv 2403.12313)             up r m         down r m               0; tuning option freeze_a
    FedSALoRA (arXiv 2410.01463)            up r n         down r n               no mean of B is made
    StackedLoRA (FLoRA, arXiv 2409.05976)   up r (m + n)   down K r (m + n)       0
    ResidualLoRA (arXiv 2410.09432)         up r (m + n)   down (K + 1) r (m + n) 0
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedlab_core.check import checked
from fedlab_core.data import Dataset
from fedlab_core.failures import Failures
from fedlab_core.finetuning.modules import LoRA
from fedlab_core.local.work import Context, Engine, Task, Update, Work
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import State

A, B, DELTA = ".a.weight", ".b.weight", ".delta"  # of a LoRA layer
ADDED_A, ADDED_B = ".added.a", ".added.b"  # thin factors of what the last round adds to D


@checked
def lora_layers(names: Mapping[str, Tensor] | Sequence[str]) -> list[str]:
    """Names of the LoRA layers whose two factors are among the names of a state."""
    return [name.removesuffix(A) for name in names if name.endswith(A) and name.removesuffix(A) + B in names]


@checked
def update_error(after: State, states: Sequence[State], weights: Sequence[float]) -> dict[str, float]:
    """By layer, how far the aggregated update is from the mean of the clients' updates, relative to the latter.

    Args:
        after: the global model after the round.
        states: the clients' models after local training.
        weights: p_k, which add up to 1.

    Returns:
        ||D' + B' A' - sum_k p_k (D + B_k A_k)||_F / ||sum_k p_k (D + B_k A_k)||_F; 0 where the latter is 0.
    """
    errors = {}
    for layer in lora_layers(states[0]):
        mean = _mean([effective_update(state, layer) for state in states], weights)
        size = mean.norm().item()
        errors[layer] = (effective_update(after, layer) - mean).norm().item() / size if size else 0.0
    return errors


@checked
def effective_update(state: State, layer: str) -> Tensor:
    """D + B A of a layer, (m, n); D is 0 where it has none."""
    product = state[layer + B] @ state[layer + A]
    return product + state[layer + DELTA] if layer + DELTA in state else product


@dataclass(frozen=True)
class FedSALoRA(FedAvg):
    """A is averaged, B stays with its client, which runs B_k Abar (Guo et al., arXiv 2410.01463).

    There is no single global model: evaluate the clients (`Settings.evaluate_clients`).
    """

    name = "FedSA-LoRA"

    def check(self, model: nn.Module, dataset: Dataset, partition: Partition, settings: Settings) -> None:
        _layers_of(model, self.name)

    def kept(self, names: Sequence[str]) -> frozenset[str]:
        """Every B."""
        return frozenset(layer + B for layer in lora_layers(names))


@dataclass(frozen=True)
class ResidualLoRA(FedAvg):
    """FedEx-LoRA (Singhal et al., arXiv 2410.09432): average both factors, and add what that misses to D.

    The server sends the residual of the last round as the two thin factors [p_1 B_1 .. p_K B_K] and
    [A_1 - Abar; ..; A_K - Abar], of which every client keeps the sum D. Needs a model tuned with `delta=True`.
    """

    name = "FedEx-LoRA"

    def check(self, model: nn.Module, dataset: Dataset, partition: Partition, settings: Settings) -> None:
        """Refuse models without D, and clients that miss a round: they would lack what was added in it."""
        for name, layer in _layers_of(model, self.name):
            if layer.delta is None or not layer.a.weight.requires_grad:
                raise ValueError(f"{name}, accepted by {self.name}: LoRA tuned with delta=True and freeze_a=False")
        if settings.clients_per_round(len(partition)) < len(partition):
            raise ValueError(f"fraction={settings.fraction}, accepted by {self.name}: 1, every client in every round")
        failures = settings.failures or Failures()
        missing = [n for n in ("unavailable", "lost", "stale") if getattr(failures, n)]
        if missing or settings.non_finite == "skip_client":
            what = f"failures.{missing[0]} > 0" if missing else "non_finite='skip_client'"
            raise ValueError(
                f"{what}: a client would miss a round, accepted by {self.name}: every client in every round"
            )

    def broadcast(self, server: State) -> State:
        return {name: tensor for name, tensor in server.items() if not name.endswith(DELTA)}

    def begin(self, context: Context) -> None:
        """Add what the server sent to the D that the client keeps."""
        for name, delta in _deltas(context.model, self.name).items():
            layer, kept = name.removesuffix(DELTA), context.memory.get(name, torch.zeros_like(delta))
            if layer + ADDED_B in context.received:
                kept = kept + context.received[layer + ADDED_B] @ context.received[layer + ADDED_A]
            delta.copy_(kept)

    def finish(self, context: Context, end: State) -> tuple[State, State]:
        return {}, {name: delta.clone() for name, delta in _deltas(context.model, self.name).items()}

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        """The mean of everything; by layer the factors of what is added to D, and D as the server has it now."""
        merged, _ = super().aggregate(start, updates, weights, server, clients)
        after: State = {}
        for layer in lora_layers(start):
            a, b = _factors([update.state for update in updates], layer)
            after[layer + ADDED_A], after[layer + ADDED_B] = self.added(a, b, weights)
            added = after[layer + ADDED_B] @ after[layer + ADDED_A]
            merged[layer + DELTA] = after[layer + DELTA] = server.get(layer + DELTA, 0) + added
        return merged, after

    def added(self, a: Sequence[Tensor], b: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Thin factors (K r, n) and (m, K r) of what is added to D."""
        mean = _mean(a, weights)
        return torch.cat([one - mean for one in a]), torch.cat([w * one for w, one in zip(weights, b, strict=True)], 1)


@checked
@dataclass(frozen=True)
class StackedLoRA(ResidualLoRA):
    """FLoRA (Wang et al., arXiv 2409.05976): add the clients' whole updates to D, then begin with fresh factors.

    The server sends [B_1 .. B_K] and [p_1 A_1; ..; p_K A_K]; the fresh factors, A as drawn and B = 0, are known to
    everybody and are not sent.

    Args:
        seed: of the fresh factors.
    """

    seed: int = 0
    name = "FLoRA"

    def train(self, engine: Engine, work: Work, tasks: Sequence[Task], stop: Callable[[], bool]) -> Iterator[Update]:
        factors = {layer + end for layer in lora_layers(tasks[0].state) for end in (A, B)}
        for update in engine.train(work, tasks, self, stop):
            yield replace(update, fetched=frozenset(update.state) - factors)

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        merged, after = super().aggregate(start, updates, weights, server, clients)
        for number, layer in enumerate(lora_layers(start)):
            draws = generator(self.seed, "fresh LoRA", updates[0].round, number)
            old = start[layer + A]
            fresh = (2 * torch.rand(old.shape, generator=draws, dtype=torch.float64) - 1) / old.shape[1] ** 0.5
            merged |= {layer + A: fresh.to(old), layer + B: torch.zeros_like(start[layer + B])}
        return merged, after

    def added(self, a: Sequence[Tensor], b: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
        return torch.cat([w * one for w, one in zip(weights, a, strict=True)]), torch.cat(list(b), 1)


def _layers_of(model: nn.Module, method: str) -> list[tuple[str, LoRA]]:
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, LoRA)]
    if not found:
        raise ValueError(f"model is a {type(model).__name__} without LoRA, accepted by {method}: tune(model, 'lora')")
    return found


def _deltas(model: nn.Module, method: str) -> State:
    """D of every layer by its name in the state, not copied."""
    layers = _layers_of(model, method)
    return {name + DELTA: layer.delta.detach() for name, layer in layers if layer.delta is not None}


def _factors(states: Sequence[State], layer: str) -> tuple[list[Tensor], list[Tensor]]:
    return [state[layer + A] for state in states], [state[layer + B] for state in states]


def _mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([w * tensor for w, tensor in zip(weights, tensors, strict=True)]).sum(0)
