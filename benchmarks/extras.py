"""What is not a round: overhead, a federation of a million clients, many states in one pass, accuracy."""

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.tasks import TASKS
from benchmarks.worker import peak_mib
from fedlab_core.data import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.local.work import LocalMethod, Task, Work
from fedlab_core.models import build_model
from fedlab_core.partition import iid
from fedlab_core.probes.planes import plane_through, scan
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import State, get_state, set_state


class _Timed:
    """An engine that knows how long it was at work."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.name, self.seconds = engine, engine.name, 0.0

    def train(self, work: Work, tasks: Sequence[Task], method: LocalMethod, stop: Any) -> Any:
        began = time.perf_counter()
        updates = list(self.engine.train(work, tasks, method, stop))
        self.seconds += time.perf_counter() - began
        yield from updates

    def evaluate(self, work: Work, states: Sequence[State], split: str = "test") -> list[dict[str, float]]:
        return self.engine.evaluate(work, states, split)


def overhead(model: str, engine: str, rounds: int) -> float:
    """Share of a round that is not the clients' forward, backward and step: sampling, averaging, records, costs, and
    loading and copying the clients' states. The least of some rounds."""
    federation = TASKS[model].federation(engine)
    federation.run(1)
    federation.engine = timed = _Timed(federation.engine)
    network, shares = TASKS[model].network(), []
    for _ in range(rounds):
        began, timed.seconds = time.perf_counter(), 0.0
        federation.run(1)
        whole = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(10 if engine == "loop" else 5):  # two cores load and copy side by side
            set_state(network, federation.state)
            get_state(network)
        shares.append((whole - timed.seconds + time.perf_counter() - began) / whole)
    return min(shares)


def black(n: int) -> Dataset:
    """Nearly black images of 64 pixels, whose memory is there."""
    x, y = torch.ones(n, 1, 8, 8, dtype=torch.uint8), torch.arange(n) % 10
    return Dataset("black", "image", x, y, x[:100], y[:100], tuple("0123456789"), (0.5,), (0.5,))


def million(_: int = 0) -> dict[str, float]:
    """Seconds until a federation of a million clients stands, memory that it and two rounds need beyond its data."""
    n = 1_000_000
    data = black(n)
    model = build_model("2nn", data.input_shape, 10, generator(0, "weights"))
    before, began = peak_mib(), time.perf_counter()
    federation = Federation(data, iid(n, n, generator(0, "partition")), model, Settings(10 / n, batch_size=10))
    ready = time.perf_counter() - began
    federation.run(2)
    seconds = federation.history[-1].seconds
    return {"start_seconds": ready, "round_seconds": seconds, "mib_beyond_data": peak_mib() - before}


def many_states(model: str, engine: str, points: int) -> float:
    """How many times faster a plane's points are evaluated together than one by one, on the 512 test examples."""
    federation = TASKS[model].quick().federation(engine)
    federation.run(1)
    a, b = federation.state_at(0), federation.state
    states = [{name: torch.lerp(a[name], b[name], i / points) for name in a} for i in range(points)]
    federation.evaluate_states(states[:2])
    began = time.perf_counter()
    for first in range(0, points, 64):
        federation.evaluate_states(states[first : first + 64])
    together = time.perf_counter() - began
    single = federation.fork("loop", engine="loop")
    began = time.perf_counter()
    for state in states:
        single.evaluate(state)
    return (time.perf_counter() - began) / together


def plane(peak: float, size: int) -> dict[str, float]:
    """A plane through three rounds of the 2NN (0.2 million multiply-adds) on 2,000 images, size x size points: seconds
    of the scan and of the same one point by point, and the scan's share of the matmul peak in per cent."""
    task = TASKS["2nn"].quick()
    federation, data = task.federation("auto"), task.data()
    federation.dataset = replace(data, test_x=data.x[:2000], test_y=data.y[:2000])
    federation.run(2)
    names = [name for name, parameter in federation.model.named_parameters() if parameter.requires_grad]
    through = plane_through(*(federation.state_at(round) for round in range(3)), names)
    seconds = {}
    for engine in ("auto", "loop"):
        run = federation.fork(engine, engine=engine)
        run.evaluate_states([run.state] * 2)
        began = time.perf_counter()
        for _ in scan(run, through, size=size):
            pass
        seconds[engine] = time.perf_counter() - began
    operations = 2 * size**2 * 2000 * sum(p.numel() for p in federation.model.parameters() if p.ndim == 2)
    return {
        "seconds": seconds["auto"],
        "seconds_point_by_point": seconds["loop"],
        "percent_of_peak": 100 * operations / seconds["auto"] / peak,
    }


def accuracies(seeds: int, rounds: int) -> dict[str, list[float]]:
    """Test accuracy on the digits after the same rounds with loop, threads and stacked, one per seed."""
    base = Experiment(clients=20, partition="dirichlet", settings=Settings(0.5, lr=0.1, evaluate_every=rounds))
    return {
        engine: [
            base.replace(engine=engine, seed=seed).build().run(rounds).history[-1].metrics["test_accuracy"]
            for seed in range(seeds)
        ]
        for engine in ("loop", "threads", "stacked")
    }


def head_tuning(examples: int, rounds: int) -> dict[str, float]:
    """Median seconds of a round, after the first, that tunes the head of EfficientNet-Lite0 on noise of 64 pixels: with
    the frozen part computed every time, and once. The two take turns; nothing where timm is not installed."""
    x, y = torch.randint(0, 256, (examples, 3, 64, 64), dtype=torch.uint8), torch.arange(examples) % 10
    data = Dataset("noise", "image", x, y, x[:100], y[:100], tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
    try:
        model = build_model("efficientnet_lite0", data.input_shape, 10, generator(0, "weights"), norm="batch")
    except ValueError:
        return {}
    model.requires_grad_(False).head.requires_grad_(True)
    settings = Settings(1.0, lr=0.05, batch_norm="frozen", engine="auto")
    parts = iid(examples, 10, generator(0, "partition"))
    runs = {
        name: Federation(data, parts, model, settings.replace(cache_frozen=name == "once")).run(1)
        for name in ("every_time", "once")
    }
    for _ in range(rounds):
        for run in runs.values():
            run.run(1)
    return {
        name: statistics.median(record.seconds for record in run.history[2:] if record.seconds is not None)
        for name, run in runs.items()
    }


def measure(quick: bool, peak: float) -> dict[str, Any]:
    """All of it; the memory of the million clients in a process of its own.

    Args:
        quick: less of everything.
        peak: operations per second of a large matrix product.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        many = pool.map(million, [0])[0]
    points = 125 if quick else 625
    found: dict[str, Any] = {
        "million_clients": many,
        "plane_scan_ratio": {"2nn": many_states("2nn", "stacked", points), "cnn": many_states("cnn", "stacked", 16)},
        "plane": plane(peak, 9 if quick else 25),
        "overhead_share": {"2nn, stacked": overhead("2nn", "stacked", 3 if quick else 10)},
        "head_tuning_seconds": head_tuning(400 if quick else 5000, 3),
        "accuracy": accuracies(2 if quick else 5, 10),
    }
    if not quick:
        found["overhead_share"]["cnn, threads"] = overhead("cnn", "threads", 2)
    return found
