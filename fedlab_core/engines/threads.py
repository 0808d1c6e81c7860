"""One client per thread, one intra-op thread each: the bits of `loop`, in about half its time on two cores."""

import contextlib
import functools
import os
import queue
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedlab_core.check import Many, checked
from fedlab_core.local.cores import cores
from fedlab_core.local.training import batch_sums, evaluation_batches, summary, train_client, worker_copy
from fedlab_core.local.work import LocalMethod, Task, Update, Work
from fedlab_core.state import State, set_state

Item = TypeVar("Item")
Result = TypeVar("Result")


@checked
def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: Many) -> Generator[Result, None, None]:
    """`map` in worker threads of one intra-op thread each; the results come in the order of the items.

    Leaving the iterator, by an exception too, cancels the items not yet begun and waits for the others.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pool = _pool(workers)
    futures = [pool.submit(function, item) for item in items]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


@functools.lru_cache
def _pool(workers: int) -> ThreadPoolExecutor:
    # The number of intra-op threads belongs to the thread that sets it; a new thread begins with what was set last.
    return ThreadPoolExecutor(workers, "fedlab", initializer=torch.set_num_threads, initargs=(1,))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has no threads but its first


@checked
class ThreadsEngine:
    """One client per thread.

    Args:
        workers: threads; by default one per core, see `cores`.
    """

    name = "threads"

    def __init__(self, workers: Many | None = None) -> None:
        self.workers = workers or cores()
        self._models: queue.SimpleQueue[nn.Module] = queue.SimpleQueue()

    @contextlib.contextmanager
    def _model(self, work: Work) -> Iterator[nn.Module]:
        """A model that no other thread uses meanwhile."""
        if work.traits.fresh:
            yield worker_copy(work)
            return
        try:
            model = self._models.get_nowait()
        except queue.Empty:
            model = worker_copy(work)
        yield model
        self._models.put(model)

    def check(self, work: Work, method: LocalMethod) -> None:
        """See `local.work.Engine`; any work can be done here."""

    def train(
        self, work: Work, tasks: Sequence[Task], method: LocalMethod, stop: Callable[[], bool]
    ) -> Iterator[Update]:
        """See `local.work.Engine`."""

        def client(task: Task) -> Update | None:
            with self._model(work) as model:
                return train_client(model, work, task, method, stop)

        with contextlib.closing(in_order(client, tasks, self.workers)) as updates:
            for update in updates:
                if update is None:
                    return
                yield update

    def evaluate(self, work: Work, states: Sequence[State], split: str = "test") -> list[dict[str, float]]:
        """See `local.work.Engine`."""
        batches = evaluation_batches(work, split)
        parts = 1 if len(states) % self.workers == 0 else min(self.workers, len(batches))
        pieces = [(state, batches[part::parts]) for state in states for part in range(parts)]  # long batches come first

        def piece(item: tuple[State, list[tuple[Tensor, Tensor]]]) -> list[Tensor]:
            with self._model(work) as model:
                set_state(model, item[0])
                return [batch_sums(model, work, x, y) for x, y in item[1]]

        sums = list(in_order(piece, pieces, self.workers))
        whole = [[sums[i + k % parts][k // parts] for k in range(len(batches))] for i in range(0, len(sums), parts)]
        return [summary(work.dataset, own) for own in whole]
