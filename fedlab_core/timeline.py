"""Snapshots of a run's states, thinned to a memory limit."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from fedlab_core.check import Natural, Size, checked
from fedlab_core.settings import Settings
from fedlab_core.state import State


@checked
@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything a run needs to go on after a round.

    Attributes:
        round: the round it was taken after; 0 before any training.
        state: the global model. Tensors that never leave the clients hold the clients' mean, for evaluation only.
        server: the server's memory.
        clients: the memory of every client that has taken part, by client number.
    """

    round: Natural
    state: State
    server: State
    clients: dict[int, State]

    def placed(self, settings: Settings) -> "Snapshot":
        """The snapshot with its tensors on the device of the settings, and in float64 if they say so."""

        def place(state: State) -> State:
            wide = settings.double
            return {
                n: t.to(settings.device, torch.float64 if wide and t.is_floating_point() else t.dtype)
                for n, t in state.items()
            }

        clients = {client: place(memory) for client, memory in self.clients.items()}
        return Snapshot(self.round, place(self.state), place(self.server), clients)

    def tensors(self) -> Iterable[Tensor]:
        """All tensors, some perhaps shared with other snapshots."""
        for state in (self.state, self.server, *self.clients.values()):
            yield from state.values()


@checked
@dataclass(frozen=True)
class Timeline:
    """Snapshots by round, as a value: whatever adds to it or cuts it returns a new one that shares the snapshots.

    Past a limit only every second, fourth, ... round stays; pinned rounds and the last two always do, so that the last
    round can be looked into at once.

    Attributes:
        limit: bytes of the kept tensors.
        stride: of the rounds that are not pinned, those that it divides stay.
        most: snapshots that are kept, None for any number.
    """

    limit: Natural = 512 * 2**20
    stride: Size = 1
    _snapshots: Mapping[int, Snapshot] = field(default_factory=dict)  # by round, ascending
    _bytes: Mapping[int, int] = field(default_factory=dict)  # of each that the one before it does not share
    _pinned: frozenset[int] = frozenset()
    most: int | None = None

    def added(self, snapshot: Snapshot, *, pin: bool = False) -> "Timeline":
        """The timeline with one more snapshot, later than all others or in the place of one of the same round."""
        round, stride = snapshot.round, self.stride
        pinned = self._pinned | {round} if pin else self._pinned
        stay = pinned | {round - 1}
        kept = {r: s for r, s in self._snapshots.items() if r != round and (r % stride == 0 or r in stay)}
        kept[round] = snapshot
        latest = [*pairwise([-1, *kept])][-2:]  # what was before the last but one may have gone
        sizes = {r: self._bytes.get(r, 0) for r in kept}
        sizes |= {r: _new_bytes(kept[r], kept.get(before)) for before, r in latest}
        most = len(kept) if self.most is None else self.most
        while (sum(sizes.values()) > self.limit or len(kept) > most) and stride < round:
            stride *= 2
            kept = {r: s for r, s in kept.items() if r % stride == 0 or r in stay or r == round}
            sizes = {r: _new_bytes(kept[r], kept.get(before)) for before, r in pairwise([-1, *kept])}
        return Timeline(self.limit, stride, kept, sizes, pinned, self.most)

    @property
    def last(self) -> Snapshot:
        """The latest snapshot."""
        return self._snapshots[max(self._snapshots)]

    def at_or_before(self, round: int) -> Snapshot:
        """The latest stored snapshot that is not after `round`."""
        return self._snapshots[max(r for r in self._snapshots if r <= round)]

    def rounds(self) -> list[int]:
        """Rounds with a stored snapshot, ascending."""
        return sorted(self._snapshots)

    def until(self, round: int) -> "Timeline":
        """The timeline with the snapshots up to `round` only."""
        kept = {r: s for r, s in self._snapshots.items() if r <= round}
        pinned = frozenset(r for r in self._pinned if r <= round)
        return replace(self, _snapshots=kept, _bytes={r: self._bytes[r] for r in kept}, _pinned=pinned)

    def __iter__(self) -> Iterator[Snapshot]:
        return iter([self._snapshots[r] for r in self.rounds()])


def _new_bytes(snapshot: Snapshot, before: Snapshot | None) -> int:
    known = {t.data_ptr() for t in before.tensors()} if before else set()
    return sum(t.numel() * t.element_size() for t in snapshot.tensors() if t.data_ptr() not in known)
