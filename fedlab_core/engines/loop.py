"""The reference engine: one client after the other, on one core."""

from collections.abc import Callable, Iterator, Sequence

from torch import nn

from fedlab_core.check import checked
from fedlab_core.local.training import evaluate, train_client, worker_copy
from fedlab_core.local.work import LocalMethod, Task, Update, Work
from fedlab_core.state import State


@checked
class LoopEngine:
    """One client after the other. Every other engine is compared with its result."""

    name = "loop"

    def __init__(self) -> None:
        self._model: nn.Module | None = None

    def _worker(self, work: Work) -> nn.Module:
        if self._model is None or work.traits.fresh:
            self._model = worker_copy(work)
        return self._model

    def check(self, work: Work, method: LocalMethod) -> None:
        """See `local.work.Engine`; any work can be done here."""

    def train(
        self, work: Work, tasks: Sequence[Task], method: LocalMethod, stop: Callable[[], bool]
    ) -> Iterator[Update]:
        """See `local.work.Engine`."""
        for task in tasks:
            update = train_client(self._worker(work), work, task, method, stop)
            if update is None:
                return
            yield update

    def evaluate(self, work: Work, states: Sequence[State], split: str = "test") -> list[dict[str, float]]:
        """See `local.work.Engine`."""
        return [evaluate(self._worker(work), work, state, split) for state in states]
