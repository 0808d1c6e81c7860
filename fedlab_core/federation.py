"""The round loop. There is one: widgets, notebooks, tests and benchmarks all iterate over `Federation.rounds`."""

import copy
import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedlab_core.check import Natural, checked, checked_methods, whole
from fedlab_core.checkpoint.read import fingerprints, read_run
from fedlab_core.checkpoint.write import write_run
from fedlab_core.costs import Costs
from fedlab_core.data import Dataset
from fedlab_core.engines import get_engine
from fedlab_core.history import Past, Record, Segment
from fedlab_core.inside import Round, make_record
from fedlab_core.local.cores import single_threaded
from fedlab_core.local.fitness import adapt_output, check_partition, check_tensors, examine, in_precision
from fedlab_core.local.optimisers import forgotten
from fedlab_core.local.work import Stopped
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.partition import Partition
from fedlab_core.round import Rules, check_failures, never
from fedlab_core.settings import Settings
from fedlab_core.standing import Standing
from fedlab_core.state import Roles, State, get_state, roles, set_state, tensors
from fedlab_core.timeline import Snapshot, Timeline


@checked_methods
@checked
class Federation(Standing):
    """A federated run: data, who holds it, a model, settings and a method, and everything that has happened so far.

    Args:
        dataset: training and test data.
        partition: which client holds which training examples; every client at least one.
        model: the architecture and the initial weights; the caller's module is copied and never changed. Parameters
            that ask for no gradient are held by every client from the start; they never travel or change.
        settings: see `Settings`.
        method: see `methods.named.METHODS`; FedAvg by default.
        output: makes logits of the model's answer, where that is not a tensor: `lambda answer: answer[0]`. Answers of
            transformers' models are understood as they are.
        name: what the run is called in legends and files.
        memory_mib: limit of the kept snapshots; past it they are thinned, and rounds in between are replayed when
            asked for.
        past: what has happened before, to go on from; settings, method, name and memory limit are then its own.

    Attributes:
        past: everything that has happened, one value that never changes; a round puts the next in its place.
        model: the architecture with its initial weights; `trained_model` has the trained ones.

    Raises:
        ValueError: data, partition, model, settings and method do not go together; the message says which, and what
            would be accepted.
    """

    def __init__(
        self,
        dataset: Dataset,
        partition: Partition,
        model: nn.Module,
        settings: Settings,
        method: FedAvg | None = None,
        *,
        output: Callable[[Any], Tensor] | None = None,
        name: str = "run",
        memory_mib: float = 512.0,
        past: Past | None = None,
    ) -> None:
        dataset.split("test")  # raises where there is nothing to evaluate with
        check_partition(dataset, partition)
        check_tensors(model)
        self.dataset, self.partition, self._asked = dataset, partition, never
        self._given = copy.deepcopy(model).to("cpu")
        self.model = copy.deepcopy(self._given)
        adapt_output(self.model, output)
        self._roles: dict[tuple[str | None, frozenset[str]], Roles] = {}
        if past is None:
            segment = Segment(0, settings, method or FedAvg())
            first = self._begun(Snapshot(0, get_state(self.model), {}, {}).placed(settings), segment)
            past = Past(name, None, (segment,), (), Timeline(int(memory_mib * 2**20)).added(first, pin=True))
        self._follow(past)

    def _follow(self, past: Past) -> None:
        """Stand at the end of a past; its last segment says how the next round goes."""
        segment = past.segments[-1]
        local = segment.method.local_settings(segment.settings)  # raises where a method cannot work with the settings
        check_failures(segment.settings, segment.method)
        segment.method.check(self.model, self.dataset, self.partition, local)
        with single_threaded():
            self.traits = examine(self.model, self.dataset, self.partition, local, segment.method.asks_for_logits)
        self.roles = self._roles_of(segment)
        self.engine, self.past = get_engine(segment.settings.engine, segment.settings.cache_frozen), past
        self._inside: weakref.WeakValueDictionary[int, Round] = weakref.WeakValueDictionary()
        self.engine.check(self.rules(segment.start + 1).work(segment.start + 1, past.now.server), segment.method)

    def _begun(self, snapshot: Snapshot, segment: Segment) -> Snapshot:
        """A snapshot with the memories that the method of a segment begins with."""
        seen = {name: snapshot.state[name] for name in self._roles_of(segment).travelling}
        return replace(snapshot, server=segment.method.server_memory(seen), clients={})

    def _roles_of(self, segment: Segment) -> Roles:
        """What happens to each tensor of the model in a segment's rounds."""
        key = segment.settings.batch_norm, segment.method.kept(list(tensors(self.model)))
        return self._roles.get(key) or self._roles.setdefault(key, roles(self.model, *key))

    def rules(self, round: int) -> Rules:
        """How a round goes, from 1 on."""
        segment = self.past.segment(round)
        origin = self.timeline.at_or_before(segment.start).state
        parts = self.model, self.dataset, self.partition, self.engine
        return Rules(*parts, segment, self._roles_of(segment), self.traits, origin)

    @property
    def trained_names(self) -> list[str]:
        """Parameters that are trained, in the order of the state."""
        return list(self.roles.trained)

    def rounds(
        self,
        count: Natural,
        *,
        stop: threading.Event | None = None,
        progress: Callable[[int, int], None] | None = None,
        checkpoint: str | Path | None = None,
    ) -> Iterator[Record]:
        """Runs `count` rounds and yields the record of each. Leaving the loop stops the run; a later call goes on.

        Args:
            stop: once set, the round under way is given up before its next local step or evaluated batch; what was
                finished is kept.
            progress: called as progress(clients done, clients sampled) after every client.
            checkpoint: a folder to save the run in after every round, see `save`.

        Raises:
            NonFiniteError: a client handed back a value that is not finite, see `Settings.non_finite`.
        """
        asked = stop.is_set if stop else never
        if not self.past.records:
            try:
                metrics = self.rules(1).measure([self.state], now=self.past.now, stop=asked)[0]
            except Stopped:
                return
            self.past = replace(self.past, records=(Record(0, self.settings.lr_at(1), metrics, Costs(), Costs(), []),))
        if checkpoint is not None:
            self.save(checkpoint)  # what cannot be saved is said before the first round
        for _ in range(count):
            began, rules = time.perf_counter(), self.rules(self.round + 1)
            if (done := rules.advance(self.past.now, asked, progress)) is None:
                return
            snapshot, inside = done
            try:
                test = functools.partial(rules.measure, now=snapshot, stop=asked)
                record = make_record(self.past, inside, snapshot.state, self.roles.trained, test)
            except Stopped:
                return
            record = replace(record, seconds=time.perf_counter() - began, engine=self.engine.name)
            self.past = self.past.after(record, snapshot)  # the whole round, in one step
            self._inside[record.round] = inside  # for as long as the loop stands at it, or somebody holds it
            if checkpoint is not None:
                self.save(checkpoint)
            yield record

    def run(self, count: Natural) -> "Federation":
        """Runs `count` rounds and returns the federation itself."""
        list(self.rounds(count))
        return self

    def evaluate(self, state: State | None = None, split: str = "test", round: int | None = None) -> dict[str, float]:
        """Loss and metrics of a state, by default the global one, as it stands after a round (the last)."""
        return self.evaluate_states([self._snapshot(round).state if state is None else state], split, round)[0]

    def evaluate_states(
        self, states: Sequence[State], split: str = "test", round: int | None = None
    ) -> list[dict[str, float]]:
        """Loss and metrics of many states on the "train", "validation" or "test" split, see `evaluate`."""
        now = self._snapshot(round)
        return self.rules(now.round + 1).measure(states, split=split, now=now, stop=self._asked)

    def state_at(self, round: int) -> State:
        """The global model after a round, replayed if its snapshot was thinned."""
        return self._snapshot(round).state

    def inside(self, round: int) -> Round:
        """A round from the inside, with every client's model; replayed to the same bits unless a loop stands at it."""
        if not 1 <= round <= self.round:
            raise ValueError(f"round={round}, accepted: 1 to {self.round}")
        return self._inside.get(round) or self._replay(self._snapshot(round - 1))[1]

    def trained_model(self, round: int | None = None, client: int | None = None) -> nn.Module:
        """The model as an ordinary PyTorch module on the CPU, in evaluation mode, with the weights after a round.

        A run in float64 gives a module in float64.

        Args:
            round: the last by default.
            client: the model as this client would use it, with its own tensors where it keeps some.
        """
        model = in_precision(copy.deepcopy(self._given), self.settings)
        set_state(model, self._snapshot(round).state if client is None else self.client_state(client, round))
        return model.eval()

    def client_state(self, client: int, round: int | None = None) -> State:
        """The model as a client would use it: the global one with the client's own tensors where it keeps some."""
        snapshot = self._snapshot(round)
        return self.rules(max(1, snapshot.round)).task(client, snapshot).state

    def rewind(self, round: int) -> None:
        """Goes back to the end of a round. Running on from there gives what was there before, bit for bit.

        A fork that goes back below the round where it began has the settings again that it had there, its parent's.
        """
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
        now, before = self._snapshot(at, "at"), self.past.segment(max(1, at))
        segment = Segment(at, before.settings.replace(**changes), method or before.method)
        first = now.placed(segment.settings)
        if segment.method != before.method:
            first = self._begun(first, segment)
        if self._roles_of(segment) != self._roles_of(before) or segment.settings.double != before.settings.double:
            first = replace(first, clients={})
        if segment.settings.optimiser != before.settings.optimiser:  # the other one remembers other things
            first = replace(first, clients={client: forgotten(memory) for client, memory in first.clients.items()})
        other = copy.copy(self)
        other._follow(self.past.forked(name, segment, first))
        return other

    def heeding(self, stop: threading.Event) -> "Federation":
        """The run for probes: replays and evaluations raise `Stopped` before their next step once `stop` is set."""
        other = copy.copy(self)
        other._asked = stop.is_set
        return other

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the run into a folder of its own; see `checkpoint.write.write_run`, also for `overwrite`."""
        write_run(self.past, fingerprints(self.dataset, self.partition, self.model), folder, overwrite=overwrite)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        dataset: Dataset,
        partition: Partition,
        model: nn.Module,
        *,
        output: Callable[[Any], Tensor] | None = None,
        **options: Any,
    ) -> "Federation":
        """Read a saved run back, ready to go on.

        Args:
            dataset, partition, model, output: what the run was made with; of the model only the architecture matters.
            options: methods, device, engine, memory_mib: see `checkpoint.read.read_run`, also for what is raised.
        """
        past = read_run(folder, fingerprints(dataset, partition, model), tuple(get_state(model)), **options)
        return cls(dataset, partition, model, past.segments[-1].settings, output=output, past=past)

    def _snapshot(self, round: int | None, name: str = "round") -> Snapshot:
        round = self.round if round is None else whole(name, round, 0, self.round)
        snapshot = self.timeline.at_or_before(round)
        while snapshot.round < round:
            snapshot = self._replay(snapshot)[0]
        return snapshot

    def _replay(self, snapshot: Snapshot) -> tuple[Snapshot, Round]:
        """The round after a snapshot once more."""
        if (done := self.rules(snapshot.round + 1).advance(snapshot, self._asked)) is None:
            raise Stopped
        return done
