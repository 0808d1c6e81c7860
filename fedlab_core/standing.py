"""Where a run stands, read off its past."""

from fedlab_core.history import Past, Record, Segment
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.settings import Settings
from fedlab_core.state import State
from fedlab_core.timeline import Timeline


class Standing:
    """The part of a `Federation` that only looks at `past`, the one value that a round replaces."""

    past: Past

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
    def round(self) -> int:
        """Number of rounds done."""
        return self.past.now.round

    @property
    def state(self) -> State:
        """The global model: parameters and buffers by name."""
        return self.past.now.state
