"""The tasks that are timed. Pixels and characters are random: speed does not depend on them, and nothing has to be
downloaded."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fedlab_core.data import Dataset
from fedlab_core.engines.stacked.stack import obstacle
from fedlab_core.federation import Federation
from fedlab_core.local.cores import cores
from fedlab_core.models import build_model
from fedlab_core.partition import iid
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.studies.engines import ENGINES, PLAIN


@dataclass(frozen=True)
class BenchTask:
    """One round's work, E = 1.

    Attributes:
        model, norm: for `build_model`.
        shape, classes: of the data; a shape (T,) is text.
        clients, examples: how many exist, and what each holds.
        batch: B.
        lr: small enough for random labels.
        sampled: clients of a round.
    """

    model: str
    shape: tuple[int, ...]
    classes: int
    clients: int
    examples: int
    batch: int
    norm: str = "none"
    lr: float = 0.01
    sampled: int = 10

    def quick(self) -> "BenchTask":
        """The same with a tenth of the examples."""
        return replace(self, examples=max(self.batch, self.examples // 10))

    def data(self) -> Dataset:
        """Random examples, and 512 to test."""
        draws, n = generator(0, "bench data"), self.clients * self.examples
        names = tuple(map(str, range(self.classes)))
        if len(self.shape) == 1:
            x = torch.randint(self.classes, (n, *self.shape), generator=draws)
            return Dataset("random", "text", x, x.roll(-1, 1), x[:512], x.roll(-1, 1)[:512], names)
        x = torch.randint(256, (n, *self.shape), generator=draws, dtype=torch.uint8)
        y = torch.randint(self.classes, (n,), generator=draws)
        return Dataset("random", "image", x, y, x[:512], y[:512], names, (0.5,) * self.shape[0], (0.3,) * self.shape[0])

    def network(self) -> nn.Module:
        """The model with its initial weights."""
        return build_model(self.model, self.shape, self.classes, generator(0, "bench weights"), norm=self.norm)

    def federation(self, engine: str, **settings: Any) -> Federation:
        """The task's rounds; evaluated never."""
        data = self.data()
        options = Settings(
            fraction=self.sampled / self.clients,
            batch_size=self.batch,
            lr=self.lr,
            engine=engine,
            evaluate_every=10**9,
            batch_norm="average" if self.norm == "batch" else None,
        ).replace(**settings)
        partition = iid(len(data.x), self.clients, generator(0, "bench partition"))
        return Federation(data, partition, self.network(), options, memory_mib=64)

    def plain(self, channels_last: bool = False) -> Callable[[], None]:
        """One round as a good engineer writes it without any framework: one model, weights and the mean in place."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        data, model = self.data(), self.network().to(memory_format=layout)
        partition = iid(len(data.x), self.clients, generator(0, "bench partition"))
        state = copy.deepcopy(model.state_dict())
        draws = torch.Generator().manual_seed(0)
        parameters = list(model.parameters())

        def one_round() -> None:
            mean = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
            for client in torch.randperm(self.clients, generator=draws)[: self.sampled].tolist():
                model.load_state_dict(state)
                x, y = data.prepare(data.x[partition[client]]), data.y[partition[client]]
                x = x.contiguous(memory_format=layout) if x.ndim == 4 else x
                for batch in torch.randperm(len(x), generator=draws).split(self.batch):
                    logits = model(x[batch])
                    F.cross_entropy(logits.flatten(0, -2), y[batch].flatten()).backward()
                    with torch.no_grad():
                        torch._foreach_add_(parameters, [p.grad for p in parameters], alpha=-self.lr)
                    for p in parameters:
                        p.grad = None
                for name, tensor in model.state_dict().items():
                    if tensor.is_floating_point():
                        mean[name].add_(tensor, alpha=1 / self.sampled)
            state.update(mean)

        return one_round

    @property
    def images(self) -> bool:
        """Whether channels can be laid out last."""
        return len(self.shape) == 3 and self.model != "2nn"


@dataclass(frozen=True)
class Way:
    """How a round is computed.

    Attributes:
        engine: of the federation; "plain" is the loop without any framework.
        threads: of each operation of the plain loop.
        channels_last: how the plain loop's pixels and convolutions lie.
        cores: that may be used, 0 for all.
        taken: whether another process keeps one core busy meanwhile.
        processes: that share the clients, see `peers`.
    """

    engine: str
    threads: int = 1
    channels_last: bool = False
    cores: int = 0
    taken: bool = False
    processes: int = 1


def ways(task: BenchTask) -> dict[str, Way]:
    """Everything that a task is timed with, by the names of the table.

    The plain loop with 1, 2 and all threads and, where there are convolutions, in both layouts; every engine that can
    train the model; what `auto` chooses on one core, and beside a busy process.
    """
    layouts = {"": False} | ({", channels-last": True} if task.images else {})
    found = {
        f"{PLAIN}, {threads} thread{'s'[: threads > 1]}{laid_out}": Way(PLAIN, threads, channels_last)
        for threads in sorted({1, min(2, cores()), cores()})
        for laid_out, channels_last in layouts.items()
    }
    found |= {engine: Way(engine) for engine in ENGINES if engine != "stacked" or obstacle(task.network()) is None}
    return found | {"auto, 1 core": Way("auto", cores=1), "auto, a core taken": Way("auto", taken=True)}


TASKS = {
    "2nn": BenchTask("2nn", (1, 28, 28), 10, 100, 600, 10),
    "2nn_1": BenchTask("2nn", (1, 28, 28), 10, 100, 600, 10, sampled=1),
    "2nn_100": BenchTask("2nn", (1, 28, 28), 10, 100, 600, 10, sampled=100),
    "cnn": BenchTask("cnn", (1, 28, 28), 10, 100, 600, 10),
    "resnet8": BenchTask("resnet8", (3, 32, 32), 10, 10, 500, 50, "batch"),
    "resnet20": BenchTask("resnet20", (3, 32, 32), 10, 10, 500, 50, "batch"),
    "lite0": BenchTask("efficientnet_lite0", (3, 64, 64), 10, 10, 40, 20, "batch"),
    "lstm": BenchTask("lstm", (80,), 90, 100, 40, 10, lr=0.1),
    "vit": BenchTask("vit", (1, 28, 28), 10, 100, 100, 10),
}
