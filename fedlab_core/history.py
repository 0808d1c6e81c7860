"""What a run remembers: one record per round, as plain data, and everything that has happened as one value."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedlab_core.check import Measured, Natural, checked
from fedlab_core.costs import Costs
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.settings import Settings
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
def rounds_to_target(
    history: Sequence[Record], target: float, metric: str = "test_accuracy", *, smaller: bool | None = None
) -> float:
    """Rounds until a metric first reaches a target, as McMahan et al. (2017, section 3) count them.

    The curve is made monotone (best value so far) and interpolated linearly between evaluated rounds.

    Args:
        smaller: whether smaller values are better; by default those of metrics that end with "loss" or "error".

    Returns:
        A possibly fractional number of rounds; `math.inf` if the target was never reached.
    """
    sign = -1 if (metric.endswith(("loss", "error")) if smaller is None else smaller) else 1
    best, previous, target = -math.inf, 0, sign * target
    for record in history:
        value = sign * record.metrics.get(metric, math.nan)
        if math.isnan(value):
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
