"""The round loop. There is one: widgets, notebooks, tests and benchmarks all iterate over `Federation.rounds`."""

import contextlib
import copy
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fedlab_core.checkpoint.read import fingerprints, read_run
from fedlab_core.checkpoint.write import write_run
from fedlab_core.costs import Costs
from fedlab_core.data import Dataset
from fedlab_core.engines import get_engine
from fedlab_core.history import Past, Record, Round, Segment, make_record
from fedlab_core.local.cores import single_threaded
from fedlab_core.local.work import Task, Work
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.partition import Partition
from fedlab_core.sampling import aggregation_weights
from fedlab_core.settings import Settings
from fedlab_core.state import State, frozen_names, get_state, local_names, parameter_names, total_variance
from fedlab_core.timeline import Snapshot, Timeline


class Federation:
    """A federated run: data, who holds it, a model, settings and a method, and everything that has happened so far.

    Args:
        dataset: training and test data.
        partition: which client holds which training examples; every client at least one.
        model: the architecture and the initial weights; the caller's module is copied and never changed. Parameters
            that ask for no gradient are held by every client from the start; they never travel or change.
        settings: see `Settings`.
        method: see `fedlab_core.methods`; FedAvg by default.
        name: what the run is called in legends and files.
        memory_mib: limit of the kept snapshots; past it they are thinned, and rounds in between are replayed when
            asked for.
        past: what has happened before, to go on from; settings, method, name and memory limit are then its own.

    Attributes:
        past: everything that has happened, one value that never changes: a round is committed by putting the next in
            its place.

    Raises:
        ValueError: a client without data, or a model with batch normalisation without a named policy for it.
    """

    def __init__(
        self,
        dataset: Dataset,
        partition: Partition,
        model: nn.Module,
        settings: Settings,
        method: FedAvg | None = None,
        *,
        name: str = "run",
        memory_mib: float = 512.0,
        past: Past | None = None,
    ) -> None:
        if int(partition.sizes.min()) < 1:
            empty = int((partition.sizes < 1).nonzero()[0])
            raise ValueError(f"partition: client {empty} holds no example; make it with min_size >= 1")
        self.dataset, self.partition = dataset, partition
        self.model = copy.deepcopy(model).to("cpu")
        self.frozen_names = frozen_names(self.model)
        if past is None:
            method = method or FedAvg()
            first = Snapshot(0, get_state(self.model), {}, {}).placed(settings)
            first = replace(first, server=method.server_memory(self._travelling(first.state)))
            timeline = Timeline(int(memory_mib * 2**20)).added(first, pin=True)
            past = Past(name, None, (Segment(0, settings, method),), (), timeline)
        self._follow(past)

    def _follow(self, past: Past) -> None:
        """Stand at the end of a past; its last segment says how the next round goes."""
        segment = past.segments[-1]
        segment.method.local_settings(segment.settings)  # raises where a method cannot work with the settings
        self.local_names = self._local_names(segment)
        self.trained_names = parameter_names(self.model)
        self.engine = get_engine(segment.settings.engine)
        self.past = past

    def _local_names(self, segment: Segment) -> frozenset[str]:
        if hasattr(self, "past") and segment is self.past.segments[-1]:
            return self.local_names
        if segment.method.personal:
            return frozenset(self.model.state_dict()) - self.frozen_names
        return local_names(self.model, segment.settings.batch_norm) - self.frozen_names

    def _travelling(self, state: State) -> State:
        """What methods and servers see of a model: all but its frozen parameters."""
        return {n: t for n, t in state.items() if n not in self.frozen_names}

    @property
    def name(self) -> str:
        """What the run is called in legends and files."""
        return self.past.name

    @property
    def parent(self) -> tuple[str, int] | None:
        """Name and round of the run that this one was forked from."""
        return self.past.parent

    @property
    def segments(self) -> list[Segment]:
        """Which settings and method the rounds follow."""
        return list(self.past.segments)

    @property
    def settings(self) -> Settings:
        """The settings of the next round."""
        return self.past.segments[-1].settings

    @property
    def method(self) -> FedAvg:
        """The method of the next round."""
        return self.past.segments[-1].method

    @property
    def history(self) -> list[Record]:
        """One record per round, from that of round 0 on."""
        return list(self.past.records)

    @property
    def timeline(self) -> Timeline:
        """The kept snapshots."""
        return self.past.timeline

    @property
    def memory_mib(self) -> float:
        """Limit of the kept snapshots."""
        return self.timeline.limit / 2**20

    @memory_mib.setter
    def memory_mib(self, value: float) -> None:
        self.past = replace(self.past, timeline=replace(self.timeline, limit=int(value * 2**20)))

    @property
    def round(self) -> int:
        """Number of rounds done."""
        return self.past.now.round

    @property
    def state(self) -> State:
        """The global model: parameters and buffers by name."""
        return self.past.now.state

    def rounds(
        self,
        count: int,
        *,
        stop: threading.Event | None = None,
        progress: Callable[[int, int], None] | None = None,
        checkpoint: str | Path | None = None,
    ) -> Iterator[Record]:
        """Runs `count` rounds and yields the record of each. Leaving the loop stops the run; a later call goes on.

        Args:
            stop: once set, the round under way is given up before its next client; what was finished is kept.
            progress: called as progress(clients done, clients sampled) after every client.
            checkpoint: a folder to save the run in after every round, see `save`.
        """
        if count < 0:
            raise ValueError(f"count={count}, accepted: a whole number >= 0")
        if not self.past.records:
            zero = Record(0, self.settings.lr_at(1), self.evaluate(), Costs(), Costs(), [])
            self.past = replace(self.past, records=(zero,))
        if checkpoint is not None:
            self.save(checkpoint)  # what cannot be saved is said before the first round
        for _ in range(count):
            began = time.perf_counter()
            done = self._advance(self.past.now, stop, progress)
            if done is None:
                return
            snapshot, inside = done
            test = functools.partial(self._measure, split="test", round=inside.number + 1)
            record = make_record(self.past, inside, snapshot.state, self.trained_names, test)
            record = replace(record, seconds=time.perf_counter() - began, engine=self.engine.name)
            self.past = self.past.after(record, snapshot)  # the whole round, in one step
            if checkpoint is not None:
                self.save(checkpoint)
            yield record

    def run(self, count: int) -> "Federation":
        """Runs `count` rounds and returns the federation itself."""
        for _ in self.rounds(count):
            pass
        return self

    def evaluate(self, state: State | None = None, split: str = "test") -> dict[str, float]:
        """Loss and accuracy of a state (the global model by default) on the "test" or "train" split."""
        return self.evaluate_states([self.state if state is None else state], split)[0]

    def evaluate_states(self, states: Sequence[State], split: str = "test") -> list[dict[str, float]]:
        """Loss and accuracy of many states."""
        if split not in ("test", "train"):
            raise ValueError(f"split={split!r}, accepted: 'test', 'train'")
        return self._measure(states, split, self.round + 1)

    def _measure(self, states: Sequence[State], split: str, round: int) -> list[dict[str, float]]:
        """Evaluate states as the given round would begin with them."""
        work = self._work(self._segment(round), {}, round)
        with single_threaded():
            results = self.method.evaluate(self.engine, work, states, split)
        return [{f"{split}_{name}": value for name, value in result.items()} for result in results]

    def state_at(self, round: int) -> State:
        """The global model after a round, replayed if its snapshot was thinned."""
        return self._snapshot(round).state

    def inside(self, round: int) -> Round:
        """A round from the inside, with every client's model: replayed from its start, which gives the same bits
        again."""
        if not 1 <= round <= self.round:
            raise ValueError(f"round={round}, accepted: 1 to {self.round}")
        return self._advance(self._snapshot(round - 1))[1]

    def client_state(self, client: int, round: int | None = None) -> State:
        """The model as a client would use it: the global one with the client's own tensors where it keeps some."""
        snapshot = self._snapshot(self.round if round is None else round)
        return self._task(client, snapshot, self._segment(max(1, snapshot.round))).state

    def rewind(self, round: int) -> None:
        """Goes back to the end of a round. Running on from there gives what was there before, bit for bit."""
        self._follow(self.past.until(self._snapshot(round)))

    def fork(self, name: str, *, at: int | None = None, method: FedAvg | None = None, **changes: Any) -> "Federation":
        """A new run that shares this one's past up to round `at` (now by default) and goes on with other settings.

        Args:
            name: what the new run is called.
            at: the round to branch from.
            method: another method; its memories start empty.
            changes: settings to change, such as `lr=0.01` or `batch_norm="frozen"`.
        """
        at = self.round if at is None else at
        now, before = self._snapshot(at), self._segment(max(1, at))
        segment = Segment(at, before.settings.replace(**changes), method or before.method)
        first = now.placed(segment.settings)
        if segment.method != before.method:
            first = replace(first, server=segment.method.server_memory(self._travelling(first.state)), clients={})
        if self._local_names(segment) != self._local_names(before) or segment.settings.double != before.settings.double:
            first = replace(first, clients={})
        other = copy.copy(self)
        other._follow(self.past.forked(name, segment, first))
        return other

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the run into a folder of its own; see `checkpoint.write.write_run`, also for `overwrite`."""
        write_run(self.past, fingerprints(self.dataset, self.partition, self.model), folder, overwrite=overwrite)

    @classmethod
    def load(
        cls, folder: str | Path, dataset: Dataset, partition: Partition, model: nn.Module, **options: Any
    ) -> "Federation":
        """Read a saved run back, ready to go on.

        Args:
            dataset, partition, model: what the run was made with; of the model only the architecture matters.
            options: methods, device, engine, memory_mib: see `checkpoint.read.read_run`, also for what is raised.
        """
        past = read_run(folder, fingerprints(dataset, partition, model), tuple(get_state(model)), **options)
        return cls(dataset, partition, model, past.segments[-1].settings, past=past)

    def _segment(self, round: int) -> Segment:
        return self.past.segment(round)

    def _snapshot(self, round: int) -> Snapshot:
        if not 0 <= round <= self.round:
            raise ValueError(f"round={round}, accepted: 0 to {self.round}")
        snapshot = self.timeline.at_or_before(round)
        while snapshot.round < round:
            snapshot = self._advance(snapshot)[0]
        return snapshot

    def _work(self, segment: Segment, received: State, round: int) -> Work:
        settings = segment.method.local_settings(segment.settings)
        return Work(self.model, self.dataset, self.partition, settings, received, round)

    def _advance(
        self,
        past: Snapshot,
        stop: threading.Event | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Snapshot, Round] | None:
        """One round as a pure function of the snapshot before it; None if stopped."""
        if not self.trained_names:
            raise ValueError("model: none of its parameters asks for a gradient, so there is no round to run")
        number = past.round + 1
        segment = self._segment(number)
        settings, method, clients = segment.settings, segment.method, len(self.partition)
        sampled = method.sample(clients, settings.clients_per_round(clients), settings.seed, number)
        received = method.broadcast(past.server)
        tasks = [self._task(client, past, segment) for client in sampled]
        updates = []
        with single_threaded():
            work = self._work(segment, received, number)
            arriving = method.train(self.engine, work, tasks, stop.is_set if stop else lambda: False)
            with contextlib.closing(arriving):  # whatever interrupts the round, engines leave nothing running
                for update in arriving:  # whatever the engine copied, frozen tensors are kept once
                    updates.append(replace(update, state=past.state | self._travelling(update.state)))
                    if progress is not None:
                        progress(len(updates), len(tasks))
            if len(updates) < len(tasks):
                return None
            weights = aggregation_weights(self.partition.sizes, sampled, settings.weighting)
            sent = [replace(update, state=self._travelling(update.state)) for update in updates]
            merged, server = method.aggregate(self._travelling(past.state), sent, weights, past.server, clients)
            state = past.state | merged
            if settings.batch_norm == "total_variance":
                state = total_variance(self.model, [update.state for update in updates], weights, state)
        local = self._local_names(segment)
        memories = {u.client: {**u.memory, **{n: u.state[n] for n in local}} for u in updates}
        snapshot = Snapshot(number, state, server, past.clients | {c: m for c, m in memories.items() if m})
        stay = local | self.frozen_names
        down = {n: t for n, t in past.state.items() if n not in stay} | received
        return snapshot, Round(number, past.state, down, updates, weights, stay)

    def _task(self, client: int, past: Snapshot, segment: Segment) -> Task:
        """What a client starts a round with: what is sent, and what it has kept or, before its first round, began
        with."""
        memory, local = past.clients.get(client, {}), self._local_names(segment)
        origin = self.timeline.at_or_before(segment.start).state
        return Task(client, {n: memory.get(n, origin[n]) if n in local else t for n, t in past.state.items()}, memory)
