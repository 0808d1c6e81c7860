"""What a new user meets, on a bare environment: the way from a clone, the way from the wheel alone, the book.

    .venv/bin/python tools/first_run.py            # a clone, `make lab`, the first finished round
    .venv/bin/python tools/first_run.py --wheel    # the wheel alone, `pip install`, `fedlab-core lab`, the same round
    .venv/bin/python tools/first_run.py --book     # a clone, `make book`

Each works on the last commit in a temporary folder, with an environment of its own and an empty cache of pip. The first
two open the address that is printed in a browser, run all cells of the first notebook and press Run in the workbench.
Minutes, actions, seconds of each step and versions go into figures/first_run.json, and a sentence into the README; the
way from a clone also leaves a screenshot of what the user sees in the end.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fedlab_core import files  # noqa: E402
from tools.check import find_browser  # noqa: E402
from tools.jupyterlab import FLAGS, Notebook  # noqa: E402

FILE = ROOT / "figures" / "first_run.json"
INSTALL_TIMEOUT = 1800  # seconds until JupyterLab prints its address
README = ROOT / "README.md"
BEGIN, END = "<!-- written by tools/first_run.py -->", "<!-- end of first_run -->"
OPEN = "open the address it prints (a browser opens by itself on a desktop)"


class Clock:
    """Seconds of each step, in their order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure what happens inside."""
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 1)

    @property
    def minutes(self) -> float:
        """All steps together."""
        return round(sum(self.seconds.values()) / 60, 1)


def clone(folder: Path) -> None:
    """A copy of the last commit."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)


def bare(folder: Path) -> dict[str, str]:
    """The variables of a user who has nothing of this project's yet."""
    own = ("VIRTUAL_ENV", "FEDLAB_DATA", "PYTHONPATH", "OMP_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in own}
    made = {"JUPYTER_CONFIG_DIR": "config", "IPYTHONDIR": "ipython", "PIP_CACHE_DIR": "pip"}
    return kept | {name: str(folder / sub) for name, sub in made.items()}


def measure_clone(folder: Path) -> dict[str, Any]:
    """From `make lab` in a clone to the first finished round."""
    clone(folder / "fedlab")
    clock, words = Clock(), ["make", "lab", "ARGS=--no-browser"]
    with jupyterlab(words, folder / "fedlab", bare(folder), clock, "make lab") as address:
        live(address, clock, FILE.with_suffix(".png"))
    return {
        "minutes": clock.minutes,
        "minutes_until_jupyterlab": round(clock.seconds["make lab"] / 60, 1),
        **told(clock, ["make lab", OPEN, "Run > Run All Cells", "press Run in the workbench"]),
        "versions": versions(folder / "fedlab/.venv/bin/python"),
    }


def measure_wheel(folder: Path) -> dict[str, Any]:
    """From `pip install` of the wheel, in an empty environment, to the first finished round; there is no clone."""
    clone(folder / "source")
    quiet = ["--quiet", "--disable-pip-version-check"]
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        *quiet,
        "--no-deps",
        "-w",
        str(folder / "dist"),
        str(folder / "source"),
    ]
    environment = bare(folder)
    subprocess.run(build, check=True, env=environment)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    clock, python = Clock(), folder / "venv/bin/python"
    install = [str(python), "-m", "pip", "install", *quiet, str(wheel)]
    with clock.step("pip install"):
        subprocess.run(install, check=True, env=environment, cwd=folder, timeout=INSTALL_TIMEOUT)
    size = gigabytes(folder / "venv")
    words = [str(python.with_name("fedlab-core")), "lab", "mine", "--no-browser"]
    with jupyterlab(words, folder, environment, clock, "fedlab-core lab") as address:
        live(address, clock)
    what = [
        f"pip install {wheel.name}",
        "fedlab-core lab mine",
        OPEN,
        "Run > Run All Cells",
        "press Run in the workbench",
    ]
    return {
        "minutes": clock.minutes,
        **told(clock, what),
        "gigabytes": size,
        "versions": versions(python),
    }


