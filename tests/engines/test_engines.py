"""Every engine gives what `loop` gives: `threads` to the bit, `stacked` within rounding."""

import dataclasses
import functools
import threading
import time
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import equal, gap, small_data, small_federation, split
from torch import nn

from fedlab_core.checkpoint.manifest import record_from_json
from fedlab_core.data import Dataset
from fedlab_core.engines import get_engine
from fedlab_core.engines.auto import choose
from fedlab_core.engines.stacked import pace
from fedlab_core.engines.stacked.dense import DenseStack
from fedlab_core.engines.stacked.engine import StackedEngine, plan
from fedlab_core.engines.stacked.functions import Descent
from fedlab_core.engines.stacked.stack import obstacle
from fedlab_core.engines.threads import ThreadsEngine, in_order
from fedlab_core.federation import Federation
from fedlab_core.local.cores import cores, intra_op_threads
from fedlab_core.local.training import on_device, own_gradients
from fedlab_core.local.work import Context, Task
from fedlab_core.methods.client import FedDyn, FedProx, Moon, Scaffold
from fedlab_core.methods.fedavg import FedAvg, FedSGD, LocalOnly
from fedlab_core.models import NORMS, build_model
from fedlab_core.partition import iid
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import BATCH_NORM_POLICIES


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
        time.sleep(0.01)

    with pytest.raises(ValueError, match="client 0"):
        list(in_order(work, range(1000), 2))
    assert len(begun) < 1000


@pytest.mark.parametrize("engine", [get_engine("loop"), ThreadsEngine(1), ThreadsEngine(2)], ids=["loop", "1", "2"])
def test_stop_is_asked_before_every_step(engine: object) -> None:
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    federation = small_federation(split(5, 5, 5, 5, 5, 5), batch_size=None)
    work = federation.rules(1).work(1, {})
    tasks = [federation.rules(1).task(client, federation.past.now) for client in range(6)]
    finished = [update.client for update in engine.train(work, tasks, FedAvg(), stop)]
    if engine.name == "threads" and engine.workers == 2:
        assert finished == [0, 1, 2][: len(finished)]  # a later client may have asked before an earlier one
    else:
        assert finished == [0, 1, 2]
    assert len(asked) >= 4


def test_a_stopped_round_is_given_up_and_run_again() -> None:
    stop = threading.Event()

    class Waiting(FedAvg):
        def begin(self, context: Context) -> None:
            if context.client:  # no second client gets to its first step before the first one has stopped the round
                assert stop.wait(60)

    federation = small_federation(split(*[5] * 8), method=Waiting(), batch_size=2)
    federation.engine = ThreadsEngine(2)
    assert list(federation.rounds(2, stop=stop, progress=lambda done, of: stop.set())) == []
    assert federation.round == 0
    assert equal(federation.run(2).state, small_federation(split(*[5] * 8), batch_size=2).run(2).state)


def test_gradients_that_share_memory_are_corrected_once() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2))
    rows = torch.cat([a, torch.ones(1)])[None] + b[None, None].expand(-1, 1, -1).flatten(0, 1)
    rows.square().sum().backward()
    assert a.grad.data_ptr() == b.grad.data_ptr()
    for grad in own_gradients({"a": a, "b": b}).values():
        grad.add_(1)
    assert a.grad.tolist() == [5] and b.grad.tolist() == [5, 5]


def test_cores_are_limited_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores() >= 1


MODELS = {
    "2nn": ("none", {}),
    "mlp": (NORMS, {"hidden": (6, 4)}),
    "cnn": ("none", {}),
    "small_cnn": (NORMS, {"channels": (4, 6)}),
    "resnet8": (("none", "batch", "group", "weight"), {"channels": (4, 4, 8)}),
    "vit": ("none", {"dim": 8, "heads": 2, "depth": 2}),
    "lstm": ("none", {"hidden": 5, "embedding": 3}),
}


