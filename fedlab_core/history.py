"""What a run remembers: one record per round (plain data) and snapshots of its states, thinned to a memory limit."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from fedlab_core.costs import Costs
from fedlab_core.local.work import Update
from fedlab_core.methods import FedAvg
from fedlab_core.settings import Settings
from fedlab_core.state import State, state_bytes


@dataclass(frozen=True)
class Record:
    """One round, as plain data.

    Attributes:
        round: its number; 0 is the model before any training.
        lr: learning rate of the round.
        metrics: numbers about the round by name: test_loss, test_accuracy, train_loss, drift measures.
        costs: of this round.
        total: of all rounds up to this one.
        clients: one row per sampled client: client, examples, steps, loss, drift, ...
        seconds, engine: wall-clock time, and where the clients ran; left out when records are compared.
    """

    round: int
    lr: float
    metrics: dict[str, float]
    costs: Costs
    total: Costs
    clients: list[dict[str, float]]
    seconds: float = field(default=0.0, compare=False)
    engine: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `json` can write; numbers that are not finite become strings."""
        return _plain(asdict(self))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Record":
        """The inverse of `to_json`."""
        return cls(
            round=data["round"],
            lr=float(data["lr"]),
            metrics={name: float(value) for name, value in data["metrics"].items()},
            costs=Costs(**data["costs"]),
            total=Costs(**data["total"]),
            clients=[{n: v if isinstance(v, int) else float(v) for n, v in row.items()} for row in data["clients"]],
            seconds=float(data["seconds"]),
            engine=data.get("engine", ""),
        )

    def row(self) -> dict[str, float]:
        """The round as one flat row: metrics and costs, without the per-client part."""
        totals = {f"total_{name}": value for name, value in asdict(self.total).items()}
        return {
            "round": self.round,
            "lr": self.lr,
            **self.metrics,
            **asdict(self.costs),
            **totals,
            "seconds": self.seconds,
        }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def to_frame(history: Iterable[Record]) -> pd.DataFrame:
    """A table with one row per round."""
    return pd.DataFrame([record.row() for record in history])


def clients_to_frame(history: Iterable[Record]) -> pd.DataFrame:
    """A table with one row per round and sampled client."""
    return pd.DataFrame([{"round": record.round, **row} for record in history for row in record.clients])


def rounds_to_target(history: Sequence[Record], target: float, metric: str = "test_accuracy") -> float:
    """Rounds until a metric first reaches a target, as McMahan et al. (2017, section 3) count them.

    The curve is made monotone (best value so far) and interpolated linearly between evaluated rounds.

    Returns:
        A possibly fractional number of rounds; `math.inf` if the target was never reached.
    """
    best, previous = -math.inf, 0
    for record in history:
        value = record.metrics.get(metric)
        if value is None or math.isnan(value):
            continue
        if value >= target:
            if best == -math.inf:
                return float(record.round)
            return previous + (record.round - previous) * (target - best) / (value - best)
        if value > best:
            best = value
        previous = record.round
    return math.inf


@dataclass(frozen=True)
class Segment:
    """From the round after `start` on, a run follows these settings and this method; a fork begins a new segment."""

    start: int
    settings: Settings
    method: FedAvg


@dataclass(frozen=True)
class Round:
    """One round from the inside.

    Attributes:
        number: from 1.
        start: the global model before it.
        sent: what travelled to each client, model and method's own tensors.
        updates: what each client handed back, ordered by client number.
        weights: the aggregation weights, one per update.
        local_names: tensors of the clients' models that did not travel.
    """

    number: int
    start: State
    sent: State
    updates: list[Update]
    weights: list[float]
    local_names: frozenset[str]

    @property
    def costs(self) -> Costs:
        """What it cost, counted from what was sent."""
        names, updates = self.start.keys() - self.local_names, self.updates
        up = [{n: u.state[n] for n in (names if u.sent is None else u.sent)} for u in updates]
        skipped = [set() if u.fetched is None else names - u.fetched for u in updates]
        down = [{n: t for n, t in self.sent.items() if n not in skip} for skip in skipped]
        return Costs(
            bytes_down=sum(state_bytes(t) + u.bytes_down for t, u in zip(down, updates, strict=True)),
            bytes_up=sum(state_bytes(t) + state_bytes(u.extra) + u.bytes_up for t, u in zip(up, updates, strict=True)),
            steps=sum(u.steps for u in updates),
            examples=sum(u.seen for u in updates),
            exchanges=bool(self.sent) + max(u.exchanges for u in updates),
        )


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything a run needs to go on after a round.

    Attributes:
        round: the round it was taken after; 0 before any training.
        state: the global model. Tensors that never leave the clients hold the clients' mean, for evaluation only.
        server: the server's memory.
        clients: the memory of every client that has taken part, by client number.
    """

    round: int
    state: State
    server: State
    clients: dict[int, State]

    def tensors(self) -> Iterable[Any]:
        """All tensors, some perhaps shared with other snapshots."""
        for state in (self.state, self.server, *self.clients.values()):
            yield from state.values()


class Timeline:
    """Snapshots by round. Past the memory limit only every second, fourth, ... round stays; pinned rounds and the
    last always do."""

    def __init__(self, limit_mib: float = 512.0) -> None:
        self.limit = int(limit_mib * 2**20)
        self.stride = 1
        self._snapshots: dict[int, Snapshot] = {}
        self._bytes: dict[int, int] = {}
        self._pinned: set[int] = set()

    def add(self, snapshot: Snapshot, *, pin: bool = False) -> None:
        """Stores a snapshot taken after all that are stored, or in place of one of the same round."""
        last = max(self._snapshots, default=None)
        if last is not None and last != snapshot.round and not self._stays(last):
            self._drop(last)
        known = {t.data_ptr() for t in self._snapshots[max(self._snapshots)].tensors()} if self._snapshots else set()
        self._snapshots[snapshot.round] = snapshot
        self._bytes[snapshot.round] = sum(
            t.numel() * t.element_size() for t in snapshot.tensors() if t.data_ptr() not in known
        )
        if pin:
            self._pinned.add(snapshot.round)
        while sum(self._bytes.values()) > self.limit and self.stride < snapshot.round:
            self.stride *= 2
            for round in [r for r in self._snapshots if not self._stays(r) and r != snapshot.round]:
                self._drop(round)

    def at_or_before(self, round: int) -> Snapshot:
        """The latest stored snapshot that is not after `round`."""
        return self._snapshots[max(r for r in self._snapshots if r <= round)]

    def rounds(self) -> list[int]:
        """Rounds with a stored snapshot, ascending."""
        return sorted(self._snapshots)

    def until(self, round: int) -> "Timeline":
        """A timeline of its own with the snapshots up to `round`; the tensors are shared."""
        copy = Timeline(self.limit / 2**20)
        copy.stride = self.stride
        copy._snapshots = {r: s for r, s in self._snapshots.items() if r <= round}
        copy._bytes = {r: b for r, b in self._bytes.items() if r <= round}
        copy._pinned = {r for r in self._pinned if r <= round}
        return copy

    def __iter__(self) -> Iterator[Snapshot]:
        return iter([self._snapshots[r] for r in self.rounds()])

    def _stays(self, round: int) -> bool:
        return round % self.stride == 0 or round in self._pinned

    def _drop(self, round: int) -> None:
        del self._snapshots[round], self._bytes[round]
