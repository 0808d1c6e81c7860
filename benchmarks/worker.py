"""A process that runs rounds of one task in one way whenever it is told to, and reports time and memory."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers
from benchmarks.tasks import PLAIN, BenchTask, Way


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def serve(task: BenchTask, way: Way, channel: Connection) -> None:
    """Answers every message but None with the seconds of one round; before, and at the end, with the peak memory."""
    if way.cores:
        os.environ["OMP_NUM_THREADS"] = str(way.cores)  # what engines go by, see `local.cores`
        torch.set_num_threads(way.cores)
    with _busy(way.taken) as busy:

        def answer(one_round: Callable[[], Any]) -> None:
            one_round()
            channel.send(peak_mib())
            while channel.recv() is not None:
                with busy():
                    began = time.perf_counter()
                    one_round()
                    seconds = time.perf_counter() - began
                channel.send(seconds)

        if way.engine in peers.PEERS:
            peers.run(task, way, answer)
        elif way.engine == PLAIN:
            torch.set_num_threads(way.threads)
            answer(task.plain(way.channels_last))
        else:
            answer(functools.partial(task.federation(way.engine).run, 1))
    channel.send(peak_mib())


@contextlib.contextmanager
def _busy(wanted: bool) -> Iterator[Any]:
    """A block's maker: inside such a block another process computes, where that is wanted."""
    if not wanted:
        yield contextlib.nullcontext
        return
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    other.send_signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def busy() -> Iterator[None]:
        other.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            other.send_signal(signal.SIGSTOP)

    try:
        yield busy
    finally:
        other.kill()
        other.wait()
