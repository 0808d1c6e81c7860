"""FedTAN: batch normalisation with the statistics, and the gradients, of all clients' batches together.

Wang, Shi and Chang, "Why Batch Normalization Damage Federated Learning on Non-IID Data?" (arXiv 2301.02982); the rules
are those of the published code. In the first local step the clients walk through the network side by side, and at every
batch-norm layer they talk to the server three times: to share the mean, then the variance around that mean, and on the
way back the gradients of the loss with respect to both. One such step is a step of centralised training on the union of
the batches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from fedlab_core.batchnorm.lockstep import Ledger, Sharing, graph, synchronised_gradients
from fedlab_core.check import checked
from fedlab_core.data import Dataset
from fedlab_core.local.fitness import check_single_examples
from fedlab_core.local.optimisers import make_optimiser
from fedlab_core.local.training import (
    batches,
    client_data,
    forward_draws,
    freeze_statistics,
    local_context,
    trained_parameters,
    worker_copy,
)
from fedlab_core.local.work import Engine, Task, Update, Work, batch_loss
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator
from fedlab_core.sampling import aggregation_weights
from fedlab_core.settings import Settings
from fedlab_core.state import State, get_state, set_state


@checked
@dataclass(frozen=True)
class FedTAN(Sharing, FedAvg):
    """Layer-wise synchronised batch normalisation in local step 1, ordinary local steps afterwards (arXiv 2301.02982).

    With the defaults, one local step and equal models, a round is a gradient step on sum_k p_k L_k: p_k are the weights
    that the server averages with, L_k is client k's mean loss under the shared statistics. Where p_k goes with the size
    of the batch, that is the mean loss over the union of the batches. Each exchange can be left out, to see what it is
    for; all three left out is plain FedAvg. Steps 2 to E begin with a new optimiser, as in the published code: momentum
    is not carried over from the shared step.

    Args:
        mean, variance, gradients, around_global_mean, differentiate: see `lockstep.Sharing`.
        freeze: in steps 2 to E clients normalise with the running statistics of step 1 and keep them; the published
            code normalises with local batch statistics there.
    """

    freeze: bool = False
    name = "FedTAN"

    def local_settings(self, settings: Settings) -> Settings:
        if settings.batch_norm not in (None, "average", "total_variance"):
            raise ValueError(
                f"batch_norm={settings.batch_norm!r}: FedTAN's clients share one batch normalisation, "
                "accepted: 'average', 'total_variance'"
            )
        return _plain(settings, "FedTAN's clients begin", "FedTAN's exchanges are")

    def train(self, engine: Engine, work: Work, tasks: Sequence[Task], stop: Callable[[], bool]) -> Iterator[Update]:
        settings = work.settings
        weights = aggregation_weights(work.partition.sizes, [task.client for task in tasks], settings.weighting)
        weights = [weight / sum(weights) for weight in weights]
        models = _models(engine, work, len(tasks))
        data = [client_data(work, task.client) for task in tasks]
        draws = [
            batches(len(x), settings, generator(settings.seed, "batches", work.round, task.client))
            for (x, _), task in zip(data, tasks, strict=True)
        ]
        streams = [forward_draws(work, task.client) for task in tasks]
        for model, task in zip(models, tasks, strict=True):
            set_state(model, task.state)
            model.train()
        first = [next(draw) for draw in draws]
        if stop():
            return
        ledger = Ledger()
        shared = [(x[batch], y[batch]) for (x, y), batch in zip(data, first, strict=True)]
        loss_of = partial(batch_loss, work.dataset)
        losses = synchronised_gradients(models, shared, self, ledger, weights, streams, loss_of)
        traffic: dict[str, Any] = {
            "exchanges": ledger.exchanges,
            "bytes_up": ledger.floats_up * losses[0].element_size(),
            "bytes_down": ledger.floats_down * losses[0].element_size(),
        }
        for k, task in enumerate(tasks):
            if stop():
                return
            model, (x, y) = models[k], data[k]
            parameters, context = trained_parameters(model), local_context(model, work, task)
            _step(self.optimiser(list(parameters.values()), context), parameters, settings)
            optimiser = self.optimiser(list(parameters.values()), context)
            if self.freeze:
                freeze_statistics(model)
            total, steps, seen = losses[k], 1, len(first[k])
            for batch in draws[k]:
                if stop():
                    return
                with streams[k]:
                    loss = loss_of(model(x[batch]), y[batch])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                _step(optimiser, parameters, settings)
                total, steps, seen = total + loss.detach(), steps + 1, seen + len(batch)
            end = self.upload(context, get_state(model))
            yield Update(task.client, len(x), steps, seen, end, task.memory, {}, total.item() / steps, **traffic)

    def check(self, model: nn.Module, dataset: Dataset, partition: Partition, settings: Settings) -> None:
        """Refuse hooks that are never called, a model without a graph, and batches of one example in steps 2 to E,
        which are each client's own."""
        for hook in ("begin", "loss", "correct", "finish"):
            if getattr(type(self), hook) is not getattr(FedAvg, hook):
                raise ValueError(
                    f"method {self.name!r}: has its own {hook!r}, which FedTAN's clients never call, accepted: its own "
                    "'optimiser', 'upload', 'sample' and server hooks"
                )
        graph(model)
        if settings.steps != 1 and any(settings.local_steps(n) > 1 for n in partition.sizes.unique().tolist()):
            check_single_examples(model, dataset, partition, settings)


