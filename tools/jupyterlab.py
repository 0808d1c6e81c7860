"""A real JupyterLab in a real browser, for tests, benchmarks and pictures.

with jupyterlab(folder, own) as lab, chromium() as browser:
    page = browser.new_page()
    notebook = lab.open(page, lab.copy("00_start_here.ipynb"))
    notebook.run_all()
    notebook.press("Run")
    notebook.wait_text("round 5")
    screenshot(page, folder / "panel.png")
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tools.check import ROOT, find_browser
from tools.execute_notebooks import METADATA, reader_environment

ARTEFACTS = ROOT / "tests" / "browser" / "artefacts"
START_TIMEOUT = 120  # seconds for the server, and for JupyterLab in the page; generous for a busy two-core machine
ACTION_TIMEOUT = 60  # seconds for anything a panel does at once
FLAGS = [
    "--no-sandbox",  # Chromium refuses to start as root with it
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The whole notebook is in the page, not only what is scrolled into view, and nothing pops up.
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


class Notebook:
    """One notebook, open in JupyterLab.

    Controls are found by what a reader sees: the label beside a slider or drop-down, the words on a button.
    """

    def __init__(self, page: Page, path: Path) -> None:
        self.page = page
        self.path = path
        self.root: Locator = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        self.outputs: Locator = self.root.locator(".jp-Cell-outputArea")

    def run_all(self, timeout: float = 90) -> None:
        """Run every cell as the Run menu does and wait until the last one has finished (threads may still be at work).

        Raises:
            AssertionError: a cell raised, with its traceback.
            playwright TimeoutError: not finished after `timeout` seconds.
        """
        self.page.evaluate(
            "() => { window.ranAll = null;"
            " window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.ranAll = true; }) }"
        )
        self.page.wait_for_function("window.ranAll !== null", timeout=timeout * 1000)
        errors = self.page.evaluate(
            """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells
                .flatMap(cell => cell.outputs ?? []).filter(output => output.output_type === 'error')
                .map(output => output.traceback.join('\\n'))"""
        )
        assert not errors, re.sub(r"\x1b\[[\d;]*m", "", "\n".join(errors))

    def answered(self, timeout: float = ACTION_TIMEOUT) -> None:
        """Wait until the kernel has dealt with everything that the page has sent since this was called first."""
        self.page.wait_for_function(
            """() => {
                const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel;
                if (!kernel) return true;
                if (kernel.unanswered === undefined) {
                    kernel.unanswered = new Set();
                    kernel.anyMessage.connect((_, { msg, direction }) => {
                        if (direction === 'send' && msg.channel === 'shell') kernel.unanswered.add(msg.header.msg_id);
                        if (msg.content.execution_state === 'idle') kernel.unanswered.delete(msg.parent_header.msg_id);
                    });
                    kernel.statusChanged.connect((_, status) => {
                        if (/restarting|dead/.test(status)) kernel.unanswered.clear();
                    });
                }
                return kernel.unanswered.size === 0;
            }""",
            timeout=timeout * 1000,
        )

    def ask(self, expression: str) -> str:
        """What the kernel says of an expression, as its `repr`."""
        return self.page.evaluate(
            """async expression => {
                const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                const asked = { code: '', silent: true, user_expressions: { found: expression } };
                const reply = await kernel.requestExecute(asked).done;
                return reply.content.user_expressions.found.data['text/plain'];
            }""",
            expression,
        )

    def button(self, label: str) -> Locator:
        """A button in a cell's output by the words on it."""
        # Not by its accessible name: that begins with the icon's character.
        return self.outputs.locator("button", has_text=exactly(label))

    def press(self, label: str, timeout: float = ACTION_TIMEOUT) -> None:
        """Wait until the kernel knows what was chosen before and the button is there and enabled, and click it."""
        self.answered(timeout)  # a press is sent at once, a choice only when the one before it has been answered
        self.button(label).click(timeout=timeout * 1000)

    def wait_text(self, text: str | re.Pattern[str], timeout: float = ACTION_TIMEOUT) -> Locator:
        """Wait until the text (part of it, or a pattern) can be seen in an output, and return where."""
        found = self.outputs.get_by_text(text).filter(visible=True).first
        expect(found).to_be_visible(timeout=timeout * 1000)
        return found

    def control(self, label: str) -> Locator:
        """The slider, drop-down, text or check box with this label beside it."""
        named = self.page.locator(".widget-label", has_text=exactly(label))
        return self.outputs.locator(".jupyter-widgets").filter(has=named).last

    def choose(self, label: str, option: str) -> None:
        """Choose an option of a drop-down."""
        self.select(self.control(label).locator("select"), option, f"w.description == {label!r} and w.label")

    def select(self, menu: Locator, option: str, chosen: str) -> None:
        """Choose an option, and choose it again where the page has not told the kernel.

        Args:
            chosen: what the kernel has, an expression of `w`, any drop-down of the notebook.
        """
        every = "list(__import__('ipywidgets').widgets.widget._instances.values())"
        asked = f"any(isinstance(w, __import__('ipywidgets').Dropdown) and {chosen} == {option!r} for w in {every})"
        for _ in range(5):  # on a busy machine JupyterLab loses a choice now and then: the page shows it
            menu.select_option(label=option.replace(" ", "\u00a0"))  # as ipywidgets writes it
            self.answered()
            if self.ask(asked) == "True":
                return
            menu.select_option(index=0)
            self.answered()
        raise AssertionError(f"the kernel is not told of {option!r}")

    def slide(self, label: str, value: float | str) -> None:
        """Set a slider as a reader does: click its number, type, press Enter."""
        number = self.control(label).locator(".widget-readout")
        number.click()
        number.press("ControlOrMeta+a")
        self.page.keyboard.type(str(value))
        number.press("Enter")

    def type(self, label: str, value: float | str) -> None:
        """Fill in a text or number field."""
        field = self.control(label).locator("input")
        field.fill(str(value))
        field.press("Enter")

    def screenshot(self, name: str) -> Path:
        """Save what is in the window now as artefacts/<name>.png."""
        return screenshot(self.page, name)


