"""python -m benchmarks.panel [presses] [curve] [stop] [cost] [memory]: how quickly the panel answers, at what cost.

presses   from a press to the first visible effect in Chromium, 30 per control
curve     from Run to the first curve in Chromium, 30 runs
stop      from Stop to a free panel, in every phase, on every built-in data set at hand
cost      the panel against the bare round loop, pictures a second, making a panel, moving a control
memory    after 50 rounds, and after 300 rounds and 50 forks, in a process of its own

Every result is printed and written into figures/panel.json as soon as it is there.
"""

import argparse
import functools
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.__main__ import processor
from benchmarks.panel_browser import curve, presses
from benchmarks.panel_stop import panel, stop
from benchmarks.summary import PRESSES, summary
from fedlab_core.about import versions
from fedlab_core.experiment import Experiment

FILE = Path(__file__).parent.parent / "figures" / "panel.json"
USUAL = Experiment(partition="dirichlet", clients=20).replace(fraction=0.25, epochs=5)
PLAIN = ("Curves", "Clients", "Costs", "Drift")


def cost(rounds: int = 40) -> Iterator[tuple[str, Any]]:
    """The panel against the bare loop over the same rounds, by turns, in wall-clock and in processor seconds (which a
    busy machine does not change); its drawing and its pictures by view; seconds to make a panel and to move a
    control."""
    began = time.perf_counter()
    with panel(USUAL) as bench:
        yield "making a panel, seconds", time.perf_counter() - began
        bench.experiment.build().run(5)
        clocks = {"wall-clock": time.perf_counter, "processor": time.process_time}
        spent: dict[str, list[float]] = {f"{kind} seconds, {what}": [] for what in ("bare", "panel") for kind in clocks}

        def timed(what: str, call: Callable[[], Any]) -> None:
            began = {kind: clock() for kind, clock in clocks.items()}
            call()
            for kind, clock in clocks.items():
                spent[f"{kind} seconds, {what}"].append(clock() - began[kind])

        for seed in range(7):
            bench.set(seed=seed)
            timed("bare", functools.partial(bench.experiment.build().run, rounds))
            timed("panel", functools.partial(bench.run, rounds, block=True))
        yield from ((name, summary(values)) for name, values in spent.items())
        for kind in clocks:
            pairs = zip(spent[f"{kind} seconds, panel"], spent[f"{kind} seconds, bare"], strict=True)
            yield f"{kind}, panel / bare", summary([panel / bare for panel, bare in pairs])
        for tab in PLAIN:
            yield from drawing(bench, tab, "eight runs")
        moves = []
        for i in range(PRESSES):
            began = time.perf_counter()
            bench.set(lr=(0.1, 0.05)[i % 2])
            moves.append(time.perf_counter() - began)
        yield "set(lr=...), seconds", summary(moves)
    with panel(USUAL) as bench:
        for tab in PLAIN:
            yield from drawing(bench, tab, "one run")


def drawing(bench: Any, tab: str, shown: str, rounds: int = 100) -> Iterator[tuple[str, Any]]:
    """Pictures a second and the share of the time that is spent on them, while a run goes on with a view in front."""
    bench.panel.tabs.value = tab
    bench.wait()
    draw, spent = bench._display.draw, list[float]()

    def timed(live: bool = False) -> None:
        began = time.perf_counter()
        draw(live)
        if live:
            spent.append(time.perf_counter() - began)

    bench._display.draw = timed
    began = time.perf_counter()
    bench.run(rounds, block=True)
    seconds = time.perf_counter() - began
    bench._display.draw = draw
    yield f"{tab}, {shown}: pictures a second", len(spent) / seconds
    yield f"{tab}, {shown}: drawing, share of the time", sum(spent) / seconds
    yield f"{tab}, {shown}: rounds a second", rounds / seconds


def memory() -> Iterator[tuple[str, Any]]:
    """MiB after 50 rounds and after 300 rounds and 50 forks, proportional set size of a process of its own."""
    code = "from benchmarks.panel import grow; import json; print(json.dumps(grow()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    yield from found.items()
    first, *_, last = found.values()
    yield "growth", last / first


def grow() -> dict[str, Any]:
    """What `memory` measures, in this process."""
    with panel(USUAL.replace(epochs=1)) as bench:
        for tab in bench.panel.tabs.options:
            bench.panel.tabs.value = tab
            bench.run(5, block=True)
        bench.run(50 - bench.runs[0].round, block=True)
        found = {"MiB after 50 rounds": resident()}
        for _ in range(5):
            bench.run(50, block=True)
        found["MiB after 300 rounds"] = resident()
        for fork in range(50):
            bench.panel.chosen.value = 0
            bench._worker.join()
            bench.fork(at=50 + 5 * fork, lr=0.05)
            bench.run(5, block=True)
        assert len(bench.runs) == 51 and bench.runs[0].round == 300
        found["MiB after 300 rounds and 50 forks"] = resident()
        return found


def resident() -> float:
    """MiB of this process."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


PARTS: dict[str, Callable[[], Iterator[tuple[str, Any]]]] = {
    "presses": presses,
    "curve": curve,
    "stop": stop,
    "cost": cost,
    "memory": memory,
}


def main() -> None:
    """Measures what was asked for, everything by default."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.panel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which of them")
    machine = {"machine": f"{processor()}, {os.cpu_count()} cores", "versions": versions()}
    for part in parser.parse_args().parts or PARTS:
        found: dict[str, Any] = {"load before": round(os.getloadavg()[0], 1)}
        for name, value in PARTS[part]():
            found[name] = round(value, 3) if isinstance(value, float) else value
            print(f"{part:8} {name:40} {found[name]}", flush=True)
            found["load after"] = round(os.getloadavg()[0], 1)
            written = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
            FILE.write_text(json.dumps(written | machine | {part: found}, indent=1) + "\n", encoding="utf-8")
    page.write(page.PANEL, page.panel_rows(json.loads(FILE.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
