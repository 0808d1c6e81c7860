"""python -m benchmarks.panel [presses] [curve] [stop] [cost] [memory]: how quickly the panel answers, at what cost.

presses   from a press to the first visible effect in Chromium, 30 per control
curve     from Run to the first curve in Chromium
stop      from Stop to a free panel, in every phase, on every built-in data set at hand
cost      the panel against the bare round loop, pictures a second, making a panel, moving a control
memory    after 50 rounds, and after 300 rounds and 50 forks, in a process of its own
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PRESSES = 30
NOTEBOOK = """
from fedlab_core.experiment import Experiment
from fedlab_core.workbench import Workbench
bench = Workbench(Experiment(partition="dirichlet", clients=20).replace(fraction=0.25, epochs=5), most_runs=64)
bench
"""
# Resolves with the milliseconds from an action to the first change of what the panel shows, once it is on the screen.
EFFECT = """([action, argument]) => new Promise(resolve => {
    const panel = document.querySelector('.fedlab-bench');
    const parts = '.fedlab-status, .fedlab-shown, .fedlab-line, .fedlab-note, .fedlab-says button, .fedlab-text';
    const shown = () => [...panel.querySelectorAll(parts)].map(e => e.textContent).join('|')
        + [...panel.querySelectorAll('img')].map(e => e.src).join('|') + panel.querySelector('.fedlab-stage').className;
    const named = label => [...panel.querySelectorAll('.widget-label')]
        .find(e => e.textContent.trim() == label && e.offsetParent).parentElement;
    const acts = {
        press: label => [...panel.querySelectorAll('button')].find(e => e.textContent.trim() == label).click(),
        choose: ([label, option]) => {
            const menu = named(label).querySelector('select');
            menu.selectedIndex = [...menu.options].findIndex(e => e.textContent == option);
            menu.dispatchEvent(new Event('change', {bubbles: true}));
        },
        type: ([label, value]) => {
            const field = named(label).querySelector('input');
            field.value = value;
            field.dispatchEvent(new Event('change', {bubbles: true}));
        },
        key: ([label, key]) => named(label).querySelector('.noUi-handle')
            .dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true})),
    };
    const before = shown();
    const observer = new MutationObserver(() => {
        if (shown() == before) return;
        observer.disconnect();
        requestAnimationFrame(() => resolve(performance.now() - began));
    });
    observer.observe(panel, {subtree: true, childList: true, characterData: true, attributes: true});
    const began = performance.now();
    acts[action](argument);
})"""
# Resolves with the milliseconds from Run to the first picture that holds a round.
CURVE = """() => new Promise(resolve => {
    const panel = document.querySelector('.fedlab-bench'), image = panel.querySelector('.fedlab-stage img');
    let source = null;
    const observer = new MutationObserver(() => {
        const measured = /Round.[1-9]/.test(panel.querySelector('.fedlab-line.two').textContent);
        if (measured && source === null) source = image.src;
        if (source === null || image.src == source) return;
        observer.disconnect();
        image.decode().then(() => requestAnimationFrame(() => resolve(performance.now() - began)));
    });
    observer.observe(panel, {subtree: true, childList: true, characterData: true, attributes: true});
    const began = performance.now();
    [...panel.querySelectorAll('button')].find(e => e.textContent.trim() == 'Run').click();
})"""


@contextlib.contextmanager
def in_browser() -> Iterator[tuple[Any, Any]]:
    """A page with a panel, and its notebook."""
    from tools.jupyterlab import chromium, jupyterlab

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as own:
        with jupyterlab(Path(folder), Path(own)) as lab, chromium() as browser:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            notebook = lab.open(page, lab.write("panel.ipynb", NOTEBOOK))
            notebook.run_all()
            notebook.wait_text("then press")
            yield page, notebook


def presses() -> dict[str, Any]:
    """Milliseconds from a press to its first visible effect, by control."""
    found: dict[str, list[float]] = {}
    with in_browser() as (page, notebook):

        def press(control: str, action: str, argument: Any, free: bool = False) -> None:
            found.setdefault(control, []).append(page.evaluate(EFFECT, [action, argument]))
            if free:
                notebook.wait_text("stands at round")
            page.wait_for_timeout(150)  # the rest of what the press brings about

        notebook.type("Rounds", 1)
        for _ in range(PRESSES):
            press("Run", "press", "Run", free=True)
        for i in range(PRESSES):
            press("Method", "choose", ["Method", ("FedProx", "SCAFFOLD", "FedAvg")[i % 3]])
            press("Learning rate", "key", ["Learning rate", "ArrowRight" if i % 2 else "ArrowLeft"])
            press("Partition", "choose", ["Partition", ("IID", "Dirichlet labels")[i % 2]])
            press("Clients K", "type", ["Clients K", str(10 + i % 2)])
            press("Model", "choose", ["Model", ("mlp", "2nn")[i % 2]])
        notebook.type("Clients K", 20)
        for i in range(PRESSES):
            press("Round", "key", ["Round", "ArrowLeft" if i < PRESSES / 2 else "ArrowRight"])
            for tab in ("Clients", "Costs", "Drift", "Curves"):
                press(tab, "press", tab)
                if tab == "Drift":
                    page.wait_for_timeout(500)
        for _ in range(PRESSES):
            press("Fork", "press", "Fork")
            notebook.wait_text("branches off")
        notebook.type("Rounds", 2000)
        for _ in range(PRESSES):
            press("Run", "press", "Run")
            page.wait_for_timeout(300)
            press("Stop", "press", "Stop")
            notebook.wait_text("Stopped after")
    return {name: summary(values, 1) for name, values in found.items()}


def curve() -> dict[str, Any]:
    """Milliseconds from Run to the first picture with a round in it; a new run each time."""
    found = []
    with in_browser() as (page, notebook):
        notebook.type("Rounds", 3)
        for seed in range(PRESSES // 3):
            found.append(page.evaluate(CURVE))
            notebook.wait_text("stands at round 3")
            notebook.type("Seed", seed + 1)
            page.wait_for_timeout(300)
    return {"Run to first curve, ms": summary(found, 1)}


def stop() -> dict[str, Any]:
    """Seconds from Stop to a free panel, by data set and phase: median and worst of five."""
    from fedlab_core.data import dataset_names, missing_data
    from fedlab_core.experiment import Experiment
    from fedlab_core.workbench import Workbench

    found: dict[str, Any] = {}
    for name in [n for n in dataset_names() if not missing_data(n)]:
        text = Experiment(name).load_data().kind == "text"
        kind = {"model": "lstm", "partition": "natural"} if text else {"model": "cnn"}
        for engine in ("loop", "auto"):
            bench = Workbench(Experiment(name, clients=10, **kind).replace(fraction=0.5, engine=engine), keep=False)
            for phase, words in {"training": " of 5 clients", "evaluation": "averaging and evaluating"}.items():
                found[f"{name}, {engine}: {phase}"] = stops(bench, words)
            if bench.runs and bench.runs[0].round:
                for tab in ("Drift", "Stability", "Basin"):
                    found[f"{name}, {engine}: drawing {tab}"] = stops(bench, f"drawing {tab}", tab)
            bench.close()
    bench = Workbench(Experiment(clients=10).replace(fraction=0.5), keep=False)
    for start in ("noise", "letters"):
        bench.set(start=start, seed=time.time_ns() % 2**31)
        found[f"learning the start {start}"] = stops(bench, f"learning the start {start}")
    bench.set(start="random", engine="ray")
    found["Ray's start"] = stops(bench, "Ray", times=1)
    bench.close()
    return found


def stops(bench: Any, words: str, tab: str = "", times: int = 5) -> dict[str, float]:
    """Seconds from Stop to a free panel.

    Args:
        words: of the phase, in the line of progress.
        tab: of a slow view that is drawn; else a run is begun.
    """
    found = []
    for _ in range(times):
        if tab:
            bench.panel.tabs.value = "Curves"
            bench._worker.join()
            bench.panel.tabs.value = tab
        else:
            bench.run(50)
        while bench.busy and words not in bench.panel.timing.value:
            time.sleep(0.002)
        time.sleep(0.05)
        began = time.perf_counter()
        bench.stop()
        bench._worker.join()
        found.append(time.perf_counter() - began)
    return summary(found)


def cost(rounds: int = 40) -> dict[str, Any]:
    """The panel against the bare loop over the same rounds, by turns, in wall-clock and in processor seconds (which a
    busy machine does not change); pictures a second; seconds to make a panel and to move a control."""
    from fedlab_core.experiment import Experiment
    from fedlab_core.workbench import Workbench

    began = time.perf_counter()
    bench = Workbench(
        Experiment(partition="dirichlet", clients=20).replace(fraction=0.25, epochs=5), keep=False, most_runs=64
    )
    found, pictures = {"making a panel, seconds": time.perf_counter() - began}, list[float]()
    bench.panel.image.observe(lambda _: pictures.append(time.perf_counter()), "value")
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
        federation = bench.experiment.build()
        timed("bare", functools.partial(federation.run, rounds))
        pictures.clear()
        timed("panel", functools.partial(bench.run, rounds, block=True))
    moves = []
    for i in range(PRESSES):
        began = time.perf_counter()
        bench.set(lr=(0.1, 0.05)[i % 2])
        moves.append(time.perf_counter() - began)
    found |= {name: summary(values) for name, values in spent.items()}
    for kind in clocks:
        pairs = zip(spent[f"{kind} seconds, panel"], spent[f"{kind} seconds, bare"], strict=True)
        found[f"{kind}, panel / bare"] = summary([panel / bare for panel, bare in pairs])
    found["pictures a second"] = len(pictures) / spent["wall-clock seconds, panel"][-1]
    return found | {"set(lr=...), seconds": summary(moves)}


def memory() -> dict[str, Any]:
    """MiB after 50 rounds and after 300 rounds and 50 forks, proportional set size of a process of its own."""
    code = "from benchmarks.panel import grow; import json; print(json.dumps(grow()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def grow() -> dict[str, Any]:
    """What `memory` measures, in this process."""
    from fedlab_core.experiment import Experiment
    from fedlab_core.workbench import Workbench

    bench = Workbench(Experiment(partition="dirichlet", clients=20).replace(fraction=0.25), keep=False, most_runs=64)
    for tab in bench.panel.tabs.options:
        bench.panel.tabs.value = tab
        bench.run(5, block=True)
    bench.run(50 - bench.runs[0].round, block=True)
    found = {"after 50 rounds": resident()}
    for _ in range(5):
        bench.run(50, block=True)
    found["after 300 rounds"] = resident()
    first = bench.runs[0]
    for fork in range(50):
        bench.panel.chosen.value = 0
        bench._worker.join()
        bench.fork(at=50 + 5 * fork, lr=0.05)
        bench.run(5, block=True)
    assert len(bench.runs) == 51 and first.round == 300
    found["after 300 rounds and 50 forks"] = resident()
    return found


def resident() -> float:
    """MiB of this process."""
    import gc

    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def summary(values: list[float], digits: int = 3) -> dict[str, float]:
    """Median and worst."""
    return {"median": round(statistics.median(values), digits), "worst": round(max(values), digits), "n": len(values)}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "presses": presses,
    "curve": curve,
    "stop": stop,
    "cost": cost,
    "memory": memory,
}


def main() -> None:
    """Measures what was asked for, everything by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which of them")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    for part in parser.parse_args().parts or PARTS:
        for name, value in PARTS[part]().items():
            shown = value if isinstance(value, dict) else f"{value:.3g}"
            print(f"{part:8} {name:40} {shown}", flush=True)


if __name__ == "__main__":
    main()
