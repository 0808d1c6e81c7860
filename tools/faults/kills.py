"""Processes that are killed, and runs that are interrupted, at random moments."""

import importlib.util
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from fedlab_core.engines.ray import disconnect
from tools.faults.small import ROUNDS, load, run_on, same, small_run
from tools.faults.table import Table

ENGINES = ("loop", "threads", "stacked", "auto", *(["ray"] if importlib.util.find_spec("ray") else []))


KILLED = ENGINES[:4]  # a killed driver leaves its Ray cluster to end by itself: tests/runs/test_ray_faults.py


def kills(count: int, seed: int = 0) -> Table:
    """Runs that save after every round, killed at a random moment, and killed again, until they get through."""
    table, draws = Table(), random.Random(seed)
    straight = {engine: small_run(engine).run(ROUNDS) for engine in KILLED}
    began = time.perf_counter()
    small_run().run(ROUNDS)  # once more, now that everything is imported
    length = time.perf_counter() - began
    context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    context.set_forkserver_preload(["tools.faults.small", "torch._dynamo"])  # so that a child starts at once
    done = number = 0
    with tempfile.TemporaryDirectory() as root:
        while done < count:
            folder, engine, number = Path(root, str(number)), KILLED[number % len(KILLED)], number + 1
            while done < count and not _finish(context, folder, engine, draws.uniform(0, length)):
                done += 1
                try:  # what is there after the kill is a whole number of rounds, or nothing yet
                    left = load(folder)
                    table.add(
                        f"kill of {engine}", "sound" if len(left.history) in (left.round + 1, 0) else "silent", "torn"
                    )
                except FileNotFoundError:
                    table.add(f"kill of {engine}", "sound")
                except Exception as error:
                    table.add(f"kill of {engine}", "unclear", repr(error))
            if done == count:  # the last one is let through
                run_on(folder, engine=engine)
            if folder.exists():
                table.add(
                    "resumed to the end", "sound" if same(load(folder), straight[engine]) else "silent", str(folder)
                )
    return table


def _finish(context: Any, folder: Path, engine: str, wait: float) -> bool:
    """Run on in a child process, for some time after it first writes; whether it got to the end and was not killed."""
    child = context.Process(target=run_on, args=(folder, ROUNDS, engine))
    child.start()
    before = _stamp(folder)
    while child.exitcode is None and _stamp(folder) == before:  # until something has been written
        time.sleep(0.001)
    child.join(wait)
    if child.exitcode is None:
        os.kill(child.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        child.join()
        return False
    if child.exitcode:
        raise RuntimeError(f"the process that runs on in {folder} failed, exit code {child.exitcode}")
    return True


def _stamp(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} if folder.exists() else set()


def interrupts(count: int, seed: int = 0, engines: tuple[str, ...] = ENGINES) -> Table:
    """Ctrl-C at a random moment of a run, on every engine: it stands at a whole round, and goes on to the same bits."""
    table, draws = Table(), random.Random(seed)
    straight, length = {}, {}
    for engine in engines:
        began = time.perf_counter()
        straight[engine] = small_run(engine).run(ROUNDS)
        length[engine] = time.perf_counter() - began
    for number in range(count):
        engine = engines[number % len(engines)]
        federation, wait = small_run(engine), draws.uniform(0, length[engine])
        timer = threading.Timer(wait, signal.raise_signal, [signal.SIGINT])
        try:
            timer.start()
            federation.run(ROUNDS)
            timer.cancel()
            timer.join()
        except KeyboardInterrupt:
            pass
        timer.join()
        rounds, records = federation.round, len(federation.history)
        if records not in (rounds + 1, 0) or federation.timeline.last.round != rounds:
            table.add(f"interrupt of {engine}", "silent", f"round {rounds}, {records} records")
            continue
        federation.run(ROUNDS - rounds)
        if engine == "ray":
            disconnect()  # a later interrupt meets the start of a cluster too
        good = same(federation, straight[engine])
        table.add(f"interrupt of {engine}", "sound" if good else "silent", f"not the same after round {rounds}")
    return table
