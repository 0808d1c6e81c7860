"""python -m benchmarks [--quick] [--models 2nn,cnn] [--repetitions 5]: prints the table, writes figures/bench.json.

A run of some models replaces their rows; those of the others stay if they are of the same machine and PyTorch.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import extras
from benchmarks.products import products_alone
from benchmarks.tasks import ENGINES, LAID_OUT, PLAIN, TASKS, BenchTask
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
    return count_flops(model, lambda m: task_loss(m(x), y)) / 2 * task.examples * 10


def time_task(task: BenchTask, engines: list[str], repetitions: int) -> dict[str, tuple[list[float], float]]:
    """Seconds of every repetition and peak memory by engine. Each has its own process; they take turns round by
    round, so that a busy minute of the machine hits all of them."""
    context, channels, processes = multiprocessing.get_context("spawn"), {}, []
    for engine in engines:
        channels[engine], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(task, engine, other), daemon=True))
        processes[-1].start()
        channels[engine].recv()  # one at a time, warm-up included
    seconds: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(repetitions):
        for engine, channel in channels.items():
            channel.send("round")
            seconds[engine].append(channel.recv())
    result = {}
    for engine, channel in channels.items():
        channel.send(None)
        result[engine] = seconds[engine], channel.recv()
    for process in processes:
        process.join()
    return result


def rows_of(name: str, task: BenchTask, engines: list[str], repetitions: int) -> list[dict[str, Any]]:
    """The table's rows of one task."""
    peak, operations = matmul_peak(), round_operations(task)
    timed = time_task(task, engines, repetitions)
    median = {engine: statistics.median(seconds) for engine, (seconds, _) in timed.items()}
    plain = min(median[engine] for engine in PLAIN)
    return [
        {
            "model": name,
            "engine": engine,
            "E": 1,
            "B": task.batch,
            "seconds_per_round": median[engine],
            "seconds_min": min(seconds),
            "seconds_max": max(seconds),
            "repetitions": repetitions,
            "ratio_to_plain": plain / median[engine],
            "peak_mib": memory,
            "percent_of_peak": 100 * operations / median[engine] / peak,
        }
        for engine, (seconds, memory) in timed.items()
    ]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of the examples, 3 repetitions, no file written; what is no round only with all models",
    )
    parser.add_argument("--models", default=",".join(TASKS), help="which tasks, comma-separated")
    parser.add_argument("--repetitions", type=int, help="timed rounds per engine, 5 by default")
    options = parser.parse_args()
    repetitions = options.repetitions or (3 if options.quick else 5)
    names, load = options.models.split(","), os.getloadavg()[0]
    rows = []
    header = f"{'model':9} {'engine':32} {'s/round':>8} {'min':>8} {'max':>8} {'x plain':>8} {'MiB':>6} {'% peak':>6}"
    print(header, flush=True)
    for name in names:
        task = TASKS[name].quick() if options.quick else TASKS[name]
        laid_out = [LAID_OUT] if name in ("cnn", "resnet20") else []
        for row in rows_of(name, task, [*PLAIN, *laid_out, *ENGINES], repetitions):
            rows.append(row)
            print(
                f"{name:9} {row['engine']:32} {row['seconds_per_round']:8.3f} {row['seconds_min']:8.3f} "
                f"{row['seconds_max']:8.3f} {row['ratio_to_plain']:8.2f} {row['peak_mib']:6.0f} "
                f"{row['percent_of_peak']:6.1f}",
                flush=True,
            )
    if options.quick:
        if names != list(TASKS):
            return
        print(json.dumps(extras.measure(True, matmul_peak()), indent=2))
        return
    machine = {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "not measured",
    }
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    if any(found.get(key) != value for key, value in machine.items()):
        found = {}
    alone = {name: products_alone(TASKS[name]) for name in names if name in ("2nn", "cnn", "resnet20")}
    found["products_seconds"] = found.get("products_seconds", {}) | alone
    kept = [row for row in found.get("rows", []) if row["model"] not in names]
    found |= machine | {"rows": sorted(kept + rows, key=lambda row: list(TASKS).index(row["model"]))}
    if names == list(TASKS) or "accuracy" not in found:
        found |= extras.measure(False, matmul_peak())
        print(json.dumps({key: value for key, value in found.items() if key != "rows"}, indent=2))
    found["load_before"], found["matmul_gflops"] = round(load, 2), round(matmul_peak() / 1e9, 1)
    plots.save(picture(found), FILE.with_suffix(""), found)
    print(f"written: {FILE}")


def processor() -> str:
    """What the processor calls itself."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
