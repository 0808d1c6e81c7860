"""Which snapshots of a run stay, and what they are said to take."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from small import small_data, small_federation, split

from fedlab_core.federation import Federation
from fedlab_core.timeline import Snapshot, Timeline


def grown(sampled: list[int], limit: int, most: int | None) -> list[Timeline]:
    """A timeline of a model of 5 numbers whose sampled client renews its memory of 3 numbers, round by round."""
    clients: dict[int, dict[str, torch.Tensor]] = {}
    timeline = Timeline(limit, most=most).added(Snapshot(0, {"w": torch.zeros(5)}, {}, {}), pin=True)
    past = [timeline]
    for round, client in enumerate(sampled, start=1):
        clients = clients | {client: {"m": torch.full((3,), float(round))}}
        timeline = timeline.added(Snapshot(round, {"w": torch.full((5,), float(round))}, {}, clients))
        past.append(timeline)
    return past


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(40, 2000), st.none() | st.integers(3, 9))
def test_the_last_two_stay_and_the_bytes_are_those_of_the_tensors(sampled, limit, most):
    for round, timeline in enumerate(grown(sampled, limit, most)):
        kept = timeline.rounds()
        assert {0, round, max(0, round - 1)} <= set(kept)
        assert all(r % timeline.stride == 0 for r in kept[:-2])
        tensors = {t.data_ptr(): 4 * t.numel() for snapshot in timeline for t in snapshot.tensors()}
        assert sum(timeline._bytes.values()) == sum(tensors.values())


def test_the_last_round_of_a_thinned_run_is_looked_into_without_running_others(monkeypatch):
    data = small_data()
    whole = small_federation(split(60), data=data)
    run = Federation(data, split(20, 20, 20), whole.model, whole.settings, memory_mib=0.001).run(9)
    replayed = []
    replay = Federation._replay
    monkeypatch.setattr(Federation, "_replay", lambda self, s: replayed.append(s.round) or replay(self, s))
    assert len(run.timeline.rounds()) < 6 and run.inside(9).number == 9
    assert replayed == [8]
