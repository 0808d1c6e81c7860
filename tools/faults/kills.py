"""Processes that are killed, and runs that are interrupted, at random moments."""

import contextlib
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
from tools.faults.small import ROUNDS, load, noted, run_on, same, small_run
from tools.faults.table import Table

ENGINES = ("loop", "threads", "stacked", "auto", *(["ray"] if importlib.util.find_spec("ray") else []))
FEW = 20
"""Kills of Ray, at most: each costs seconds, for the start of a cluster and for its end."""
GONE = 120.0  # seconds that the processes of a killed driver may take to end: Ray's agents look around that seldom


def kills(count: int, seed: int = 0, engines: tuple[str, ...] = ENGINES) -> Table:
    """Runs that save after every round, killed at a random moment, and killed again, until they get through.

    Every tenth kill is of Ray, up to `FEW`, or every one if it is the only engine.
    """
    table, draws = Table(), random.Random(seed)
    quick = tuple(engine for engine in engines if engine != "ray")
    of_ray = 0 if "ray" not in engines else min(FEW, count // 10) if quick else count
    context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    context.set_forkserver_preload(["tools.faults.small", "torch._dynamo"])  # so that a child starts at once
    with tempfile.TemporaryDirectory() as root:
        for number, chosen, most in ((0, quick, count - of_ray), (1, ("ray",), of_ray)):
            if most:
                _kill(table, draws, context, Path(root, str(number)), chosen, most)
    return table


def _kill(table: Table, draws: random.Random, context: Any, root: Path, engines: tuple[str, ...], count: int) -> None:
    """So many kills of some engines, in turn."""
    straight = {engine: small_run(engine).run(ROUNDS) for engine in engines}
    if ray := "ray" in engines:
        disconnect()
    began = time.perf_counter()
    small_run(engines[0]).run(ROUNDS)  # once more, now that everything is imported
    length = time.perf_counter() - began
    if ray:  # without the start of a cluster
        began = time.perf_counter()
        small_run("ray").run(ROUNDS)
        disconnect()
    short = time.perf_counter() - began if ray else length
    root.mkdir()
    own: list[tuple[float, list[Any]]] = []  # when drivers were killed, and the processes that they had
    done = number = 0
    while done < count:
        folder, engine, number = root / str(number), engines[number % len(engines)], number + 1
        note = root / f"{folder.name}.saved"
        while done < count:
            known = folder.exists()
            family = _killed(context, folder, engine, note, draws.uniform(0, short if known else length))
            if family is None:
                break
            done += 1
            own.append((time.monotonic(), family))
            table.add(f"kill of {engine}", *_outcome(folder, note))
        if done == count:  # the last one is let through
            run_on(folder, engine=engine)
            if ray:
                disconnect()
        if folder.exists():
            good = same(load(folder), straight[engine])
            table.add("resumed to the end", "sound" if good else "silent", str(folder))
    for killed, family in own if ray else []:
        left = _left(family, killed + GONE - time.monotonic())
        table.add("processes of a killed Ray", "crash" if left else "sound", f"{left} are left")


def _left(family: list[Any], seconds: float) -> list[str]:
    """The names of the processes that are still there after so many seconds."""
    import psutil  # Ray needs it too

    return [process.name() for process in psutil.wait_procs(family, timeout=max(0.0, seconds))[1]]


def _outcome(folder: Path, note: Path) -> tuple[str, str]:
    """What is there after a kill: whole rounds, and at least those that had been saved and handed over before."""
    saved = noted(note)
    try:
        left = load(folder)
    except FileNotFoundError:
        return ("sound", "") if saved is None else ("silent", f"nothing is left, round {saved} was saved")
    except Exception as error:
        return "unclear", repr(error)
    if len(left.history) not in (left.round + 1, 0):
        return "silent", "torn"
    if saved is not None and left.round < saved:
        return "silent", f"stands at round {left.round}, round {saved} was saved"
    return "sound", ""


def _killed(context: Any, folder: Path, engine: str, note: Path, wait: float) -> list[Any] | None:
    """Run on in a child process, and kill it some time after it first writes.

    Returns:
        The processes that it had started, looked up for Ray only; None if it got to the end before.
    """
    child = context.Process(target=run_on, args=(folder, ROUNDS, engine, note))
    child.start()
    before = _stamp(folder)
    while child.exitcode is None and _stamp(folder) == before:  # until something has been written
        time.sleep(0.001)
    child.join(wait)
    if child.exitcode is None:
        family: list[Any] = []
        if engine == "ray":
            import psutil  # Ray needs it too

            with contextlib.suppress(psutil.NoSuchProcess):  # it ends at this moment
                family = psutil.Process(child.pid).children(recursive=True)
        os.kill(child.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        child.join()
        return family
    if child.exitcode:
        raise RuntimeError(f"the process that runs on in {folder} failed, exit code {child.exitcode}")
    return None


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