@functools.lru_cache
def drawn_data(kind: str, n: int) -> Dataset:
    """2x8x8 images, or text of 5 characters, some of them without a target."""
    draws = generator(n, "data of the engines' tests")
    if kind == "image":
        y = torch.randint(3, (n,), generator=draws)
        x = (torch.randint(0, 100, (n, 2, 8, 8), generator=draws) + 50 * y[:, None, None, None]).to(torch.uint8)
        return Dataset("drawn", "image", x, y, x[:9], y[:9], ("a", "b", "c"), (0.4, 0.4), (0.2, 0.2))
    x = torch.randint(7, (n, 5), generator=draws)
    y = x.roll(-1, 1)
    y[:, -1] = -100
    y[::3, 3] = -100
    return Dataset("drawn", "text", x, y, x[:9], y[:9], tuple("abcdefg"))


@st.composite
def federations(draw: st.DrawFn) -> Federation:
    """Any model with any norm, unequal clients, any local work, some methods; float64."""
    name = draw(st.sampled_from(sorted(MODELS)))
    norms, options = MODELS[name]
    norm = draw(st.sampled_from(norms)) if isinstance(norms, tuple) else norms
    sizes = draw(st.lists(st.integers(2, 11), min_size=2, max_size=6))
    batch = draw(st.sampled_from([None, 3, 4]))
    if norm == "batch":  # a batch of one example has no variance
        sizes = [size + (batch is not None and size % batch == 1) for size in sizes]
    method = draw(st.sampled_from([FedAvg(), FedProx(0.3), Scaffold(), FedDyn(), FedSGD(), LocalOnly()]))
    scaffold = isinstance(method, Scaffold)
    work = draw(st.sampled_from([{"epochs": 1}, {"epochs": 2}, {"steps": 3}]))
    settings = Settings(fraction=draw(st.sampled_from([0.5, 1.0])), batch_size=batch, lr=0.05, double=True).replace(
        momentum=0.0 if scaffold else draw(st.sampled_from([0.0, 0.9])),
        weight_decay=0.0 if scaffold else draw(st.sampled_from([0.0, 0.1])),
        batch_norm=draw(st.sampled_from(sorted(BATCH_NORM_POLICIES))) if norm == "batch" else None,
        evaluate_clients=draw(st.booleans()),
        client_examples=draw(st.sampled_from([None, 3])),
        **work,
    )
    data = drawn_data("text" if name == "lstm" else "image", sum(sizes))
    model = build_model(name, data.input_shape, data.num_classes, generator(0, "initial weights"), norm=norm, **options)
    return Federation(data, split(*sizes), model, settings, method)


@settings(max_examples=40)
@given(federations(), st.sampled_from([(1, None), (1, 2), (2, 3)]))
def test_stacked_gives_what_loop_gives_within_rounding(loop: Federation, limits: tuple[int, int | None]) -> None:
    stacked = loop.fork("stacked", at=0)
    stacked.engine = StackedEngine(*limits)
    loop.run(2)
    stacked.run(2)
    assert gap(stacked.state, loop.state) < 1e-9
    for ours, theirs in zip(stacked.history, loop.history, strict=True):
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-7, abs=1e-9)
        assert ours.costs == theirs.costs
        for mine, other in zip(ours.clients, theirs.clients, strict=True):
            assert mine == pytest.approx(other, rel=1e-7, abs=1e-9)


def test_stacked_float32_training_is_as_close_as_rounding_allows() -> None:
    loop, stacked = (run(e, 10, 4, 19, 30, 6, lr=0.05) for e in (get_engine("loop"), get_engine("stacked")))
    assert 0 < gap(stacked.state, loop.state) < 1e-5 or equal(stacked.state, loop.state)


def test_stacked_evaluates_many_states_as_one_by_one() -> None:
    loop = run(get_engine("loop"), 1500, data=small_data(1500), batch_size=50, double=True, rounds=4)
    states = [loop.state_at(round) for round in range(5)] * 5
    stacked = loop.fork("stacked")
    stacked.engine = StackedEngine(2)
    for split_name in ("train", "test"):
        for ours, theirs in zip(
            stacked.evaluate_states(states, split_name), loop.evaluate_states(states, split_name), strict=True
        ):
            assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(("name", "norm"), [("mlp", "batch"), ("small_cnn", "batch"), ("vit", "none"), ("2nn", "none")])
