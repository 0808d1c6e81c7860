"""FedTAN: batch normalisation with the statistics, and the gradients, of all clients' batches together.

Wang, Shi and Chang, "Why Batch Normalization Damage Federated Learning on Non-IID Data?" (arXiv 2301.02982); the rules
are those of the published code. In the first local step the clients walk through the network side by side, and at every
batch-norm layer they talk to the server three times: to share the mean, then the variance around that mean, and on the
way back the gradients of the loss with respect to both. One such step is a step of centralised training on the union of
the batches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from weakref import WeakKeyDictionary

import torch
from torch import nn

from fedlab_core.batchnorm.lockstep import Ledger, Sharing, batch_norms, synchronised_gradients
from fedlab_core.local.training import batches, client_data, worker_copy
from fedlab_core.local.work import Engine, Task, Update, Work, task_loss
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import State, get_state, set_state


@dataclass(frozen=True)
class FedTAN(Sharing, FedAvg):
    """Layer-wise synchronised batch normalisation in local step 1, ordinary local steps afterwards (arXiv 2301.02982).

    With the defaults, one local step and equal models, the weighted mean of the clients' gradients is the gradient of
    the union batch. Each exchange can be left out, to see what it is for; all three left out is plain FedAvg.

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
        if settings.mixed_precision:
            raise ValueError("mixed_precision=True: FedTAN's exchanges are computed in one precision, accepted: False")
        return settings

    def train(self, engine: Engine, work: Work, tasks: Sequence[Task], stop: Callable[[], bool]) -> Iterator[Update]:
        settings, lr = work.settings, work.settings.lr_at(work.round)
        models = _models(engine, work, len(tasks))
        data = [client_data(work, task.client) for task in tasks]
        draws = [
            batches(len(x), settings, generator(settings.seed, "batches", work.round, task.client))
            for (x, _), task in zip(data, tasks, strict=True)
        ]
        optimisers = []
        for model, task in zip(models, tasks, strict=True):
            set_state(model, task.state)
            model.train()
            options = {"momentum": settings.momentum, "weight_decay": settings.weight_decay}
            optimisers.append(torch.optim.SGD(model.parameters(), lr, foreach=True, **options))
        first = [next(draw) for draw in draws]
        if stop():
            return
        ledger = Ledger()
        shared = [(x[batch], y[batch]) for (x, y), batch in zip(data, first, strict=True)]
        losses = synchronised_gradients(models, shared, self, ledger)
        traffic = {
            "exchanges": ledger.exchanges,
            "bytes_up": ledger.floats_up * losses[0].element_size(),
            "bytes_down": ledger.floats_down * losses[0].element_size(),
        }
        for k, task in enumerate(tasks):
            if stop():
                return
            model, optimiser, (x, y) = models[k], optimisers[k], data[k]
            optimiser.step()
            if self.freeze:
                for module in batch_norms(model).values():
                    module.eval()
            total, steps, seen = losses[k], 1, len(first[k])
            for batch in draws[k]:
                loss = task_loss(model(x[batch]), y[batch])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                total, steps, seen = total + loss.detach(), steps + 1, seen + len(batch)
            yield Update(
                task.client, len(x), steps, seen, get_state(model), task.memory, {}, total.item() / steps, **traffic
            )


@dataclass(frozen=True)
class UnionSGD(FedAvg):
    """Centralised training on the clients' batches: each step is one SGD step on the union of the batches they would
    draw.

    No federated algorithm, but the reference for one: the same examples in the same order, nothing else.
    """

    name = "centralised (union batches)"

    def train(self, engine: Engine, work: Work, tasks: Sequence[Task], stop: Callable[[], bool]) -> Iterator[Update]:
        settings = work.settings
        (model,) = _models(engine, work, 1)
        set_state(model, tasks[0].state)
        model.train()
        options = {"momentum": settings.momentum, "weight_decay": settings.weight_decay}
        optimiser = torch.optim.SGD(model.parameters(), settings.lr_at(work.round), foreach=True, **options)
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
            loss = task_loss(model(torch.cat([x for x, _ in parts])), torch.cat([y for _, y in parts]))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total, steps = total + loss.item(), steps + 1
        end = get_state(model)
        for task, (x, _), drawn in zip(tasks, data, draws, strict=True):
            yield Update(task.client, len(x), len(drawn), sum(map(len, drawn)), end, task.memory, {}, total / steps)

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        return updates[0].state, server


_MODELS: WeakKeyDictionary[Engine, list[nn.Module]] = WeakKeyDictionary()


def _models(engine: Engine, work: Work, count: int) -> list[nn.Module]:
    """Models to train in, made once per engine, so once per run: copying takes longer than a small model's step."""
    models = _MODELS.setdefault(engine, [])
    models += [worker_copy(work) for _ in range(count - len(models))]
    return models[:count]
