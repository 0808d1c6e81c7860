"""The queue of runs behind the records: `make records` makes each missing unit, one per core, in the background.

A unit is one run, its settings plain data. Its result is a file of `runs/` the moment it is done, and is gathered into
`figures/NAME.json`, so that nothing is computed twice: not after a kill, nor on another machine that has only the
committed record. A unit is made again only if its settings change.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from fedlab_core import files, plots
from fedlab_core.check import checked
from fedlab_core.local.work import Stopped
from fedlab_core.studies.record import FIGURES, RUNS, recorded
from fedlab_core.studies.units import Record, Results, Run, Unit


@checked
def known(record: Record, runs: Path = RUNS, figures: Path = FIGURES, again: bool = False) -> dict[str, dict[str, Any]]:
    """The finished units on this machine and, unless they are made again, in the committed record, by key."""
    committed = {} if again else recorded(record.name, figures) or {}
    found = {unit["key"]: unit for unit in committed.get("units", [])}
    for path in sorted((runs / record.name).glob("*.json")):
        found[path.stem] = recorded(path.stem, path.parent)
    return found


@checked
def results(found: Mapping[str, Mapping[str, Any]]) -> Results:
    """The results alone, by key."""
    return {key: unit["result"] for key, unit in found.items()}


@checked
def missing(record: Record, found: Mapping[str, Mapping[str, Any]]) -> list[Unit]:
    """The units that are planned and not there, in order."""
    return [unit for unit in record.plan(results(found)) if unit.key not in found]


@checked
def gathered(record: Record, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The record's data: its planned units that are there, and how many of its seeds are complete."""
    planned = record.plan(results(found))
    lacking = {unit.seed for unit in planned if unit.key not in found}
    complete = [seed for seed in record.seeds if seed not in lacking]
    searching = bool(lacking - set(record.seeds))
    units = [found[unit.key] for unit in planned if unit.key in found]
    return {
        "title": record.title,
        "seeds": record.seeds,
        "complete": [] if searching else complete,
        "note": f"{0 if searching else len(complete)} of {len(record.seeds)} seeds, {len(units)} runs",
        "units": units,
    }


@checked
def write(record: Record, runs: Path = RUNS, figures: Path = FIGURES, again: bool = False) -> dict[str, Any] | None:
    """Gathers the finished units into `figures/NAME.json` and draws them; None if there are none yet."""
    data = gathered(record, known(record, runs, figures, again))
    if not data["units"]:
        return None
    plots.save(picture(record, data), figures / record.name, data)
    return data


@checked
def picture(record: Record, data: Mapping[str, Any]) -> Figure:
    """What `Record.draw` makes of gathered data; before every seed is there, where that does not draw yet, how far the
    record is."""
    try:
        return record.draw(data)
    except Exception:  # an arm has no run yet, or fewer than another
        if set(record.seeds) <= set(data["complete"]):
            raise
    fig, axes = plots.figure(1, 1, (6, 1.2))
    axes[0, 0].axis("off")
    axes[0, 0].text(0, 0.5, f"{record.title}\n{data['note']} so far", va="center")
    return fig


@checked
def work_off(
    records: Sequence[Record],
    *,
    workers: int | None = None,
    device: str = "cpu",
    nice: int = 19,
    again: bool = False,
    runs: Path = RUNS,
    figures: Path = FIGURES,
    say: Callable[[str], None] = print,
) -> int:
    """Makes every missing unit of the records, one process each, the records in the order given.

    It ends when nothing is missing, or between rounds once `runs/stop` exists or on Ctrl-C.

    Args:
        again: make the units that only the committed records have as well.

    Returns:
        How many units failed; the others are made nevertheless.
    """
    stop, workers = runs / "stop", workers or os.cpu_count() or 1
    runs.mkdir(parents=True, exist_ok=True)
    stop.unlink(missing_ok=True)
    context: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    context.set_forkserver_preload([__name__, *{record.run.__module__ for record in records}])  # children start at once
    busy: dict[Any, tuple[Record, Unit]] = {}
    failed: set[str] = set()
    said = ""
    while True:
        found = {record.name: known(record, runs, figures, again) for record in records}
        in_hand = {unit.key for _, unit in busy.values()}
        waiting = [
            (record, unit)
            for record in records
            for unit in missing(record, found[record.name])
            if unit.key not in in_hand | failed
        ]
        if not stop.exists():
            for record, unit in waiting[: max(workers - len(busy), 0)]:
                arguments = (record.run, unit, runs / record.name / f"{unit.key}.json", device, stop, nice)
                child = context.Process(target=_make, args=arguments, daemon=True)
                child.start()
                busy[child] = record, unit
        waiting = [pair for pair in waiting if pair not in busy.values()]
        if (line := _progress(found, busy.values(), waiting, workers)) != said:
            say(said := line)
        if not busy:
            break
        try:
            connection.wait([child.sentinel for child in busy], timeout=2)
        except KeyboardInterrupt:
            say("stopping after the rounds in hand")
            stop.touch()
        for child in [child for child in busy if child.exitcode is not None]:
            record, unit = busy.pop(child)
            child.join()
            if child.exitcode:
                failed.add(unit.key)
                say(f"{record.name}: {unit.key} failed, exit code {child.exitcode}")
            else:
                write(record, runs, figures, again)
    for record in records:  # units that were finished after a killed queue had last gathered them
        committed = (recorded(record.name, figures) or {}).get("units", [])
        if len(gathered(record, known(record, runs, figures, again))["units"]) != len(committed):
            write(record, runs, figures, again)
    return len(failed)


