"""The engine for a model and a device, by a stated rule."""

import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from fedlab_core.check import checked
from fedlab_core.engines.loop import LoopEngine
from fedlab_core.engines.stacked.engine import StackedEngine, forward_operations
from fedlab_core.engines.stacked.stack import is_dense, obstacle, work_obstacle
from fedlab_core.engines.threads import ThreadsEngine
from fedlab_core.local.training import one_example
from fedlab_core.local.work import Engine, LocalMethod, Task, Update, Work
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.models.build import parameter_count
from fedlab_core.state import State

CACHED = 2e6  # weights of a dense net up to which calls cost more than reading the weights of all clients in turn
CROWDED = 2**15  # values that a layer of a convolutional net makes of a batch, above which a client fills a core
MEDIUM = 5e7  # operations of any other net on one example, below which its products gain from being batched


@checked
def choose(work: Work, method: LocalMethod) -> tuple[str, str]:
    """The name of an engine, and why.

    Stacked clients win where single operations are small or the device is wide (`make bench` measures both); a client
    per core wins where one client's operations fill a core.
    """
    model, device = work.model, torch.device(work.settings.device).type
    reason = work_obstacle(work, method) or obstacle(model)
    if reason is not None:
        return ("threads" if device == "cpu" else "loop"), reason
    if device != "cpu":
        return "stacked", f"on {device}"
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return "threads", "recurrent layers"  # their weights, used again and again, stay in a core's cache
    if is_dense(model):
        weights = parameter_count(model)
        if weights > CACHED:
            return "threads", f"dense layers of {weights / 1e6:.3g} million weights"
        return "stacked", "dense layers"
    if any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules()):
        values = values_per_layer(work)
        return ("stacked" if values < CROWDED else "threads"), f"{values / 1000:.3g} thousand values per layer"
    operations = forward_operations(work)
    return "stacked" if operations < MEDIUM else "threads", f"{operations / 1e6:.3g} million operations per example"


@checked
def values_per_layer(work: Work) -> float:
    """How many values a convolution or dense layer makes of one batch, on average over the layers."""
    (model, x), made = one_example(work), []
    for module in model.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            module.register_forward_hook(lambda module, inputs, output: made.append(output.numel()))
    with torch.no_grad():
        model(x)
    return statistics.fmean(made) * (work.settings.batch_size or work.partition.sizes.double().mean().item())


@checked
class AutoEngine:
    """The chosen engine behind the face of any other; `name` says which it is."""

    def __init__(self) -> None:
        self.name = "auto"
        self._engines: dict[str, Engine] = {}
        self._chosen: tuple[tuple, str] | None = None

    def _engine(self, work: Work, method: LocalMethod) -> Engine:
        settings = work.settings
        key = (id(work.model), type(method), settings.device, settings.mixed_precision, settings.batch_size)
        if self._chosen is None or self._chosen[0] != key:
            chosen, reason = choose(work, method)
            self._chosen = key, chosen
            self.name = f"auto: {chosen} ({reason})"
        return self._made(self._chosen[1])

    def _made(self, name: str) -> Engine:
        if name not in self._engines:
            self._engines[name] = {"stacked": StackedEngine, "threads": ThreadsEngine, "loop": LoopEngine}[name]()
        return self._engines[name]

    def check(self, work: Work, method: LocalMethod) -> None:
        """See `local.work.Engine`; any work can be done here."""

    def train(
        self, work: Work, tasks: Sequence[Task], method: LocalMethod, stop: Callable[[], bool]
    ) -> Iterator[Update]:
        """See `local.work.Engine`."""
        yield from self._engine(work, method).train(work, tasks, method, stop)

    def evaluate(self, work: Work, states: Sequence[State], split: str = "test") -> list[dict[str, float]]:
        """See `local.work.Engine`."""
        engine = self._made(self._chosen[1]) if self._chosen else self._engine(work, FedAvg())
        return engine.evaluate(work, states, split)
