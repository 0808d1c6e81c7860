"""Every engine gives what `loop` gives: `threads` to the bit, `stacked` within rounding."""

import threading

import pytest
import torch
from small import equal, small_data, small_federation, split

from fedlab_core.engines import get_engine
from fedlab_core.engines.threads import ThreadsEngine, cores, in_order
from fedlab_core.federation import Federation
from fedlab_core.methods import FedAvg, FedProx, Scaffold


def run(engine: object, *sizes: int, method: FedAvg | None = None, rounds: int = 3, **options: object) -> Federation:
    federation = small_federation(split(*sizes), method, **{"batch_size": 4, "double": False} | options)
    federation.engine = engine
    return federation.run(rounds)


@pytest.mark.parametrize("method", [FedAvg(), FedProx(0.1), Scaffold()])
def test_threads_give_the_bits_of_loop(method: FedAvg) -> None:
    options = {"method": method, "norm": "batch", "batch_norm": "local", "evaluate_clients": True, "fraction": 0.8}
    loop, threads = (run(e, 10, 4, 19, 30, 6, **options) for e in (get_engine("loop"), ThreadsEngine(3)))
    assert threads.history == loop.history and equal(threads.state, loop.state)
    assert equal(threads.client_state(2), loop.client_state(2))


def test_threads_evaluate_batches_to_the_bits_of_loop() -> None:
    loop, threads = (run(e, 3000, data=small_data(3000), batch_size=50) for e in (get_engine("loop"), ThreadsEngine(3)))
    assert threads.history == loop.history
    assert threads.evaluate(split="train") == loop.evaluate(split="train")
    states = [loop.state_at(round) for round in range(4)]
    assert threads.evaluate_states(states, "train") == loop.evaluate_states(states, "train")


def test_threads_run_clients_at_the_same_time_and_leave_the_callers_threads_alone() -> None:
    together, before = threading.Barrier(2, timeout=30), torch.get_num_threads()

    def work(number: int) -> tuple[int, int]:
        together.wait()
        return number, torch.get_num_threads()

    assert list(in_order(work, range(4), 2)) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert torch.get_num_threads() == before


def test_what_a_client_raises_arrives_and_later_clients_are_not_begun() -> None:
    begun = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise ValueError("client 0")

    with pytest.raises(ValueError, match="client 0"):
        list(in_order(work, range(1000), 2))
    assert len(begun) < 1000


@pytest.mark.parametrize("engine", [get_engine("loop"), ThreadsEngine(1), ThreadsEngine(2)], ids=["loop", "1", "2"])
def test_stop_is_asked_before_every_client(engine: object) -> None:
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    federation = small_federation(split(5, 5, 5, 5, 5, 5), batch_size=2)
    work = federation._work(federation.segments[0], {}, 1)
    tasks = [federation._task(client, federation._now, federation.segments[0]) for client in range(6)]
    finished = [update.client for update in engine.train(work, tasks, stop)]
    assert finished in ([0, 1, 2], [0, 1])  # two threads may ask in the other order
    assert len(asked) >= 4


def test_a_stopped_round_is_given_up_and_run_again() -> None:
    stop, federation = threading.Event(), small_federation(split(*[5] * 8), batch_size=2)
    federation.engine = ThreadsEngine(2)
    assert list(federation.rounds(2, stop=stop, progress=lambda done, of: stop.set())) == []
    assert federation.round == 0
    assert equal(federation.run(2).state, small_federation(split(*[5] * 8), batch_size=2).run(2).state)


def test_cores_are_limited_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores() >= 1
