"""What a run remembers: one record per round, as plain data, and everything that has happened as one value."""

from __future__ import annotations

import functools
import math
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedlab_core.check import Measured, Natural, checked
from fedlab_core.costs import Costs
from fedlab_core.drift import Drift, drift
from fedlab_core.local.cores import single_threaded
from fedlab_core.local.work import Update
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.settings import Settings
from fedlab_core.state import State, state_bytes
from fedlab_core.timeline import Snapshot, Timeline

if TYPE_CHECKING:
    import pandas as pd


@checked
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
        non_finite: clients that handed back a loss or a weight that is not finite.
        failed: by kind of failure (see `failures.Failures`), the clients that it hit; "lied" are liars that took part.
        seconds, engine: wall-clock time, and where the clients ran; left out when records are compared.
    """

    round: Natural
    lr: float
    metrics: dict[str, Measured]
    costs: Costs
    total: Costs
    clients: list[dict[str, Measured]]
    non_finite: list[int] = field(default_factory=list)
    failed: dict[str, list[int]] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)
    engine: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `json` can write; numbers that are not finite become strings."""
        return _plain(asdict(self))

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


@checked
def to_frame(history: Iterable[Record]) -> pd.DataFrame:
    """A table with one row per round."""
    import pandas as pd  # it takes half a second, and runs need none of it

    return pd.DataFrame([record.row() for record in history])


@checked
def clients_to_frame(history: Iterable[Record]) -> pd.DataFrame:
    """A table with one row per round and sampled client."""
    import pandas as pd  # it takes half a second, and runs need none of it

    return pd.DataFrame([{"round": record.round, **row} for record in history for row in record.clients])


@checked
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


@checked
@dataclass(frozen=True)
class Segment:
    """Settings and method of the rounds after `start`; a fork begins a new segment."""

    start: Natural
    settings: Settings
    method: FedAvg


