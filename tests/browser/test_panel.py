"""The workbench as a reader meets it: buttons, sliders and figures in JupyterLab."""

import re

from playwright.sync_api import expect

PANEL = """
from fedlab_core.experiment import Experiment
from fedlab_core.workbench import Workbench
bench = Workbench(Experiment(partition="dirichlet", clients=20).replace(fraction=0.25, epochs=5), reference=True)
bench
"""
WORDS_CUT_OFF = """() => [...document.querySelectorAll(
    '.fedlab .widget-label, .fedlab button, .fedlab .widget-readout, .fedlab-heading')]
    .filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"""


def open_panel(lab, page, *cells):
    page.set_viewport_size({"width": 1400, "height": 900})
    notebook = lab.open(page, lab.write("workbench.ipynb", PANEL, *cells))
    notebook.run_all()
    notebook.wait_text(re.compile("then press Run|Result of"))
    page.locator(".fedlab").scroll_into_view_if_needed()
    return notebook


def shown_round(notebook):
    return int(re.search(r"Round\s(\d+)", notebook.root.locator(".fedlab-line.two").inner_text())[1])


def test_train_stop_rewind_fork_and_compare(lab, page):
    notebook = open_panel(lab, page, "print('the notebook answers')")
    stage = notebook.root.locator(".fedlab-stage")
    place, picture = stage.bounding_box(), stage.locator("img").get_attribute("src")

    notebook.type("Rounds", 200)
    notebook.press("Run")
    notebook.wait_text(re.compile(r"[3-9] of 200 rounds · .* elapsed · about .* left"))
    expect(stage.locator("img")).not_to_have_attribute("src", picture)
    notebook.press("Run")
    notebook.wait_text("Already running")
    notebook.press("Stop")
    notebook.wait_text(re.compile("Stopped after [0-9]+ of 200 rounds"))
    stopped = shown_round(notebook)
    assert stopped >= 3
    assert stage.bounding_box() == place  # nothing has jumped

    notebook.slide("Round", 2)
    notebook.press("Rewind")
    notebook.wait_text("back at round 2")
    assert shown_round(notebook) == 2
    notebook.type("Rounds", 6)
    notebook.press("Run")
    notebook.wait_text("FedAvg stands at round 8")
    assert shown_round(notebook) == 8

    notebook.choose("Method", "SCAFFOLD")
    notebook.wait_text("method FedAvg → SCAFFOLD")
    notebook.wait_text("Stale")
    assert stage.locator("img").evaluate("e => getComputedStyle(e).opacity") == "0.4"
    notebook.screenshot("workbench-stale")
    notebook.slide("Round", 4)
    notebook.press("Fork")
    notebook.wait_text("SCAFFOLD, from 4 branches off FedAvg after round 4")
    expect(stage.locator("img")).to_have_css("opacity", "1")
    notebook.press("Run")
    notebook.wait_text("SCAFFOLD, from 4 stands at round 10")
    expect(notebook.control("Shown run").locator("option")).to_have_text(["FedAvg", "SCAFFOLD, from 4"])

    notebook.slide("Learning rate", 0.02)
    notebook.wait_text("lr 0.1 → 0.02")
    notebook.slide("Learning rate", 0.1)
    notebook.wait_text("Result of SCAFFOLD, from 4")
    assert stage.bounding_box() == place
    assert page.evaluate(WORDS_CUT_OFF) == []
    assert notebook.screenshot("workbench").stat().st_size > 50_000


def test_what_goes_wrong_is_said_and_the_panel_goes_on(lab, page):
    breaks = "from fedlab_core.engines import loop\ntrain_client, loop.train_client = loop.train_client, None"
    notebook = open_panel(lab, page, breaks)
    notebook.choose("Partition", "label shards")
    notebook.slide("Clients K", 200)
    notebook.slide("Shards each", 20)
    notebook.wait_text("1437 examples make at most 71 clients with per_client=20")
    notebook.press("Run")
    notebook.slide("Clients K", 20)
    notebook.wait_text("Ready.")
    notebook.press("Run")
    notebook.wait_text("TypeError: 'NoneType' object is not callable")
    notebook.wait_text(re.compile("Traceback"))
    notebook.screenshot("workbench-error")
    page.evaluate(
        "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
        ".requestExecute({code: 'loop.train_client = train_client'}).done"
    )
    notebook.type("Rounds", 2)
    run = notebook.button("Run")
    run.focus()
    page.keyboard.press("Space")  # the keyboard is enough
    notebook.wait_text("FedAvg stands at round 2")
    assert page.evaluate("document.activeElement.textContent").strip() == "Run"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent").strip() == "Stop"


def test_dark_theme_and_every_view(lab, page):
    notebook = open_panel(lab, page, "bench.run(6, block=True)\nbench.set(lr=0.05)\nbench.fork(at=3)\nbench.report()")
    notebook.wait_text("FedAvg, lr 0.05, from 3 branches off")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
    image = notebook.root.locator(".fedlab-stage img")
    for view in ("Clients", "Drift", "Costs", "Curves"):
        before = image.get_attribute("src")
        notebook.press(view)
        expect(image).not_to_have_attribute("src", before, timeout=30_000)
        notebook.screenshot(f"workbench-dark-{view.lower()}")
    background, text = (
        notebook.root.locator(".fedlab-status").evaluate(f"e => getComputedStyle(e).{name}")
        for name in ("backgroundColor", "color")
    )
    assert min(map(float, re.findall(r"[\d.]+", text)[:3])) > 200, (background, text)


def test_a_start_is_learnt_and_mixtures_are_followed(lab, page):
    page.set_viewport_size({"width": 1400, "height": 900})
    cell = PANEL.replace(
        "bench = Workbench(", "from fedlab_core.workbench.views.probes import VIEWS\nbench = Workbench("
    )
    cell = cell.replace("reference=True", "views=VIEWS, band=False")
    notebook = lab.open(page, lab.write("starts.ipynb", cell))
    notebook.run_all()
    page.locator(".fedlab").scroll_into_view_if_needed()
    notebook.type("Rounds", 3)
    notebook.choose("Start", "noise")
    notebook.press("Run")
    notebook.wait_text("Learning the start noise")
    notebook.wait_text("FedAvg stands at round 3")
    notebook.wait_text("start: noise")
    image = notebook.root.locator(".fedlab-stage img")
    for view in ("Starts", "Stability"):
        before = image.get_attribute("src")
        notebook.press(view)
        expect(image).not_to_have_attribute("src", before, timeout=30_000)
        notebook.screenshot(f"workbench-{view.lower()}")
    assert page.evaluate(WORDS_CUT_OFF) == []