def test_states_that_share_tensors_are_evaluated_together(name: str, norm: str) -> None:
    data = drawn_data("image", 40)
    options = {"dim": 8, "depth": 1} if name == "vit" else {}
    model = build_model(name, data.input_shape, 3, generator(0, "initial weights"), norm=norm, **options)
    federation = Federation(data, split(20, 20), model, Settings(batch_norm="average" if norm == "batch" else None))
    state = federation.state
    last = list(state)[-1]
    states = [state, state, {**state, last: state[last] + 1}]
    together = federation.fork("stacked", engine="stacked")
    for engine in (StackedEngine(2), StackedEngine(1)):
        together.engine = engine
        found = together.evaluate_states(states[:2]) + together.evaluate_states(states)
        for ours, theirs in zip(found, federation.evaluate_states([*states[:2], *states]), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


def test_stacked_stops_between_steps() -> None:
    federation = small_federation(split(6, 6, 6), batch_size=1)
    work, asked = federation.rules(1).work(1, {}), []
    tasks = [federation.rules(1).task(client, federation.past.now) for client in range(3)]

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 4

    assert list(StackedEngine(1).train(work, tasks, FedAvg(), stop)) == [] and len(asked) == 5


def test_plan_puts_alike_clients_together_and_everyone_once() -> None:
    federation = small_federation(split(*[10] * 7, *[40] * 6, 3), batch_size=None)
    work = federation.rules(1).work(1, {})
    kept = {"control": torch.zeros(1)}
    tasks = [Task(client, federation.state, kept if client == 0 else {}) for client in range(14)]
    stacks = plan(work, tasks, workers=2, largest=4)
    assert sorted(k for chosen in stacks for k in chosen) == list(range(14))
    assert [0] in stacks and [13] in stacks  # other memories, other batch size
    assert max(map(len, stacks)) <= 4
    assert all(len({len(work.partition[k]) for k in chosen}) == 1 for chosen in stacks)


def test_what_cannot_be_stacked_is_refused_with_a_reason() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    assert obstacle(nn.Sequential(nn.Linear(2, 2), Scale())) == "1 (Scale) holds weights of an unknown kind"
    assert "random" in obstacle(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))
    assert "options" in obstacle(nn.LSTM(2, 2))
    twice = nn.Linear(2, 2)
    assert "shared" in obstacle(nn.Sequential(twice, twice))
    with pytest.raises(ValueError, match="MOON has begin and loss of its own, accepted: 'threads'"):
        small_federation(split(10, 10), Moon(), engine="stacked")