def _make(run: Run, unit: Unit, file: Path, device: str, stop: Path, nice: int = 19) -> None:
    """Makes one unit, in a process of its own; its file is complete or absent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the queue says when to stop
    _yield_to_others(nice)
    torch.set_num_threads(1)
    parent, began = os.getppid(), time.perf_counter()
    try:
        result = run(unit.settings, lambda: stop.exists() or os.getppid() != parent, device)
    except Stopped:
        return
    seconds = round(time.perf_counter() - began, 1)
    plain = {"arm": unit.arm, "seed": unit.seed, "settings": unit.settings, "key": unit.key}
    plain |= {"seconds": seconds, "device": device, "torch": torch.__version__, "result": result}
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write(file, files.seal(plain))


def _yield_to_others(nice: int) -> None:
    """Low priority for processor and disk, where the system has such."""
    with suppress(AttributeError, OSError):
        os.nice(nice)
    if nice and shutil.which("ionice"):
        subprocess.run(["ionice", "-c", "3", "-p", str(os.getpid())], check=False, capture_output=True)


def _progress(
    found: Mapping[str, Mapping[str, Any]],
    busy: Iterable[tuple[Record, Unit]],
    waiting: Sequence[tuple[Record, Unit]],
    workers: int,
) -> str:
    """One line: units done, in hand, left, and hours left by the time that units of the same arm or record took."""
    busy, done = list(busy), sum(map(len, found.values()))

    def seconds(record: Record, unit: Unit) -> float | None:
        units = found[record.name].values()
        known = [one for one in units if one["seconds"] is not None]
        times = [one["seconds"] for one in known if one["arm"] == unit.arm] or [one["seconds"] for one in known]
        return sum(times) / len(times) if times else None

    left = [seconds(*pair) for pair in [*busy, *waiting]]
    known_times = [value for value in left if value is not None]
    hours = f"{sum(known_times) / 3600 / workers:.1f}" if known_times or not left else "?"
    names = ", ".join(dict.fromkeys(f"{record.name}: {unit.arm}" for record, unit in busy)) or "nothing"
    return f"{done} units done, {len(busy)} in hand ({names}), {len(waiting)} left that are known, {hours} hours left"


@checked
def halt(runs: Path = RUNS) -> None:
    """Asks a queue that works on this folder to end between two rounds."""
    runs.mkdir(parents=True, exist_ok=True)
    (runs / "stop").touch()


@checked
def main(records: Sequence[Record], arguments: Sequence[str]) -> int:
    """Command line of `make records`: `[--stop] [--device cuda] [--workers N] [NAME ...]`."""
    parser = argparse.ArgumentParser(prog="python -m fedlab_core.studies records", description=__doc__.splitlines()[0])
    names = [record.name for record in records]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these records: {', '.join(names)}")
    parser.add_argument("--stop", action="store_true", help="end the queue that is running, between two rounds")
    parser.add_argument("--draw", action="store_true", help="only draw what is there")
    parser.add_argument("--again", action="store_true", help="make units again that only the committed records have")
    parser.add_argument("--device", default="cpu", help="a torch device such as cuda")
    parser.add_argument("--workers", type=int, help="units at a time; by default one per core")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in names]:
        parser.error(f"names={unknown}, accepted: {', '.join(names)}")
    chosen = [record for record in records if not options.names or record.name in options.names]
    if options.stop:
        halt()
    elif options.draw:
        for record in chosen:
            write(record)
    else:
        return min(work_off(chosen, workers=options.workers, device=options.device, again=options.again), 1)
    return 0
