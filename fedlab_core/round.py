"""One round as a pure function of the snapshot before it: broadcast, local training, aggregation."""

import contextlib
import functools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from torch import nn

from fedlab_core.aggregation import merge_untrained, unchanged
from fedlab_core.check import checked
from fedlab_core.data import Dataset
from fedlab_core.failures import Failures
from fedlab_core.history import Record, Segment
from fedlab_core.inside import Round
from fedlab_core.local.cores import single_threaded
from fedlab_core.local.fitness import Traits
from fedlab_core.local.work import Engine, Task, Update, Work
from fedlab_core.memory import fits
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.partition import Partition
from fedlab_core.sampling import aggregation_weights, objective_shares
from fedlab_core.settings import Settings
from fedlab_core.state import Roles, State, is_finite
from fedlab_core.timeline import Snapshot

STALE = "received."
"""Begins the names under which a client's memory holds the model that it last received."""


def never() -> bool:
    """Asked whether to stop: no."""
    return False


@checked
@dataclass(frozen=True)
class Rules:
    """Everything that decides how the rounds of a segment go.

    Attributes:
        model: the architecture.
        segment: settings and method.
        roles: what happens to each tensor of the model.
        traits: what engines have to know about the model.
        origin: the global model at the start of the segment: what clients hold of tensors that never travel, before
            their first round.
    """

    model: nn.Module
    dataset: Dataset
    partition: Partition
    engine: Engine
    segment: Segment
    roles: Roles
    traits: Traits
    origin: State

    @property
    def failures(self) -> Failures:
        """How clients fail; by default never."""
        return self.segment.settings.failures or Failures()

    def seen(self, state: State) -> State:
        """What methods and servers see of a model: the trained parameters that travel."""
        return {name: state[name] for name in self.roles.travelling}

    def work(self, round: int, server: State, stop: Callable[[], bool] = never) -> Work:
        """What the clients of a round have in common."""
        method, settings = self.segment.method, self.segment.settings
        return Work(
            model=self.model,
            dataset=self.dataset,
            partition=self.partition,
            settings=method.local_settings(settings),
            received=method.broadcast(server),
            round=round,
            roles=self.roles,
            traits=self.traits,
            stop=stop,
        )

    def task(self, client: int, past: Snapshot, stale: bool = False) -> Task:
        """What a client starts the round after a snapshot with: what is sent, and what it has kept.

        Args:
            stale: begin with what was sent to the client the last time.
        """
        memory, local, origin = past.clients.get(client, {}), self.roles.local, self.origin
        state = {n: memory.get(n, origin[n]) if n in local else t for n, t in past.state.items()}
        if stale:
            state |= {n: memory[STALE + n] for n in self.roles.travelling if STALE + n in memory}
        return Task(client, state, {n: t for n, t in memory.items() if not n.startswith(STALE)})

    def measure(
        self,
        states: Sequence[State],
        examples: int | None = None,
        split: str = "test",
        *,
        now: Snapshot,
        stop: Callable[[], bool] = never,
    ) -> list[dict[str, float]]:
        """Evaluate states as the round after a snapshot would begin with them.

        Args:
            examples: take only so many of the split, see `Work.evaluated_rows`; where these are not all, the results
                say how many.

        Raises:
            Stopped: `stop()` was true before a batch.
        """
        with single_threaded(), fits(split=split, engine=self.segment.settings.engine):
            work = replace(self.work(now.round + 1, now.server, stop), tested=examples)
            results = self.segment.method.evaluate(self.engine, work, states, split)
        if examples is not None and examples < len(self.dataset.split(split)[0]):
            results = [result | {"examples": float(examples)} for result in results]
        return [{f"{split}_{name}": value for name, value in result.items()} for result in results]

    def advance(
        self,
        past: Snapshot,
        stop: Callable[[], bool] = never,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Snapshot, Round] | None:
        """The round after a snapshot; None if stopped.

        Raises:
            ValueError: the model has nothing to train.
            NonFiniteError: a client handed back a value that is not finite, and the settings do not let that pass.
        """
        if not self.roles.trained:
            raise ValueError("model: none of its parameters asks for a gradient, so there is no round to run")
        number, settings, method = past.round + 1, self.segment.settings, self.segment.method
        clients, sizes = len(self.partition), self.partition.sizes
        failures = self.failures
        sampled = method.sample(clients, settings.clients_per_round(clients), settings.seed, number)
        failed = failures.draw(sampled, clients, settings.seed, number)
        sampled = [client for client in sampled if client not in failed["unavailable"]]
        tasks = [self.task(client, past, client in failed["stale"]) for client in sampled]
        untouched = _versions(past, sampled)
        work = self.work(number, past.server)
        if failures.lie == "labels_flipped" and failures.liars:
            liars = failures.lying(clients, settings.seed)
            work = replace(work, dataset=with_flipped_labels(self.dataset, self.partition, liars))
        with single_threaded(), fits(batch_size=settings.batch_size, engine=settings.engine):
            updates = self._trained(work, tasks, failed["late"], past.state, stop, progress)
            if len(updates) < len(tasks):
                return None
            updates = [self._sent(number, task, update, failed) for task, update in zip(tasks, updates, strict=True)]
            shares = objective_shares(sizes, sampled, settings.weighting)
            updates = [
                replace(update, round=number, share=share) for update, share in zip(updates, shares, strict=True)
            ]
            arrived = [update for update in updates if update.client not in failed["lost"]]
            counted, lost = self._screened(number, arrived)
            weights = aggregation_weights(sizes, [u.client for u in counted], settings.weighting) if counted else []
            state, server = self._merged(past, counted, weights) if counted else (past.state, past.server)
        if _versions(past, sampled) != untouched:
            raise ValueError(
                f"method {method.name!r}: a hook changed a tensor that it was given (`start`, `received`, `memory`) in "
                "place, and with it the rounds before, accepted: changes of a clone; begin the run anew"
            )
        kept = {f"{STALE}{n}": past.state[n] for n in self.roles.travelling} if failures.stale else {}
        memories = {u.client: {**u.memory, **{n: u.state[n] for n in self.roles.local}, **kept} for u in counted}
        snapshot = Snapshot(number, state, server, past.clients | {c: m for c, m in memories.items() if m})
        stay = self.roles.local | self.roles.frozen | unchanged(self.roles, past.state, updates)
        sent = {name: tensor for name, tensor in past.state.items() if name not in stay} | work.received
        weight_of = dict(zip((u.client for u in counted), weights, strict=True))
        own = [weight_of.get(update.client, 0.0) for update in updates]
        failed = {kind: hit for kind, hit in failed.items() if hit}
        return snapshot, Round(number, past.state, sent, updates, own, stay, lost, failed)

    def _trained(
        self,
        work: Work,
        tasks: Sequence[Task],
        late: Sequence[int],
        start: State,
        stop: Callable[[], bool],
        progress: Callable[[int, int], None] | None,
    ) -> list[Update]:
        """The clients' updates in the order of the tasks, fewer if stopped; late clients do fewer steps."""
        groups: dict[int | None, list[Task]] = {}
        settings, method = work.settings, self.segment.method
        for task in tasks:
            steps = settings.local_steps(len(self.partition[task.client])) if task.client in late else 0
            short = self.failures.steps(task.client, steps, settings.seed, work.round) if steps > 1 else None
            groups.setdefault(short, []).append(task)
        updates: dict[int, Update] = {}
        for short, group in groups.items():
            own = work if short is None else replace(work, settings=settings.replace(steps=short))
            arriving = cast(Generator[Update, None, None], method.train(self.engine, own, group, stop))
            with contextlib.closing(arriving):
                for update in arriving:  # whatever the engine copied, frozen tensors are kept once
                    moved = {name: tensor for name, tensor in update.state.items() if name not in self.roles.frozen}
                    updates[update.client] = replace(update, state=start | moved)
                    if progress is not None:
                        progress(len(updates), len(tasks))
        return [updates[task.client] for task in tasks if task.client in updates]

    def _sent(self, round: int, task: Task, update: Update, failed: Mapping[str, Sequence[int]]) -> Update:
        """What arrives of an update: garbage from a client that lies, nothing from one that is cut off."""
        settings = self.segment.settings
        if update.client in failed["lied"]:
            own = self.seen(update.state), self.seen(task.state)
            update = replace(
                update, state=update.state | self.failures.garbage(*own, settings.seed, round, update.client)
            )
        return replace(update, sent=frozenset(), extra={}, bytes_up=0) if update.client in failed["lost"] else update

    def _screened(self, round: int, updates: Sequence[Update]) -> tuple[Sequence[Update], list[int]]:
        """The updates that count, and the clients whose values are not finite."""
        settings, names = self.segment.settings, self.roles.trained
        if all(math.isfinite(u.loss) for u in updates) and is_finite([u.state for u in updates], names):
            return updates, []
        lost = [u.client for u in updates if not (math.isfinite(u.loss) and is_finite([u.state], names))]
        if lost and settings.non_finite == "raise":
            raise NonFiniteError(round, next(u for u in updates if u.client == lost[0]), settings)
        skip = set(lost) if settings.non_finite == "skip_client" else set()
        return [update for update in updates if update.client not in skip], lost

    def _merged(self, past: Snapshot, updates: Sequence[Update], weights: Sequence[float]) -> tuple[State, State]:
        """The next global model and server memory."""
        method, policy = self.segment.method, self.segment.settings.batch_norm
        sent = [replace(update, state=self.seen(update.state)) for update in updates]
        start, memory = ({n: t.clone() for n, t in state.items()} for state in (self.seen(past.state), past.server))
        merged, server = method.aggregate(start, sent, weights, memory, len(self.partition))
        if unknown := merged.keys() - past.state.keys():
            raise ValueError(f"method {method.name!r}: aggregate returned {_listed(unknown)}, which the model lacks")
        rest = merge_untrained(self.model, self.roles, past.state, updates, weights, policy)
        return past.state | merged | rest, server


