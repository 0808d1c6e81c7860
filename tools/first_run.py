"""What a new user meets: a copy of the repository on a bare environment, `make lab`, the first finished round.

    .venv/bin/python tools/first_run.py

Clones the last commit into a temporary folder, runs `make lab` there (which makes an environment of its own), opens the
address it prints in a browser, runs all cells and presses Run in the workbench. Counts the user's actions and writes
minutes and actions into figures/first_run.json, with a screenshot of what the user sees in the end.
"""

import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.check import find_browser  # noqa: E402
from tools.jupyterlab import FLAGS, Notebook  # noqa: E402

INSTALL_TIMEOUT = 1800  # seconds until JupyterLab prints its address


def measure(folder: Path) -> dict[str, object]:
    """Plays the new user in an empty folder; returns what it took."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "FEDLAB_DATA", "PYTHONPATH")}
    environment |= {"JUPYTER_CONFIG_DIR": str(folder / "config"), "IPYTHONDIR": str(folder / "ipython")}
    began, actions = time.perf_counter(), ["make lab"]
    log = (folder / "lab.log").open("w+")
    lab = subprocess.Popen(
        ["make", "lab", "ARGS=--no-browser"],
        cwd=folder,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        address = _address(lab, Path(log.name))
        installed = time.perf_counter() - began
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            actions.append("open the address it prints (a browser opens by itself on a desktop)")
            page.goto(address, timeout=120_000)
            page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").first.wait_for(timeout=120_000)
            page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120_000)
            notebook = Notebook(page, folder / "notebooks" / "00_start_here.ipynb")
            actions.append("Run > Run All Cells")
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            notebook.wait_text("stands at round 10", timeout=300)  # the last cell that takes time
            actions.append("press Run in the workbench")
            notebook.button("Run").last.click()  # the labs above have one as well
            notebook.wait_text(re.compile(r"[1-9]\d* of 10 rounds"), timeout=120)
            minutes = (time.perf_counter() - began) / 60
            page.wait_for_timeout(3000)
            page.screenshot(path=ROOT / "figures" / "first_run.png")
            browser.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(lab.pid, signal.SIGTERM)
        lab.wait(60)
    return {
        "minutes": round(minutes, 1),
        "minutes_until_jupyterlab": round(installed / 60, 1),
        "actions": len(actions),
        "what": actions,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def _address(lab: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + INSTALL_TIMEOUT
    while time.monotonic() < deadline:
        found = re.search(r"http://127\.0\.0\.1:\d+/lab\S*token=\w+", log.read_text())
        if found:
            return found[0]
        if lab.poll() is not None:
            break
        time.sleep(0.5)
    raise SystemExit(f"make lab did not print an address:\n{log.read_text()[-3000:]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fedlab-first-run-") as temporary:
        result = measure(Path(temporary) / "fedlab")
    (ROOT / "figures" / "first_run.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
