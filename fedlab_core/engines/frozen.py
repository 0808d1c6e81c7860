"""Models whose first part is frozen: its outputs are computed once for each example, and only the rest is run.

Results equal those of the whole model within rounding: outputs of a few examples at a time are rounded in another way
than those of many.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedlab_core.check import checked
from fedlab_core.data import Dataset
from fedlab_core.data.dataset import PARTS
from fedlab_core.local.draws import AddressedDraws
from fedlab_core.local.training import as_input, freeze_statistics, worker_copy
from fedlab_core.local.work import Engine, LocalMethod, Task, Update, Work
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.state import State, set_state, tensors

AT_ONCE = 64  # examples that go through the frozen part together
LIMIT = 2 * 2**30  # bytes of all outputs that are kept


@checked
def divide(model: nn.Module) -> tuple[Callable[[nn.Module, Tensor], Tensor], nn.Module] | None:
    """A function that computes the frozen part of such a model, and the rest, whose tensors keep their names.

    A model with `features` and `head` is divided between the two, an `nn.Sequential` before the first module that is
    trained or drops values out; None for any other, and where nothing is frozen.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    rest: nn.Module
    if callable(getattr(model, "features", None)) and isinstance(getattr(model, "head", None), nn.Module):
        if not trained or not all(name.startswith("head.") for name in trained):
            return None
        rest = nn.Sequential(OrderedDict(head=model.head))  # type: ignore[arg-type]
        first: Callable[[nn.Module, Tensor], Tensor] = lambda whole, x: whole.features(x)  # type: ignore[operator] # noqa: E731
    elif type(model).forward is nn.Sequential.forward:
        children = list(model.named_children())
        cut = 0
        for _, child in children:
            drops = any(isinstance(module, nn.modules.dropout._DropoutNd) for module in child.modules())
            if drops or any(parameter.requires_grad for parameter in child.parameters()):
                break
            cut += 1
        if not 0 < cut < len(children):
            return None
        rest = nn.Sequential(OrderedDict(children[cut:]))
        first = lambda whole, x: whole[:cut](x)  # type: ignore[index] # noqa: E731
    else:
        return None
    return (first, rest) if tensors(rest).keys() <= tensors(model).keys() else None


