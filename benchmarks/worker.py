"""A process that runs rounds of one task with one engine whenever it is told to, and reports time and memory."""

import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.tasks import LAID_OUT, PLAIN, BenchTask


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def serve(task: BenchTask, engine: str, channel: Connection) -> None:
    """Answers every message but None with the seconds of one round; before, and at the end, with the peak memory."""
    if engine in PLAIN or engine == LAID_OUT:
        torch.set_num_threads(PLAIN.get(engine, 2))
        one_round = task.plain(torch.channels_last if engine == LAID_OUT else torch.contiguous_format)
    else:
        federation = task.federation(engine)

        def one_round() -> None:
            federation.run(1)

    one_round()
    channel.send(peak_mib())
    while channel.recv() is not None:
        began = time.perf_counter()
        one_round()
        channel.send(time.perf_counter() - began)
    channel.send(peak_mib())
