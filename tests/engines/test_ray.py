"""The Ray engine on a real cluster of two nodes on this machine."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from small import equal, small_data, small_federation, split
from torch import nn

from fedlab_core.engines import get_engine
from fedlab_core.federation import Federation
from fedlab_core.local.work import Context
from fedlab_core.methods.client import Scaffold
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.settings import Settings
from fedlab_core.state import State

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fedlab_core[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

from fedlab_core.engines.ray import RayEngine, connect, disconnect  # noqa: E402

STORE = 100 * 2**20
SIZES = (12, 7, 20, 9, 4)


@dataclass(frozen=True)
class Marked(FedAvg):
    """FedAvg that leaves a file per client and node; one client's process is killed by a signal on its first try.

    Args:
        folder: where the files go.
        victim: the client whose process dies, -1 for none.
        pause: seconds that every client takes longer.
    """

    folder: str = ""
    victim: int = -1
    pause: float = 0.0

    def finish(self, context: Context, end: State) -> tuple[State, State]:
        node = ray.get_runtime_context().get_node_id()
        file = Path(self.folder) / f"{node}-{os.getpid()}-{time.monotonic_ns()}"
        file.touch()
        time.sleep(self.pause)
        killed = Path(self.folder) / "killed"
        if context.step == 2 and self.victim >= 0 and not killed.exists():  # the client with four examples
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {}, context.memory


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    node = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.add_node(num_cpus=1, object_store_memory=STORE)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def test_two_nodes_give_the_bits_of_loop_and_both_work(cluster: Cluster, tmp_path: Path) -> None:
    options = {"batch_size": 4, "double": False, "norm": "batch", "batch_norm": "local", "evaluate_clients": True}
    sizes = (12, 7, 20, 10, 6)
    loop = small_federation(split(*sizes), FedAvg(), **options).run(2)
    run = small_federation(split(*sizes), Marked(str(tmp_path), pause=0.3), engine=f"ray:{cluster.address}", **options)
    run.run(2)
    assert run.history == loop.history and equal(run.state, loop.state)
    assert equal(run.client_state(2), loop.client_state(2))
    assert run.history[1].engine == "ray"
    nodes = {file.name.split("-")[0] for file in tmp_path.iterdir()}
    assert len(nodes) == 2 and len(list(tmp_path.iterdir())) == 10


def test_a_worker_killed_by_a_signal_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    loop = small_federation(split(*SIZES), Scaffold(), batch_size=2).run(2)
    run = small_federation(split(*SIZES), MarkedScaffold(str(tmp_path), victim=4), batch_size=2)
    run.engine = RayEngine(cluster.address)
    run.run(2)
    assert (tmp_path / "killed").exists()
    assert run.history == loop.history and equal(run.state, loop.state)


@dataclass(frozen=True)
class MarkedScaffold(Scaffold):
    """The same for SCAFFOLD, which has memories on server and clients."""

    folder: str = ""
    victim: int = -1

    def finish(self, context: Context, end: State) -> tuple[State, State]:
        Marked(self.folder, self.victim).finish(context, end)
        return super().finish(context, end)


@pytest.mark.parametrize("name", ["dropout", "tied", "counting", "bfloat16", "frozen"])
def test_anyones_model_gives_the_bits_of_loop(cluster: Cluster, name: str) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.calls = nn.Linear(16, 3), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += self.training
            return self.head(x.flatten(1)) * (1 + 0.01 * self.calls)

    torch.manual_seed(0)
    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    if name == "tied":
        second.weight = first.weight
    first.requires_grad_(name != "frozen")
    drop = nn.Dropout(0.5 if name == "dropout" else 0.0)
    model = Counting() if name == "counting" else nn.Sequential(nn.Flatten(), first, drop, second, nn.Linear(16, 3))
    model = model.bfloat16() if name == "bfloat16" else model
    parts = small_data(sum(SIZES)), split(*SIZES)
    loop, run = (Federation(*parts, model, Settings(1.0, batch_size=4, lr=0.1, engine="loop")) for _ in range(2))
    run.engine = RayEngine(cluster.address)
    assert equal(run.run(2).state, loop.run(2).state)


@pytest.mark.parametrize(
    "name", ["gru", "adam that is kept", "clipped", "whole batches", "clients of a method's choice"]
)
def test_strangers_and_settings_give_the_bits_of_loop(cluster: Cluster, name: str) -> None:
    @dataclass(frozen=True)
    class Rotating(FedAvg):
        def sample(self, clients: int, count: int, seed: int, round: int) -> list[int]:
            return sorted((round + k) % clients for k in range(count))

    class Gru(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.gru(x[:, 0])[1][-1])

    options = {
        "adam that is kept": {"optimiser": "adam", "keep_optimiser": True, "lr": 0.01},
        "clipped": {"clip_norm": 0.1},
        "whole batches": {"drop_last": True},
        "clients of a method's choice": {"fraction": 0.5},
    }.get(name, {})
    torch.manual_seed(0)
    model = Gru() if name == "gru" else nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3))
    method = Rotating() if "choice" in name else FedAvg()
    settings = Settings(1.0, batch_size=4, lr=0.1, engine="loop").replace(**options)
    loop, run = (Federation(small_data(sum(SIZES)), split(*SIZES), model, settings, method) for _ in range(2))
    run.engine = RayEngine(cluster.address)
    assert equal(run.run(2).state, loop.run(2).state)


def test_data_and_model_are_placed_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    run, puts, put = small_federation(split(*SIZES), batch_size=4), [], ray.put
    run.engine = RayEngine(cluster.address)
    monkeypatch.setattr(ray, "put", lambda value: puts.append(value) or put(value))
    run.run(3)
    assert len(puts) == 1 + 3  # what stays, and one broadcast a round


def test_frozen_tensors_are_placed_with_the_model(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, run = (small_federation(split(*SIZES), batch_size=4) for _ in range(2))
    name = "blocks.0.0.weight"
    for federation in (loop, run):
        federation.model.get_parameter(name).requires_grad_(False)
    loop, run = (Federation(f.dataset, f.partition, f.model, f.settings) for f in (loop, run))
    puts, put = [], ray.put
    run.engine = RayEngine(cluster.address)
    monkeypatch.setattr(ray, "put", lambda value: puts.append(value) or put(value))
    assert run.run(2).history == loop.run(2).history and equal(run.state, loop.state)
    assert run.state[name] is run.state_at(0)[name]
    assert [list(puts[0][1]), *(name in broadcast[-1] for broadcast in puts[1:])] == [[name], False, False]


def started_beside(others: set[int]) -> list[psutil.Process]:
    """The processes that this one has started beside the others, and theirs; not what one of the others has started
    meanwhile: the browser of the browser tests starts processes whenever it likes."""
    own = [child for child in psutil.Process().children() if child.pid not in others]
    left = []
    for process in own:
        with suppress(psutil.NoSuchProcess):
            left += [
                each for each in [process, *process.children(recursive=True)] if each.status() != psutil.STATUS_ZOMBIE
            ]
    return left


@pytest.mark.parametrize("by", ["stop", "Ctrl-C"])
def test_leaving_a_round_leaves_no_process_and_the_next_is_as_ever(cluster: Cluster, tmp_path: Path, by: str) -> None:
    ray.shutdown()  # from the two nodes: now on a cluster of its own
    stop = threading.Event()
    run = small_federation(split(*SIZES), Marked(str(tmp_path), pause=0.5), batch_size=4)
    run.engine = RayEngine()
    others = {process.pid for process in psutil.process_iter()}

    def leave(done: int, of: int) -> None:
        if by == "stop":
            stop.set()
        else:
            raise KeyboardInterrupt

    try:
        assert list(run.rounds(2, stop=stop, progress=leave)) == [] and by == "stop"
    except KeyboardInterrupt:
        assert by == "Ctrl-C" and not ray.is_initialized()  # while a traceback still holds the frames, as in a notebook
    assert run.round == 0 and not ray.is_initialized()
    deadline = time.monotonic() + 120  # on a busy machine; left as soon as they are gone
    while (left := started_beside(others)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    if by == "stop":
        assert equal(run.run(1).state, small_federation(split(*SIZES), batch_size=4).run(1).state)
        disconnect()


def test_an_engine_that_was_not_asked_to_start_a_cluster_does_not_end_it(cluster: Cluster) -> None:
    connect(cluster.address)
    disconnect()
    assert ray.is_initialized()
    with pytest.raises(ValueError, match="workers=2, accepted: None for a cluster that was started elsewhere"):
        connect(cluster.address, workers=2)
    with pytest.raises(ValueError, match="engine='loop:x', accepted"):
        get_engine("loop:x")