@checked
class FrozenEngine:
    """Another engine that trains and evaluates only what stands behind the frozen part.

    Args:
        engine: where clients run.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name = engine, engine.name
        self._lock = threading.Lock()
        self._divided: tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], nn.Module] | None = None
        self._prefix: State = {}
        self._known: dict[str, Tensor] = {}
        self._data: Dataset | None = None

    def check(self, work: Work, method: LocalMethod) -> None:
        """See `local.work.Engine`.

        Raises:
            ValueError: the model, the method or the settings do not allow it, or the outputs would not fit.
        """
        if reason := self._obstacle(work, method):
            raise ValueError(f"cache_frozen=True: {reason}, accepted: cache_frozen=False")
        self.engine.check(self._behind(work, {n: t.detach() for n, t in tensors(worker_copy(work)).items()}), method)

    def _obstacle(self, work: Work, method: LocalMethod) -> str | None:
        if not (isinstance(method, FedAvg) and method.asks_for_logits):
            return f"{method.name} asks the model for more than an answer"
        if work.partition.transform is not None:
            return "clients see their inputs through a transform"
        if work.settings.mixed_precision:
            return "mixed precision"
        if work.dataset.y.ndim != 1:
            return "examples have several targets"
        if (found := divide(work.model)) is None:
            return "no module before the first trained one is frozen"
        first, rest = found
        whole, x = worker_copy(work), as_input(work, work.dataset.prepare(work.dataset.x[:2]))
        with torch.no_grad(), AddressedDraws(work.settings.seed, "examination") as draws:
            whole.eval()
            still, answer, single = first(whole, x), whole(x), first(whole, x[:1])
            behind = rest if not work.settings.double else None
            whole.train()
            if work.settings.batch_norm == "frozen":
                freeze_statistics(whole)
            moving = first(whole, x)
            if behind is not None and not torch.allclose(behind.eval()(still.cpu()), answer.cpu(), 1e-4, 1e-5):
                return "the model's answer is not what the rest makes of the frozen part"
        if (
            draws.used
            or not torch.allclose(moving, still, 1e-4, 1e-5)
            or not torch.allclose(single, still[:1], 1e-4, 1e-4)
        ):
            return "the frozen part computes otherwise in training (batch statistics or random numbers)"
        needed = still[0].numel() * still.element_size() * sum(len(x) for x in _inputs(work.dataset).values())
        return f"its outputs need {needed / 2**30:.1f} GiB, more than {LIMIT / 2**30:g}" if needed > LIMIT else None

    def _parts(self, work: Work) -> tuple[Callable[[nn.Module, Tensor], Tensor], nn.Module]:
        if self._divided is None or self._divided[0] is not work.model:
            found = divide(work.model)
            assert found is not None, "`check` refuses such a model"
            self._divided, self._data = (work.model, *found), None
        return self._divided[1:]

    def _behind(self, work: Work, state: State, rows: dict[str, Tensor] | None = None) -> Work:
        """The work that is left behind the frozen part, once its outputs for the rows of some splits are there."""
        with self._lock:
            first, rest = self._parts(work)
            own = tensors(rest).keys()
            prefix = {name: tensor for name, tensor in state.items() if name not in own}
            same = self._data is not None and prefix.keys() == self._prefix.keys()
            if not same or any(
                t is not self._prefix[n] and not torch.equal(t, self._prefix[n]) for n, t in prefix.items()
            ):
                self._prefix, self._data = prefix, None
            whole = None
            for split, wanted in ({"train": torch.arange(0)} | (rows or {})).items():
                inputs = work.dataset.split(split)[0]
                if self._data is None:
                    whole = self._loaded(work, state)
                    self._data = self._empty(work, first(whole, as_input(work, work.dataset.prepare(inputs[:1]))))
                kept, known = getattr(self._data, f"{PARTS[split][0]}x"), self._known[split]
                missing = wanted[~known[wanted]]
                if len(missing):
                    whole = whole or self._loaded(work, state)
                    for some in missing.split(AT_ONCE):
                        x = as_input(work, work.dataset.prepare(inputs[some.to(inputs.device)]))
                        with torch.no_grad():
                            kept[some.to(kept.device)] = first(whole, x)
                    known[missing] = True
            assert self._data is not None
            return replace(work, model=rest, dataset=self._data)

    def _loaded(self, work: Work, state: State) -> nn.Module:
        whole = worker_copy(work)
        set_state(whole, state)
        return whole.eval()

    def _empty(self, work: Work, like: Tensor) -> Dataset:
        """The data set with room for outputs in the place of its inputs."""
        changes: dict[str, Any] = {}
        for split, x in _inputs(work.dataset).items():
            changes[f"{PARTS[split][0]}x"] = like.new_zeros(len(x), *like.shape[1:]).detach()
            self._known[split] = torch.zeros(len(x), dtype=torch.bool)
            y = f"{PARTS[split][0]}y"
            changes[y] = getattr(work.dataset, y).to(like.device)
        kind: Literal["image", "table"] = "image" if like.ndim == 4 else "table"
        return replace(work.dataset, kind=kind, mean=(), std=(), **changes)

    def train(
        self, work: Work, tasks: Sequence[Task], method: LocalMethod, stop: Callable[[], bool]
    ) -> Iterator[Update]:
        """See `local.work.Engine`."""
        if not tasks or stop():
            return
        rows = torch.cat([work.partition[task.client] for task in tasks]).unique()
        behind = self._behind(work, tasks[0].state, {"train": rows})
        own = tensors(behind.model).keys()
        short = [replace(task, state={n: t for n, t in task.state.items() if n in own}) for task in tasks]
        whole = {task.client: task.state for task in tasks}
        for update in self.engine.train(behind, short, method, stop):
            self.name = f"{self.engine.name}, frozen part once"
            yield replace(update, state=whole[update.client] | update.state)

    def evaluate(self, work: Work, states: Sequence[State], split: str = "test") -> list[dict[str, float]]:
        """See `local.work.Engine`."""
        rows = work.evaluated_rows(split)
        results: list[dict[str, float]] = []
        for state in states:
            behind = self._behind(work, state, {split: rows})
            own = tensors(behind.model).keys()
            results += self.engine.evaluate(behind, [{n: t for n, t in state.items() if n in own}], split)
        return results


def _inputs(data: Dataset) -> dict[str, Tensor]:
    """The inputs of the splits that there are."""
    found = {split: getattr(data, f"{before}x") for split, (before, _) in PARTS.items()}
    return {split: x for split, x in found.items() if x is not None}