def _versions(past: Snapshot, clients: Sequence[int]) -> list[int]:
    """How often each tensor that a round begins with has been changed in place."""
    states = past.state, past.server, *(past.clients.get(client, {}) for client in clients)
    return [tensor._version for state in states for tensor in state.values()]


@checked
@functools.lru_cache(maxsize=2)
def with_flipped_labels(dataset: Dataset, partition: Partition, clients: frozenset[int]) -> Dataset:
    """The data set with class c named (classes - 1 - c) in all training examples of some clients."""
    if dataset.y.ndim != 1 or dataset.y.is_floating_point():
        raise ValueError(
            f"failures.lie='labels_flipped': {dataset.name} has no class per example, accepted: other lies"
        )
    y = dataset.y.clone()
    for client in clients:
        own = dataset.y[partition[client]]
        y[partition[client]] = (len(dataset.classes) - 1 - own).where(own >= 0, own)  # -100 has no class
    return replace(dataset, y=y)


@checked
def check_failures(settings: Settings, method: FedAvg) -> None:
    """Raise ValueError where a method's clients wait for each other, and some are to be late."""
    if settings.failures and settings.failures.late and type(method).train is not FedAvg.train:
        raise ValueError(
            f"failures.late={settings.failures.late}: the clients of {method.name} train together, accepted: 0"
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


@checked
def while_finite(records: Iterable[Record]) -> Iterator[Record]:
    """The records of `Federation.rounds` up to the first round in which a value is not finite."""
    with contextlib.suppress(NonFiniteError):
        yield from records


class NonFiniteError(ArithmeticError):
    """A client handed back a loss or a weight that is not finite.

    Attributes:
        round, client, loss, lr: where it happened.
    """

    def __init__(self, round: int, update: Update, settings: Settings) -> None:
        self.round, self.client, self.loss, self.lr = round, update.client, update.loss, settings.lr_at(round)
        super().__init__(
            f"round {round}: client {self.client} handed back values that are not finite (mean training loss "
            f"{self.loss:g}, lr={self.lr:g}). The run stands at round {round - 1}. Take a smaller lr or set clip_norm; "
            "non_finite='skip_client' leaves such clients out, 'keep' goes on"
        )
