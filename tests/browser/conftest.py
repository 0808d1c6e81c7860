"""A real JupyterLab in a real browser: `lab` is the server, `page` a browser page; see `tools/jupyterlab.py`.

def test_panel(lab, page):
    notebook = lab.open(page, lab.copy("00_start_here.ipynb"))
    notebook.run_all()
    notebook.press("Run")
    notebook.wait_text("round 5")
    notebook.screenshot("panel")
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tools.check import BROWSER_REMEDY, find_browser
from tools.jupyterlab import Lab, chromium, jupyterlab, screenshot


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser test that fails is run once more, and counted: JupyterLab loses messages on a busy machine."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab with a port, a token, settings and a folder of its own."""
    with jupyterlab(tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("jupyter")) as lab:
        yield lab


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium or Chrome; without one the tests skip, or fail where CI is set."""
    path = find_browser()
    if path is None:
        complain = pytest.fail if os.environ.get("CI") else pytest.skip
        complain(f"no browser: {BROWSER_REMEDY}")
    with chromium(path) as browser:
        yield browser


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep the report of each phase on the item, so that the `page` fixture knows of a failure."""
    report = yield
    item.stash.setdefault(REPORTS, {})[report.when] = report
    return report


REPORTS = pytest.StashKey[dict[str, pytest.TestReport]]()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of 1400 x 1600 pixels; when the test fails, artefacts/<test>-failed.png shows it."""
    context = browser.new_context(viewport={"width": 1400, "height": 1600})
    page = context.new_page()
    yield page
    report = request.node.stash.get(REPORTS, {}).get("call")
    if report is not None and report.failed:
        screenshot(page, f"{request.node.name}-failed")
    context.close()