@dataclass(frozen=True)
class UnionSGD(FedAvg):
    """Centralised training on the clients' batches: each step is one SGD step on the union of the batches they would
    draw.

    No federated algorithm, but the reference for one: the same examples in the same order, nothing else. What a model
    draws in its forward pass is the first client's.
    """

    name = "centralised (union batches)"

    def local_settings(self, settings: Settings) -> Settings:
        if settings.batch_norm not in (None, "average", "total_variance", "frozen"):
            raise ValueError(
                f"batch_norm={settings.batch_norm!r}: centralised training has no clients to keep anything, "
                "accepted: 'average', 'total_variance', 'frozen'"
            )
        return _plain(settings, "every round begins", "the reference is")

    def train(self, engine: Engine, work: Work, tasks: Sequence[Task], stop: Callable[[], bool]) -> Iterator[Update]:
        settings = work.settings
        (model,) = _models(engine, work, 1)
        set_state(model, tasks[0].state)
        model.train()
        if settings.batch_norm == "frozen":
            freeze_statistics(model)
        parameters, stream = trained_parameters(model), forward_draws(work, tasks[0].client)
        optimiser = make_optimiser(list(parameters.values()), settings, settings.lr_at(work.round))
        data = [client_data(work, task.client) for task in tasks]
        draws = [
            list(batches(len(x), settings, generator(settings.seed, "batches", work.round, task.client)))
            for (x, _), task in zip(data, tasks, strict=True)
        ]
        total, steps = 0.0, 0
        for drawn in zip_longest(*draws):
            if stop():
                return
            parts = [(x[batch], y[batch]) for (x, y), batch in zip(data, drawn, strict=True) if batch is not None]
            x, y = (torch.cat(part) for part in zip(*parts, strict=True))
            with stream:
                loss = batch_loss(work.dataset, model(x), y)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            _step(optimiser, parameters, settings)
            total, steps = total + loss.item(), steps + 1
        end = get_state(model)
        for task, (x, _), own in zip(tasks, data, draws, strict=True):
            yield Update(task.client, len(x), len(own), sum(map(len, own)), end, task.memory, {}, total / steps)

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        return updates[0].state, server


def _plain(settings: Settings, begins: str, computed: str) -> Settings:
    """The settings, if clients have no optimiser of their own and compute in one precision."""
    if settings.keep_optimiser:
        raise ValueError(f"keep_optimiser=True: {begins} with a new optimiser, accepted: False")
    if settings.mixed_precision:
        raise ValueError(f"mixed_precision=True: {computed} computed in one precision, accepted: False")
    return settings


def _step(optimiser: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], settings: Settings) -> None:
    if settings.clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters.values(), settings.clip_norm)
    optimiser.step()


_MODELS: WeakKeyDictionary[Engine, list[nn.Module]] = WeakKeyDictionary()


def _models(engine: Engine, work: Work, count: int) -> list[nn.Module]:
    """Models to train in, made once per engine, so once per run: copying takes longer than a small model's step."""
    models = _MODELS.setdefault(engine, [])
    models += [worker_copy(work) for _ in range(count - len(models))]
    return models[:count]
