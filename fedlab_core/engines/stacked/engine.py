"""Many clients as one network: their layers' products are batched, so that small models are not bound by overhead.

On a CPU the clients are split into one stack per core, each trained in a thread of its own, where a model's single
operations are large. Where they are short, the threads would wait for each other longer than they work: there one
stack is trained after the other, and those of dense layers on all cores where that pays (see `pace`). Results differ
from those of `loop` by rounding only.
"""

import contextlib
import functools
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor, nn

from fedlab_core.costs import count_flops
from fedlab_core.data.measures import accuracy
from fedlab_core.engines.stacked.evaluation import evaluate_together
from fedlab_core.engines.stacked.modules import Fold
from fedlab_core.engines.stacked.pace import Pace
from fedlab_core.engines.stacked.stack import is_dense, obstacle, refuse, stack, work_obstacle
from fedlab_core.engines.stacked.training import stack_states, train_together
from fedlab_core.engines.threads import ThreadsEngine, in_order
from fedlab_core.local.cores import cores, intra_op_threads
from fedlab_core.local.training import evaluation_batches, one_example, summary, worker_copy
from fedlab_core.local.work import LocalMethod, Task, Update, Work
from fedlab_core.state import State

LARGEST = {"cpu": 10, "cuda": 128}  # clients in a stack: more would not fit the processor's cache
SPREAD = 2  # the largest batch of a stack over its smallest
SMALL = 5e6  # operations of a convolutional net on one example, below which overhead decides rather than arithmetic
EVALUATED = 8  # states evaluated together


class StackedEngine:
    """Stacks of clients.

    Args:
        workers: threads, one stack each at a time; by default as said above, and one on a GPU.
        largest: clients in a stack at most.
    """

    name = "stacked"

    def __init__(self, workers: int | None = None, largest: int | None = None) -> None:
        self.workers, self.largest = workers, largest
        self._split: tuple[nn.Module, bool] | None = None
        self._pace = Pace(cores())
        self._threads = ThreadsEngine(workers)
        self._networks: queue.SimpleQueue[tuple[nn.Module, Fold]] = queue.SimpleQueue()

    @contextlib.contextmanager
    def _network(self, work: Work) -> Iterator[tuple[nn.Module, Fold]]:
        """A stacked network that no other thread uses meanwhile."""
        try:
            network = self._networks.get_nowait()
        except queue.Empty:
            network = stack(worker_copy(work))
        yield network
        self._networks.put(network)

    def _limits(self, work: Work) -> tuple[int, int]:
        """Stacks at a time, and clients in each at most."""
        device = work.settings.device.split(":")[0]
        if self._split is None or self._split[0] is not work.model:
            self._split = work.model, device == "cpu" and not short_operations(work)
        return self.workers or (cores() if self._split[1] else 1), self.largest or LARGEST.get(device, LARGEST["cpu"])

    def check(self, work: Work, method: LocalMethod) -> None:
        """See `local.work.Engine`.

        Raises:
            ValueError: the model or the method cannot be stacked.
        """
        refuse(work_obstacle(work, method) or obstacle(work.model))

    def train(
        self, work: Work, tasks: Sequence[Task], method: LocalMethod, stop: Callable[[], bool]
    ) -> Iterator[Update]:
        """See `local.work.Engine`.

        Raises:
            ValueError: see `check`.
        """
        refuse(work_obstacle(work, method))
        work = _contiguous(work)
        workers, largest = self._limits(work)
        stacks = plan(work, tasks, workers, largest)

        def together(chosen: list[int]) -> list[Update] | None:
            if stop():
                return None
            with self._network(work) as (network, fold), intra_op_threads(1):
                pace = self._pace if workers == 1 else Pace(1)
                return train_together(network, fold, work, [tasks[k] for k in chosen], method, stop, pace)

        finished: dict[int, Update] = {}
        following = 0
        with contextlib.closing(in_order(together, stacks, workers)) as results:
            for chosen, updates in zip(stacks, results, strict=True):
                if updates is None:
                    return
                finished |= zip(chosen, updates, strict=True)
                while following in finished:
                    yield finished.pop(following)
                    following += 1

    def evaluate(self, work: Work, states: Sequence[State], split: str = "test") -> list[dict[str, float]]:
        """See `local.work.Engine`: many states in one pass over the data."""
        workers = self.workers or (cores() if work.settings.device == "cpu" else 1)
        together = EVALUATED if work.settings.device != "cpu" or is_dense(work.model) else 1
        own = work.dataset.loss is not None or list(work.dataset.metrics.values()) != [accuracy]
        if together == 1 or len(states) == 1 or own or work.traits.random:
            if self._threads.workers != workers:
                self._threads = ThreadsEngine(workers)
            return self._threads.evaluate(work, states, split)
        work = _contiguous(work)
        batches = evaluation_batches(work, split)
        parts = min(workers, len(batches))
        together = min(together, -(-len(states) * parts // workers))
        groups = [states[first : first + together] for first in range(0, len(states), together)]

        def evaluate_part(item: tuple[Sequence[State], list[tuple[Tensor, Tensor]]]) -> Tensor:
            with self._network(work) as (network, fold):
                return evaluate_together(network, fold, work, stack_states(item[0]), item[1])

        pieces = [(group, batches[part::parts]) for group in groups for part in range(parts)]
        sums = list(in_order(evaluate_part, pieces, workers))
        totals = [functools.reduce(torch.add, sums[first : first + parts]) for first in range(0, len(sums), parts)]
        return [summary(work.dataset, [row]) for total in totals for row in total]


def _contiguous(work: Work) -> Work:
    """The work in the layout of stacks: channel after channel, those of a client side by side."""
    return replace(work, traits=replace(work.traits, channels_last=False))


def short_operations(work: Work) -> bool:
    """Whether a model's single operations are so short that what they are wrapped in takes longer."""
    if any(isinstance(module, nn.RNNBase) for module in work.model.modules()):
        return False
    return is_dense(work.model) or forward_operations(work) < SMALL


def forward_operations(work: Work) -> float:
    """Multiplications and additions of one example's forward pass, in matrix products and convolutions."""
    model, x = one_example(work)
    with torch.no_grad():
        return count_flops(model, lambda model: model(x))


def plan(work: Work, tasks: Sequence[Task], workers: int, largest: int) -> list[list[int]]:
    """Which tasks are trained together: clients alike in batch size, number of steps and names of their memories.

    Returns:
        positions in `tasks`, each in one stack; the costliest stacks first.
    """
    sizes = [len(work.partition[task.client]) for task in tasks]
    batch = [min(size, work.settings.batch_size or size) for size in sizes]
    costs = [work.settings.local_steps(size) * b for size, b in zip(sizes, batch, strict=True)]
    names = [sorted(task.memory) for task in tasks]
    order = sorted(range(len(tasks)), key=lambda k: (names[k], -batch[k], -costs[k], k))
    share = sum(costs) / (workers * -(-len(tasks) // (workers * largest)))  # of one of equal stacks
    stacks = []
    for _, alike in groupby(order, key=lambda k: names[k]):
        chosen: list[int] = []
        for k in alike:
            cost = sum(costs[i] for i in chosen)
            if chosen and (
                cost + costs[k] / 2 > share or len(chosen) == largest or batch[chosen[0]] > SPREAD * batch[k]
            ):
                stacks.append(chosen)
                chosen = []
            chosen.append(k)
        stacks.append(chosen)
    return sorted(stacks, key=lambda chosen: -sum(costs[k] for k in chosen))