def measure_book(folder: Path) -> dict[str, Any]:
    """`make book` in a clone, which makes the environment first; the book itself apart from it."""
    clone(folder / "fedlab")
    clock, environment = Clock(), bare(folder)
    for name, target in (("environment", ".venv/installed"), ("book", "book")):
        with clock.step(name):
            done = subprocess.run(
                ["make", target], cwd=folder / "fedlab", env=environment, capture_output=True, text=True
            )
        if done.returncode:
            raise SystemExit(f"make {target} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    pages = len([*(folder / "fedlab/build/book/html").rglob("*.html")])
    python = folder / "fedlab/.venv/bin/python"
    return {
        "minutes": clock.minutes,
        **told(clock, ["make book"]),
        "gigabytes": gigabytes(folder / "fedlab/.venv"),
        "pages": pages,
        "versions": versions(python),
    }


def sentences(record: Mapping[str, Any]) -> list[str]:
    """The README's lines about the wheel alone and the book, from the record."""
    parts = []
    if wheel := record.get("wheel"):
        install = wheel["seconds"]["pip install"] / 60
        parts.append(
            f"**With the wheel alone** it took [{wheel['minutes']} minutes and {wheel['actions']} actions]"
            f"(figures/first_run.json), at a load of {wheel['load']:.0f} by others: `pip install` "
            f"({install:.1f} minutes, {wheel['gigabytes']} GB on Linux, most of it PyTorch with the CUDA libraries), "
            "`fedlab-core lab mine`, and the same three actions in the browser."
        )
    if book := record.get("book"):
        made, site = (book["seconds"][part] / 60 for part in ("environment", "book"))
        parts.append(
            f"**The book** of {book['pages']} pages took {site:.1f} minutes from a bare clone, at a load of "
            f"{book['load']:.0f}, after {made:.1f} minutes for the environment ({book['gigabytes']} GB with what "
            "tests and book need)."
        )
    return parts


def write(file: Path, record: Mapping[str, Any]) -> None:
    """Write the sentences into the README."""
    text = file.read_text(encoding="utf-8")
    file.write_text(files.between(text, BEGIN, END, sentences(record)), encoding="utf-8")


def gigabytes(folder: Path) -> float:
    """What a folder takes on the disk."""
    return round(int(subprocess.check_output(["du", "-sm", str(folder)], text=True).split()[0]) / 1024, 1)


def told(clock: Clock, what: list[str]) -> dict[str, Any]:
    """What every entry says."""
    load = round(os.getloadavg()[0], 1)
    return {"actions": len(what), "what": what, "seconds": clock.seconds, "cores": os.cpu_count(), "load": load}


def versions(python: Path) -> dict[str, str]:
    """What the measured environment has installed."""
    say = "import json; from fedlab_core.about import versions; print(json.dumps(versions()))"
    return json.loads(subprocess.check_output([python, "-c", say], text=True, cwd=python.parent))


@contextlib.contextmanager
def jupyterlab(words: list[str], folder: Path, environment: dict[str, str], clock: Clock, name: str) -> Iterator[str]:
    """The address of the JupyterLab that a command starts, and the end of it."""
    log = folder / "lab.log"
    with log.open("w") as out:
        began = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        with clock.step(name):
            address = wait_for_address(began, log)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(began.pid, signal.SIGTERM)
        began.wait(60)


def wait_for_address(lab: subprocess.Popen, log: Path) -> str:
    """The address in the log."""
    deadline = time.monotonic() + INSTALL_TIMEOUT
    while time.monotonic() < deadline:
        found = re.search(r"http://127\.0\.0\.1:\d+/lab\S*token=\w+", log.read_text())
        if found:
            return found[0]
        if lab.poll() is not None:
            break
        time.sleep(0.5)
    raise SystemExit(f"no address was printed:\n{log.read_text()[-3000:]}")


def live(address: str, clock: Clock, picture: Path | None = None) -> None:
    """Open the first notebook, run its cells and press Run until a round has finished in front of the user."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        with clock.step("open"):
            page.goto(address, timeout=120_000)
            page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").first.wait_for(timeout=120_000)
            page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120_000)
        notebook = Notebook(page, Path("notebooks/00_start_here.ipynb"))
        with clock.step("Run All Cells"):
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            notebook.wait_text("stands at round 10", timeout=600)  # the last cell that takes time
        with clock.step("Run"):
            notebook.button("Run").last.click()  # the labs above have one as well
            notebook.wait_text(re.compile(r"[1-9]\d* of 10 rounds"), timeout=120)
        if picture is not None:
            page.wait_for_timeout(3000)
            page.screenshot(path=picture)
        browser.close()


def main() -> None:
    """Measure one way in and write its entry; the other entries stay."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--wheel", action="store_true", help="the wheel alone, without a clone")
    ways.add_argument("--book", action="store_true", help="make book")
    options = parser.parse_args()
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="fedlab-first-run-") as temporary:
        if options.wheel or options.book:
            name, measure = ("wheel", measure_wheel) if options.wheel else ("book", measure_book)
            result = kept | {name: measure(Path(temporary))}
        else:
            result = measure_clone(Path(temporary)) | {k: kept[k] for k in ("wheel", "book") if k in kept}
    FILE.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write(README, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