def exactly(text: str) -> re.Pattern[str]:
    """A pattern for an element whose whole text is this."""
    return re.compile(rf"^\s*{re.escape(text)}\s*$")


def screenshot(page: Page, name: str) -> Path:
    """Save what is in the window now as artefacts/<name>.png, a folder git ignores."""
    ARTEFACTS.mkdir(exist_ok=True)
    path = ARTEFACTS / f"{name}.png"
    page.screenshot(path=path)
    return path


class Lab:
    """A running JupyterLab whose files are in the temporary folder `folder`."""

    def __init__(self, folder: Path, port: int, token: str) -> None:
        self.folder = folder
        self.port = port
        self.token = token

    def url(self, path: str) -> str:
        """Address of a page of this server."""
        return f"http://127.0.0.1:{self.port}/{path}?token={self.token}&reset"

    def copy(self, name: str) -> Path:
        """Copy a committed notebook into the server's folder; returns its new path."""
        return Path(shutil.copy(ROOT / "notebooks" / name, self.folder / Path(name).name))

    def write(self, name: str, *sources: str) -> Path:
        """Write a notebook of these code cells into the server's folder; returns its path."""
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata=METADATA)
        nbformat.write(notebook, self.folder / name)
        return self.folder / name

    def open(self, page: Page, path: Path) -> Notebook:
        """Open a notebook of the server's folder in the page and wait until its kernel is idle."""
        page.goto(self.url(f"lab/tree/{path.relative_to(self.folder)}"), timeout=START_TIMEOUT * 1000)
        page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=START_TIMEOUT * 1000,
        )
        return Notebook(page, path)


def wait_until_up(server: subprocess.Popen, lab: Lab, log: Path) -> None:
    """Wait until the server answers; RuntimeError with its log if it ends or stays silent."""
    deadline = time.monotonic() + START_TIMEOUT
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with direct.open(lab.url("api/status"), timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@contextlib.contextmanager
def jupyterlab(folder: Path, own: Path) -> Iterator[Lab]:
    """A JupyterLab with a port, a token and settings of its own.

    Args:
        folder: where its notebooks are.
        own: where it keeps settings and its log.
    """
    for name, values in SETTINGS.items():
        path = own / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lab = Lab(folder, port, secrets.token_hex(16))
    options = {
        "IdentityProvider.token": lab.token,
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "LabApp.extension_manager": "readonly",
        "LabApp.news_url": "",
        "LabApp.expose_app_in_browser": True,
    }
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    directories = {
        "JUPYTER_CONFIG_DIR": own / "config",
        "JUPYTER_RUNTIME_DIR": own / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": own / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": own / "workspaces",
        "IPYTHONDIR": own / "ipython",
    }
    log = own / "log"
    with reader_environment(), log.open("w") as output:
        environment = {**os.environ, **{name: str(path) for name, path in directories.items()}}
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until_up(server, lab, log)
        yield lab
    finally:
        server.terminate()  # the server ends its kernels before itself
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


@contextlib.contextmanager
def chromium(path: str | None = None) -> Iterator[Browser]:
    """A headless Chromium or Chrome with a fresh profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path or find_browser(), args=FLAGS, timeout=START_TIMEOUT * 1000
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def open_notebook(*sources: str, name: str = "panel.ipynb", size: tuple[int, int] = (1440, 900)) -> Iterator[Notebook]:
    """A notebook of these code cells, all of them run, in a JupyterLab and a browser of its own."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as own:
        with jupyterlab(Path(folder), Path(own)) as lab, chromium() as browser:
            page = browser.new_page(viewport={"width": size[0], "height": size[1]})
            notebook = lab.open(page, lab.write(name, *sources))
            notebook.run_all()
            yield notebook