@checked
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
        non_finite: clients that handed back a loss or a weight that is not finite.
        failed: by kind of failure, the clients that it hit.
    """

    number: Natural
    start: State
    sent: State
    updates: list[Update]
    weights: list[float]
    local_names: frozenset[str]
    non_finite: list[int] = field(default_factory=list)
    failed: dict[str, list[int]] = field(default_factory=dict)

    @property
    def shares(self) -> list[float]:
        """The aggregation weights, scaled to add up to 1."""
        total = sum(self.weights) or 1.0  # no weight at all: every client was left out
        return [weight / total for weight in self.weights]

    def measures(self, names: Sequence[str]) -> tuple[dict[str, float], list[dict[str, float]]]:
        """What local training tells about the round, and about each of its clients.

        The round's measures are taken over the updates that count and are finite, or over all that count where none is
        finite; where none counts, the round has none. Every client's own are relative to the mean of those too.

        Args:
            names: of the trained parameters, over which drift is measured.
        """
        if not self.updates:
            return {}, []
        metrics: dict[str, float] = {}
        weighty = [k for k, weight in enumerate(self.weights) if weight]
        counted = [k for k in weighty if self.updates[k].client not in self.non_finite] or weighty
        finite = [k for k, u in enumerate(self.updates) if u.client not in self.non_finite or k in counted]
        sizes, cosines = ([math.nan] * len(self.updates) for _ in range(2))
        whole = sum(self.weights[k] for k in counted) or 1.0
        if counted:
            shares = {k: self.weights[k] / whole for k in counted}
            moved = self._drift(counted, list(shares.values()), names)
            metrics = {
                "train_loss": sum(share * self.updates[k].loss for k, share in shares.items()),
                "drift": moved.size,
                "relative_drift": moved.relative_size,
                "diversity": moved.diversity,
            }
            if len(counted) > 1:
                metrics["cosine"] = moved.cosine
        if len(weighty) < len(self.updates):
            in_vain = [u for u, weight in zip(self.updates, self.weights, strict=True) if not weight]
            metrics["bytes_in_vain"] = replace(self, updates=in_vain).costs.bytes
        if finite:
            if finite != counted:
                moved = self._drift(finite, [self.weights[k] / whole * (k in counted) for k in finite], names)
            for k, size, cosine in zip(finite, moved.sizes.tolist(), moved.cosine_to_mean.tolist(), strict=True):
                sizes[k], cosines[k] = size, cosine
        rows = [
            {
                "client": u.client,
                "examples": u.examples,
                "steps": u.steps,
                "loss": u.loss,
                "drift": size,
                "cosine_to_mean": cosine,
            }
            for u, size, cosine in zip(self.updates, sizes, cosines, strict=True)
        ]
        return metrics, rows

    def _drift(self, which: Sequence[int], shares: Sequence[float], names: Sequence[str]) -> Drift:
        return drift(self.start, [self.updates[k].state for k in which], shares, names)

    @functools.cached_property
    def costs(self) -> Costs:
        """What it cost, counted from what was sent."""
        names, updates, sizes = self.start.keys() - self.local_names, self.updates, self._sizes
        up = [sum(sizes[n] for n in (names if u.sent is None else names & u.sent)) for u in updates]
        skipped = [frozenset() if u.fetched is None else names - u.fetched for u in updates]
        down = [sum(sizes[n] for n in self.sent if n not in skip) for skip in skipped]
        return Costs(
            bytes_down=sum(size + u.bytes_down for size, u in zip(down, updates, strict=True)),
            bytes_up=sum(size + state_bytes(u.extra) + u.bytes_up for size, u in zip(up, updates, strict=True)),
            steps=sum(u.steps for u in updates),
            examples=sum(u.seen for u in updates),
            exchanges=bool(self.sent) + max((u.exchanges for u in updates), default=0),
        )

    @property
    def _sizes(self) -> dict[str, int]:
        """Bytes of each tensor that may be sent; a client's has the size of the global model's."""
        return {name: tensor.numel() * tensor.element_size() for name, tensor in (self.start | self.sent).items()}


@checked
@dataclass(frozen=True)
class Past:
    """Everything that has happened in a run, as one value: whoever holds it holds whole rounds only.

    Attributes:
        name: what the run is called.
        parent: name and round of the run that it was forked from.
        segments: which settings and method its rounds follow, at least one; the first starts at 0.
        records: one per round, from that of round 0 on; none before the first round has begun.
        timeline: its snapshots; the last is where the run stands.
        withdrawn: records that rewinding took back.
        id: tells the run from all others, also from those that are equal to it.
        places: what `checkpoint` knows of the folders that the run is saved in, by path.
    """

    name: str
    parent: tuple[str, int] | None
    segments: tuple[Segment, ...]
    records: tuple[Record, ...]
    timeline: Timeline
    withdrawn: tuple[Record, ...] = ()
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    places: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def now(self) -> Snapshot:
        """Where the run stands."""
        return self.timeline.last

    def segment(self, round: int) -> Segment:
        """Which settings and method a round follows, from 1 on."""
        return next(segment for segment in reversed(self.segments) if segment.start < round)

    def after(self, record: Record, snapshot: Snapshot) -> Past:
        """The past with one more round."""
        return replace(self, records=(*self.records, record), timeline=self.timeline.added(snapshot))

    def until(self, snapshot: Snapshot) -> Past:
        """The past up to the end of an earlier round, whose snapshot is given."""
        segments = tuple(s for s in self.segments if s.start <= snapshot.round)
        timeline = self.timeline.until(snapshot.round)
        if timeline.last.round < snapshot.round:
            timeline = timeline.added(snapshot)
        records, withdrawn = self.records[: snapshot.round + 1], self.records[snapshot.round + 1 :]
        return replace(
            self, segments=segments, records=records, timeline=timeline, withdrawn=(*self.withdrawn, *withdrawn)
        )

    def forked(self, name: str, segment: Segment, snapshot: Snapshot) -> Past:
        """Another run that shares the past up to the start of a new segment, and goes on from the snapshot there."""
        segments = tuple(s for s in self.segments if s.start < segment.start)
        timeline = self.timeline.until(segment.start).added(snapshot, pin=True)
        records = self.records[: segment.start + 1]
        return Past(name, (self.name, segment.start), (*segments, segment), records, timeline)


@checked
def make_record(
    past: Past, inside: Round, state: State, names: Sequence[str], test: Callable[[list[State]], list[dict[str, float]]]
) -> Record:
    """The record of the round that follows a past, its time and engine left out.

    Args:
        state: the global model after the round.
        names: of the trained parameters.
        test: evaluates models on the test set.
    """
    segment = past.segment(inside.number)
    with single_threaded():
        metrics, rows = inside.measures(names)
    personal = segment.method.personal
    if inside.number % segment.settings.evaluate_every == 0:
        metrics |= {} if personal else test([state])[0]
        if inside.updates and (segment.settings.evaluate_clients or personal):
            results = test([update.state for update in inside.updates])
            for row, result in zip(rows, results, strict=True):
                row |= result
            for key in results[0]:
                pairs = [(share, result[key]) for share, result in zip(inside.shares, results, strict=True) if share]
                if pairs:
                    metrics[key if personal else f"clients_{key}"] = sum(share * value for share, value in pairs)
    total = past.records[-1].total + inside.costs
    lr = segment.settings.lr_at(inside.number)
    return Record(inside.number, lr, metrics, inside.costs, total, rows, inside.non_finite, inside.failed)
