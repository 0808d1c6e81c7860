"""python -m benchmarks.labs [fedavg.RACE 00_start_here ...]: seconds of labs and notebooks; writes figures/labs.json,
and the seconds of docs/labs.md and README.md from it.

Labs, in Chromium at their defaults, from the press on Run, five times in one kernel that has only imported them:

picture    seconds to the first picture: median, worst, and the first time, when nothing is loaded or warm
end        seconds to the end of the run, the first time
processor  processor seconds of the kernel to either, the first time: a busy machine does not change them

Notebooks: seconds from the first cell to the last, and processor seconds. Load and niceness are written beside each.
"""

import argparse
import importlib
import json
import os
import pkgutil
import re
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.__main__ import processor
from fedlab_core import files
from fedlab_core.about import versions
from fedlab_core.workbench import labs
from fedlab_core.workbench.plan import Plan

ROOT = Path(__file__).parent.parent
FILE = ROOT / "figures" / "labs.json"
TIMES = 5
IMPORT = """\
import time
from IPython.display import display
from fedlab_core.workbench.lab import Lab
from fedlab_core.workbench.labs.{} import {}
"""
SHOW = """\
if "lab" in globals():
    lab.stop()
    lab.wait()
lab, spent = Lab({}), []
lab._image.observe(lambda _: spent.append(time.process_time() - began), "value")
display(lab.view)  # without the first look, which would be the first picture
began = time.process_time()
"""
SPENT = "print('processor', spent[0], spent[-1])"
# Presses Run; resolves with seconds to the first picture, or to the word Done, on the screen.
WATCH = """done => new Promise(resolve => {
    const lab = document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) .fedlab-lab');
    const began = performance.now();
    const look = () => {
        const image = lab.querySelector('img'), status = lab.querySelector('.fedlab-status').textContent;
        const seconds = (performance.now() - began) / 1000;
        const shown = image.complete && image.naturalWidth > 100;
        if (done ? status.includes('Done') : shown) resolve(seconds);
        else if (seconds > 300) resolve(NaN);
        else requestAnimationFrame(look);
    };
    [...lab.querySelectorAll('button')].find(e => e.textContent.trim() == 'Run').click();
    requestAnimationFrame(look);
})"""


def plans() -> dict[str, Plan]:
    """Every lab by its module and name, such as `fedavg.RACE`."""
    found = {}
    for module in pkgutil.iter_modules(labs.__path__):
        members = vars(importlib.import_module(f"{labs.__name__}.{module.name}"))
        found |= {f"{module.name}.{name}": plan for name, plan in members.items() if isinstance(plan, Plan)}
    return found


def page(text: str, found: Any) -> str:
    """The page of labs with its seconds as they were measured: two columns of the table, and the sentence below."""

    def with_seconds(line: str) -> str:
        cells = line.split("|")
        if len(cells) != 8 or not (names := re.findall(r"`(\w+\.[A-Z_0-9]+)`", cells[3])):
            return line
        rows = [found["labs"][name] for name in names]
        cells[4] = " " + ", ".join(f"{row['picture']['median']:.1f}" for row in rows) + " s "
        cells[5] = " " + ", ".join(f"{row['end']:.0f}" for row in rows) + " s "
        return "|".join(cells)

    rows = found["labs"].values()
    loads = [row["load"] for row in rows]
    picture, end = (max(row["processor"][i] for row in rows) for i in (0, 1))
    said = (
        f"*Measured in Chromium on {found['machine']}, at a load of {min(loads):.0f} to {max(loads):.0f}: the median "
        f"of {TIMES} to the first picture, once to the end. The kernel itself spends at most {picture:.1f} processor "
        f"seconds on a first picture, when nothing is loaded yet, and {end:.0f} on a run: the wait where nothing else "
        "runs.*"
    )
    return re.sub(r"^\*Measured.*$", said, "\n".join(map(with_seconds, text.split("\n"))), flags=re.MULTILINE)


def readme(text: str, found: Any) -> str:
    """The README with the seconds of its notebooks as they were measured."""
    for name, row in found["notebooks"].items():
        row_of = re.compile(rf"^(\| \[{name}\].*\| )\d+ s \|$", re.MULTILINE)
        text = row_of.sub(rf"\g<1>{row['processor']:.0f} s |", text)
    return text


def busy() -> dict[str, float]:
    """The load of the machine and our niceness."""
    return {"load": round(os.getloadavg()[0], 1), "nice": os.nice(0)}


def lab_seconds(page: Any, server: Any, name: str) -> dict[str, Any]:
    """See above."""
    module, _, plan = name.partition(".")
    machine = busy()
    show = SHOW.format(plan)
    notebook = server.open(page, server.write(f"{plan}.ipynb", IMPORT.format(module, plan), show, SPENT))
    run = "window.jupyterapp.commands.execute('notebook:{}')"

    def press(done: bool) -> float:
        """Makes the lab anew and presses Run."""
        page.evaluate(run.format("run-cell"))
        page.wait_for_timeout(300)
        notebook.button("Run").wait_for()
        return float(page.evaluate(WATCH, done))

    page.evaluate(run.format("run-cell-and-select-next"))
    notebook.root.locator(".jp-InputPrompt", has_text="[1]:").wait_for()
    pictures = [press(False)]
    end = pictures[0] + page.evaluate(WATCH, True)  # pressed again, Run goes on
    page.evaluate(run.format("move-cursor-down"))
    page.evaluate(run.format("run-cell"))
    spent = [round(float(part), 2) for part in notebook.wait_text("processor").inner_text().split()[1:]]
    page.evaluate(run.format("move-cursor-up"))
    pictures += [press(False) for _ in range(TIMES - 1)]
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    seconds = {"median": statistics.median(pictures), "worst": max(pictures), "first": pictures[0]}
    picture = {part: round(value, 2) for part, value in seconds.items()}
    return {"picture": picture, "end": round(end, 1), "processor": spent, **machine}


def notebook_seconds(path: Path) -> dict[str, float]:
    """Seconds of a notebook, executed in a reader's environment and not saved."""
    from tools.execute_notebooks import execute, read

    machine, before = busy(), os.times()
    _, timing = execute(read(path), path.parent, 600)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": round(timing.total, 1), "processor": round(spent, 1), **machine}


def measured(names: list[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Part of the file, name and row of each, notebooks last."""
    from tools.jupyterlab import chromium, jupyterlab

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as own, chromium() as browser:
        with jupyterlab(Path(folder), Path(own)) as server:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            for name in names:
                if "." in name:
                    yield "labs", name, lab_seconds(page, server, name)
    for name in names:
        if "." not in name:
            yield "notebooks", name, notebook_seconds(ROOT / "notebooks" / f"{name}.ipynb")


def main() -> None:
    """Measures what is asked for; the other rows stay."""
    known = [*plans(), *sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="such as fedavg.RACE or 00_start_here; all by default")
    names = parser.parse_args().names or known
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"labs": {}, "notebooks": {}}
    for part, name, row in measured(names):
        found[part][name] = row | {"versions": versions()}
        print(name.ljust(26), row, flush=True)
        found["machine"] = f"{processor()}, {os.cpu_count()} cores"
        for rows in (found["labs"], found["notebooks"]):
            for key in sorted(rows, key=lambda key: known.index(key) if key in known else len(known)):
                rows[key] = rows.pop(key)
        files.write(FILE, (json.dumps(found, indent=1) + "\n").encode())
    for path, write in {ROOT / "docs" / "labs.md": page, ROOT / "README.md": readme}.items():
        path.write_text(write(path.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
