"""python -m benchmarks [--quick] [--peers] [--models 2nn,cnn] [--repetitions 5]: prints the table, writes
figures/bench.json.

A run of some models replaces their rows; those of the others stay if they are of the same machine and PyTorch.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import extras, page, peers
from benchmarks.products import products_alone
from benchmarks.profiles import shares
from benchmarks.tasks import PLAIN, TASKS, BenchTask, Way, ways
from benchmarks.worker import serve
from fedlab_core import plots
from fedlab_core.costs import count_flops
from fedlab_core.local.work import task_loss
from fedlab_core.models import build_model
from fedlab_core.randomness import generator
from fedlab_core.studies.engines import picture

FILE = Path(__file__).parent.parent / "figures" / "bench.json"


def matmul_peak(size: int = 1536, repetitions: int = 8) -> float:
    """Operations per second of one large float32 matrix product with all cores, the best of some."""
    a, best = torch.rand(size, size), float("inf")
    for _ in range(repetitions):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def round_operations(task: BenchTask) -> float:
    """Operations of one round's forward and backward passes, in matrix products and convolutions."""
    options = {"fused": False} if task.model == "lstm" else {}  # the counter does not see inside the fused layer
    model = build_model(task.model, task.shape, task.classes, generator(0, "weights"), norm=task.norm, **options)
    x = torch.zeros(2, *task.shape, dtype=torch.int64 if len(task.shape) == 1 else torch.float32)
    y = torch.zeros(x.shape if len(task.shape) == 1 else 2, dtype=torch.int64)
    return count_flops(model, lambda m: task_loss(m(x), y)) / 2 * task.examples * task.sampled


def time_task(task: BenchTask, found: dict[str, Way], repetitions: int) -> dict[str, tuple[list[float], float]]:
    """Seconds of every repetition and peak memory by the name of a way. Each has its own process; they take turns round
    by round, so that a busy minute of the machine hits all of them."""
    context, channels, processes = multiprocessing.get_context("spawn"), {}, []
    with contextlib.ExitStack() as closing:  # a process that waits ends with its channel
        for name, way in found.items():
            channel, other = context.Pipe()
            channels[name] = closing.enter_context(channel)
            processes.append(context.Process(target=serve, args=(task, way, other)))
            processes[-1].start()
            other.close()  # or one that fails would be waited for
            channel.recv()  # one at a time, warm-up included
        seconds: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(repetitions):
            for name, channel in channels.items():
                channel.send("round")
                seconds[name].append(channel.recv())
        result = {}
        for name, channel in channels.items():
            channel.send(None)
            result[name] = seconds[name], channel.recv()
    for process in processes:
        process.join()
    return result


def rows_of(name: str, task: BenchTask, found: dict[str, Way], repetitions: int) -> list[dict[str, Any]]:
    """The table's rows of one task; the plain loop that others are compared with is the fastest one."""
    peak, operations = matmul_peak(), round_operations(task)
    timed = time_task(task, found, repetitions)
    median = {way: statistics.median(seconds) for way, (seconds, _) in timed.items()}
    plain = min(seconds for way, seconds in median.items() if found[way].engine == PLAIN)
    return [
        {
            "model": name,
            "engine": way,
            "E": 1,
            "B": task.batch,
            "clients": task.sampled,
            "seconds_per_round": median[way],
            "seconds_min": min(seconds),
            "seconds_max": max(seconds),
            "repetitions": repetitions,
            "ratio_to_plain": plain / median[way],
            "peak_mib": memory,
            "percent_of_peak": 100 * operations / median[way] / peak,
            "matmul_gflops": round(peak / 1e9, 1),
        }
        for way, (seconds, memory) in timed.items()
    ]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of the examples, 3 repetitions, no file written; what is no round only with all models",
    )
    parser.add_argument("--peers", action="store_true", help=f"times {', '.join(peers.PEERS)} too, where installed")
    parser.add_argument("--models", default=",".join(TASKS), help="which tasks, comma-separated")
    parser.add_argument("--repetitions", type=int, help="timed rounds per engine, 5 by default")
    options = parser.parse_args()
    repetitions = options.repetitions or (3 if options.quick else 5)
    names, load = options.models.split(","), os.getloadavg()[0]
    header = f"{'model':9} {'engine':32} {'s/round':>8} {'min':>8} {'max':>8} {'x plain':>8} {'MiB':>6} {'% peak':>6}"
    print(header, flush=True)
    for name in names:
        task = TASKS[name].quick() if options.quick else TASKS[name]
        found = ways(task) | (peers.ways(task) if options.peers else {})
        rows = rows_of(name, task, found, repetitions)
        for row in rows:
            print(
                f"{name:9} {row['engine']:32} {row['seconds_per_round']:8.3f} {row['seconds_min']:8.3f} "
                f"{row['seconds_max']:8.3f} {row['ratio_to_plain']:8.2f} {row['peak_mib']:6.0f} "
                f"{row['percent_of_peak']:6.1f}",
                flush=True,
            )
        if not options.quick:
            write(name, rows, load, options.peers)
    if options.quick:
        if names == list(TASKS):
            print(json.dumps(extras.measure(True, matmul_peak()), indent=2))
    elif names == list(TASKS) or "accuracy" not in known():
        save(known() | extras.measure(False, matmul_peak()))


def machine() -> dict[str, str]:
    """What seconds depend on besides the code."""
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "not measured",
    }


def known() -> dict[str, Any]:
    """The record, if it is of this machine and PyTorch."""
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    same = all(found.get(key) == value for key, value in machine().items())
    return {key: value for key, value in found.items() if same and key not in ("versions", "sha256")}  # of the file


def write(name: str, rows: list[dict[str, Any]], load: float, peers_too: bool) -> None:
    """Puts the rows of a model in the place of its old ones, with what bounds them."""
    found = machine() | known()
    kept = [row for row in found.get("rows", []) if row["model"] != name]
    found["rows"] = sorted(kept + rows, key=lambda row: list(TASKS).index(row["model"]))
    if name in ("2nn", "cnn", "resnet20"):
        found.setdefault("products_seconds", {})[name] = products_alone(TASKS[name])
    found.setdefault("shares", {})[name] = shares(TASKS[name])
    if peers_too:
        found["peers"] = peers.versions()
    found["load_before"], found["matmul_gflops"] = round(load, 2), round(matmul_peak() / 1e9, 1)
    save(found)


def save(found: dict[str, Any]) -> None:
    """Writes the record, its picture and the table of the page."""
    plots.save(picture(found), FILE.with_suffix(""), found)
    page.write(page.BEGIN, page.table(found))
    print(f"written: {FILE}, {page.FILE}", flush=True)


def processor() -> str:
    """What the processor calls itself."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