class Foreign(nn.Module):
    """A model of somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1) - x.flatten(1).mean(0))


def test_auto_says_what_it_picks_by_model_method_and_device() -> None:
    federation = small_federation(split(20, 20), batch_size=5, engine="auto").run(1)
    assert federation.history[1].engine == "auto: stacked (dense layers)"
    assert gap(federation.state, small_federation(split(20, 20), batch_size=5).run(1).state) < 1e-12
    moon = small_federation(split(20, 20), Moon(), batch_size=5, engine="auto").run(1)
    assert moon.history[1].engine == "auto: threads (MOON has begin and loss of its own)"
    text = drawn_data("text", 20)
    lstm = build_model("lstm", text.input_shape, 7, generator(0, "initial weights"), hidden=5)
    recurrent = Federation(text, split(10, 10), lstm, Settings(1.0, engine="auto")).run(1)
    assert recurrent.history[1].engine == "auto: threads (recurrent layers)"
    foreign = Federation(small_data(40), split(20, 20), Foreign(), Settings(1.0, engine="auto", batch_size=5)).run(1)
    assert foreign.history[1].engine == "auto: threads (model (Foreign) has a forward pass of its own)"
    wide = nn.Sequential(nn.Flatten(), nn.Linear(16, 1500), nn.ReLU(), nn.Linear(1500, 1500), nn.Linear(1500, 3))
    many = Federation(small_data(40), split(20, 20), wide, Settings(1.0, engine="auto", batch_size=5)).run(1)
    assert many.history[1].engine == "auto: threads (dense layers of 2.28 million weights)"
    for name, size, batch, picked in (
        ("small_cnn", 8, 10, "stacked"),
        ("small_cnn", 40, 5, "stacked"),
        ("small_cnn", 40, None, "threads"),
        ("resnet8", 16, 10, "stacked"),
        ("resnet8", 16, 50, "threads"),
    ):
        x, y = torch.zeros(20, 1, size, size).byte(), torch.zeros(20).long()
        data = Dataset("black", "image", x, y, x, y, ("a", "b"), (0.5,), (0.5,))
        model = build_model(name, data.input_shape, 2, generator(0, "initial weights"))
        run = Federation(data, split(10, 10), model, Settings(1.0, batch_size=batch))
        work = run.rules(1).work(1, {})
        assert choose(work, FedAvg())[0] == picked
        assert choose(dataclasses.replace(work, settings=Settings(device="cuda")), FedAvg())[0] == "stacked"


def test_channels_last_changes_rounding_only_and_threads_keep_its_bits() -> None:
    data = drawn_data("image", 40)
    model = build_model("small_cnn", data.input_shape, 3, generator(0, "initial weights"), norm="batch")
    options = Settings(1.0, batch_size=5, batch_norm="average", double=True, engine="loop")
    runs = []
    for changes in ({"channels_last": False}, {}, {"channels_last": True, "engine": "threads"}):
        runs.append(Federation(data, split(20, 20), model, options.replace(**changes)).run(2))
    plain, loop, threads = runs
    assert loop.inside(1).updates[0].state["blocks.1.0.weight"].is_contiguous(memory_format=torch.channels_last)
    assert equal(threads.state, loop.state) and gap(plain.state, loop.state) < 1e-12


@pytest.mark.parametrize(
    ("seconds", "trials"),
    [
        ({1: 2.0, 4: 1.0}, [True, True, True, True, True]),  # idle cores: every round goes on with all of them
        ({1: 1.0, 2: 1.2, 4: 1.5}, [True, False, True, False, False]),  # no gain: ever fewer trials
        ({1: 1.0, 2: 9.0, 4: 9.0}, [True, False, True, False, False]),  # cores are taken: given up at the first step
    ],
)
def test_all_cores_are_used_where_that_is_faster(monkeypatch: pytest.MonkeyPatch, seconds: dict, trials: list) -> None:
    now, threads = [0.0], [1]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(pace.torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
    chooser, rounds = pace.Pace(4), []
    for _ in trials:
        chooser.begin(10)
        used = []
        for _ in range(20):
            chooser.step(10)
            used.append(threads[0])
            now[0] += seconds[threads[0]]
        rounds.append(used)
    assert [4 in used for used in rounds] == trials
    assert (rounds[0][-1] == 4) == (seconds[4] < seconds[1])
    assert [sum(n == 4 for n in used) for used in rounds[:2]] == {1.0: [17, 20], 1.5: [3, 0], 9.0: [1, 0]}[seconds[4]]


def test_beside_another_process_fewer_cores_are_used_and_all_of_them_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, threads, most = [0.0], [1], []
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(pace.torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
    chooser = pace.Pace(16)
    for round in range(3 + pace.MOST):
        chooser.begin(16)
        used = []
        for _ in range(20):
            chooser.step(16)
            used.append(threads[0])
            taken = round < 2 and threads[0] == 16  # one of the sixteen is another's
            now[0] += 5.0 if taken else 1.0 / threads[0] + 0.001
        most.append((used[0], used[-1]))
    assert most[:4] == [(1, 8), (8, 8), (8, 8), (8, 8)] and most[-1] == (16, 16)


def test_no_more_threads_than_clients_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    now, threads = [0.0], [1]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(pace.torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
    chooser, used = pace.Pace(4), []
    chooser.begin(3)
    for left in [3] * 6 + [2] * 3 + [1] * 3:
        chooser.step(left)
        used.append(threads[0])
        now[0] += 2.0 / threads[0]
    assert used == [1] * 3 + [3] * 3 + [2] * 3 + [1] * 3


@given(st.integers(2, 10), st.integers(1, 40), st.integers(1, 70), st.integers(1, 70), st.integers(2, 4))
@settings(max_examples=100)
def test_products_of_several_clients_have_the_same_bits_on_as_many_cores_or_fewer(
    clients: int, rows: int, inputs: int, outputs: int, count: int
) -> None:
    draws = generator(clients, "products", rows)
    state = {
        "layer.weight": torch.randn(clients, outputs, inputs, generator=draws),
        "layer.bias": torch.randn(clients, outputs, generator=draws),
        "head.weight": torch.randn(clients, 3, outputs, generator=draws),
        "head.bias": torch.randn(clients, 3, generator=draws),
    }
    x, found = torch.randn(clients * rows, inputs, generator=draws), []
    for threads in (1, min(clients, count)):
        own = {name: tensor.clone() for name, tensor in state.items()}
        with intra_op_threads(threads):
            stacked = DenseStack(own, ["layer", "head"], Descent(0.1, 0.0))
            values = stacked.forward(x)
            stacked.backward(values, values[-1].sigmoid().flatten(0, 1))
        found.append(own)
    assert equal(*found) and not equal(found[0], state)


def test_mixed_precision_rounds_products_only_and_threads_keep_its_bits() -> None:
    data = drawn_data("image", 40)
    model = build_model("small_cnn", data.input_shape, 3, generator(0, "initial weights"), norm="batch")
    options = Settings(1.0, batch_size=5, batch_norm="average")
    runs = []
    for changes in ({}, {"mixed_precision": True}, {"mixed_precision": True, "engine": "threads"}):
        runs.append(Federation(data, split(20, 20), model, options.replace(**changes)).run(2))
    plain, loop, threads = runs
    assert equal(threads.state, loop.state) and 1e-5 < gap(plain.state, loop.state) < 0.1
    assert {tensor.dtype for tensor in loop.state.values()} == {torch.float32, torch.int64}
    auto = loop.fork("auto", engine="auto").run(1)
    assert auto.history[-1].engine == "auto: threads (mixed precision)"
    with pytest.raises(ValueError, match="engine='stacked': mixed precision, accepted: 'threads'"):
        loop.fork("stacked", engine="stacked").run(1)
    with pytest.raises(ValueError, match="mixed_precision=True, double=True"):
        options.replace(mixed_precision=True, double=True)


def test_examples_are_copied_to_another_device_once() -> None:
    data = small_data(20)
    assert on_device(data, "cpu") is data
    there = on_device(data, "meta")
    assert there is on_device(data, "meta") and there.test_x.device.type == "meta" and data.x.device.type == "cpu"


def test_records_say_where_the_clients_ran() -> None:
    record = small_federation(split(10, 10), engine="threads").run(1).history[1]
    assert record.engine == "threads"
    assert record_from_json(record.to_json(), "here").engine == "threads"


def test_a_federation_of_a_million_clients_costs_what_is_sampled() -> None:
    n = 1_000_000
    x, y = torch.zeros(n, 1, 4, 4, dtype=torch.uint8), torch.arange(n) % 3
    data = Dataset("black", "image", x, y, x[:9], y[:9], ("a", "b", "c"), (0.5,), (0.5,))
    partition = iid(n, n, generator(0, "partition"))
    model = build_model("mlp", data.input_shape, 3, generator(0, "initial weights"), hidden=(6,))
    small_federation(split(20, 20), engine="threads").run(1)  # whatever is imported late is there from now on
    tracemalloc.start()
    run = Federation(data, partition, model, Settings(10 / n, engine="threads")).run(2)
    python_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [len(record.clients) for record in run.history[1:]] == [10, 10]
    assert len(run.timeline.at_or_before(2).clients) == 0
    assert python_bytes < 5 * 2**20  # no object per client
