"""The workbench as a reader meets it: buttons, sliders and figures in JupyterLab."""

import json
import os
import re
import signal

import pytest
from playwright.sync_api import expect

from tools.jupyterlab import screenshot

PANEL = """
from fedlab_core.experiment import Experiment
from fedlab_core.workbench import Workbench
bench = Workbench(Experiment(partition="dirichlet", clients=20).replace(fraction=0.25, epochs=5), reference=True)
bench
"""
WORDS_CUT_OFF = """() => [...document.querySelectorAll(
    '.fedlab .widget-label, .fedlab-main button, .fedlab .widget-readout, .fedlab-heading')]
    .filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"""

FOCUSABLE = """() => [...document.querySelectorAll('.fedlab button, .fedlab input, .fedlab select')]
    .filter(e => e.offsetParent).map(e => e.textContent)"""


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
    expect(notebook.control("Shown").locator("option")).to_have_text(["FedAvg", "SCAFFOLD, from 4"])

    notebook.slide("Learning rate", 0.02)
    notebook.wait_text("lr 0.1 → 0.02")
    notebook.slide("Learning rate", 0.1)
    notebook.wait_text("Result of SCAFFOLD, from 4")
    assert stage.bounding_box() == place
    assert page.evaluate(WORDS_CUT_OFF) == []
    assert notebook.screenshot("workbench").stat().st_size > 50_000


def test_what_goes_wrong_is_said_and_the_panel_goes_on(lab, page):
    breaks = "from fedlab_core.engines.auto import AutoEngine as engine\ntrain, engine.train = engine.train, None"
    notebook = open_panel(lab, page, breaks)
    notebook.choose("Partition", "label shards")
    notebook.type("per client", 20)
    notebook.type("Clients K", 200)
    notebook.wait_text("1437 examples make at most 71 clients with per_client=20")
    notebook.press("Run")
    notebook.type("Clients K", 20)
    notebook.wait_text("Ready.")
    expect(notebook.root.locator(".fedlab-says button")).to_be_hidden()
    notebook.press("Run")
    notebook.wait_text("TypeError: 'NoneType' object is not callable")
    notebook.wait_text(re.compile("Traceback"))
    notebook.screenshot("workbench-error")
    page.evaluate(
        "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
        ".requestExecute({code: 'engine.train = train'}).done"
    )
    notebook.type("Rounds", 2)
    run = notebook.button("Run")
    run.focus()
    page.keyboard.press("Space")  # the keyboard is enough
    notebook.wait_text("FedAvg stands at round 2")
    assert page.evaluate("document.activeElement.textContent").strip() == "Run"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent").strip() == "Stop"
    assert [e.strip() for e in page.evaluate(FOCUSABLE)[:5]][0] == "Run"


def test_dark_theme_and_every_view(lab, page):
    notebook = open_panel(lab, page, "bench.run(6, block=True)\nbench.set(lr=0.05)\nbench.fork(at=3)\nbench.report()")
    notebook.wait_text("FedAvg, lr 0.05, from 3 branches off")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
    image = notebook.root.locator(".fedlab-stage img")
    for view in ("Clients", "Drift", "Stability", "Basin", "Twins", "Costs", "Curves"):
        before = image.get_attribute("src")
        notebook.press(view)
        expect(image).not_to_have_attribute("src", before, timeout=30_000)
        notebook.screenshot(f"workbench-dark-{view.lower()}")
    background, text = (
        notebook.root.locator(".fedlab-status").evaluate(f"e => getComputedStyle(e).{name}")
        for name in ("backgroundColor", "color")
    )
    assert min(map(float, re.findall(r"[\d.]+", text)[:3])) > 200, (background, text)
    expect(image).to_have_css("filter", re.compile("invert"))  # the figure follows the theme, whoever changes it
    expect(notebook.control("Method").locator("select")).to_have_css("color-scheme", "dark")


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


SEEN = (".fedlab-stage", ".fedlab-status", ".fedlab-progress", ".fedlab-times .widget-slider", ".fedlab-line.two")
SIZES = {"laptop": (1280, 720), "desk": (1440, 900), "phone": (390, 844)}


def inside_window(page, locator):
    box, size = locator.bounding_box(), page.viewport_size
    return (
        box["x"] >= 0
        and box["y"] >= 0
        and box["x"] + box["width"] <= size["width"]
        and (box["y"] + box["height"] <= size["height"])
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_the_panel_fits_the_screen(lab, page, size, theme):
    notebook = open_panel(lab, page, "bench.run(5, block=True)")
    notebook.wait_text("FedAvg stands at round 5")
    width, height = SIZES[size]
    page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
    page.locator(f"body[data-jp-theme-light={str(theme == 'Light').lower()}]").wait_for(state="attached")
    if size == "phone":
        page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.set_viewport_size({"width": width, "height": height})
    notebook.root.locator(".fedlab").evaluate("e => e.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(500)
    notebook.screenshot(f"panel-{size}-{theme.lower()}")
    if size != "phone":
        assert page.locator(".jp-FileBrowser").is_visible()
        for name in SEEN:
            assert inside_window(page, notebook.root.locator(name).first), name
        for label in ("Run", "Stop", "Rewind", "Fork", "Reset", "Save"):
            assert inside_window(page, notebook.button(label)), label
        tops = [notebook.button(label).bounding_box()["y"] for label in ("Run", "Save")]
        assert abs(tops[0] - tops[1]) < 8, "all buttons in one row"
    main, stage = notebook.root.locator(".fedlab-main").bounding_box(), notebook.root.locator(".fedlab-stage")
    controls = notebook.root.locator(".fedlab-controls").bounding_box()
    assert (controls["y"] >= main["y"] + main["height"]) == (size == "phone")
    assert controls["x"] + controls["width"] <= width and main["x"] + main["width"] <= width
    dense = stage.locator("img").evaluate("e => e.naturalWidth / e.clientWidth")
    assert dense >= 1.5, "crisp on dense screens"
    assert page.evaluate(WORDS_CUT_OFF) == []


def test_a_choice_that_does_not_fit_offers_a_way_out(lab, page):
    notebook = open_panel(lab, page)
    notebook.choose("Method", "layer-wise (needs a staged model)")
    button = notebook.root.locator(".fedlab-says button")
    expect(button).to_be_visible()
    notebook.screenshot("workbench-way-out")
    button.click()
    notebook.wait_text("Ready.")
    expect(button).to_be_hidden()
    notebook.choose("Method", "FedAdam")
    assert notebook.control("server lr").locator("input").input_value() == "0.01"


def test_figures_tables_and_reports_are_downloaded(lab, page, tmp_path):
    notebook = open_panel(lab, page, "bench.run(3, block=True)")
    notebook.wait_text("FedAvg stands at round 3")
    kind = notebook.root.locator(".fedlab-bar select").first
    for name, ending in (("SVG", "svg"), ("CSV table", "csv"), ("HTML report", "html")):
        notebook.select(kind, name, "w.label")
        notebook.press("Save")
        notebook.wait_text(re.compile(rf"Saved workbench-curves-.*[.]{ending} in"))
        with page.expect_download() as download:
            notebook.root.locator(".fedlab-status a").click()
        assert download.value.suggested_filename.endswith(ending)
        download.value.save_as(tmp_path / f"file.{ending}")
        assert list(lab.folder.glob(f"workbench-curves-*.{ending}"))
    page.goto(f"file://{tmp_path / 'file.html'}")
    expect(page.locator("svg").first).to_be_visible()
    screenshot(page, "workbench-report")


def test_a_panel_whose_kernel_is_gone_says_so_and_its_runs_come_back(lab, page):
    notebook = open_panel(lab, page, "bench.run(3, block=True)")
    notebook.wait_text("FedAvg stands at round 3")
    gone = notebook.root.locator(".fedlab-gone")
    expect(gone).to_be_hidden()
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    expect(gone).to_be_visible(timeout=40_000)
    notebook.screenshot("workbench-gone")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    expect(gone).to_be_hidden(timeout=60_000)
    notebook.wait_text("FedAvg stands at round 3")
    notebook.press("Open earlier runs")
    notebook.wait_text("1 runs are back: FedAvg")


def test_a_cell_that_runs_again_has_one_panel(lab, page):
    notebook = open_panel(lab, page)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    notebook.wait_text("then press Run")
    expect(notebook.root.locator(".fedlab-bench")).to_have_count(1)


def test_a_kernel_killed_in_a_long_run_loses_no_round_that_was_kept(lab, page):
    panel, number = PANEL.replace(", reference=True", ""), "import os; print('kernel', os.getpid())"
    notebook = lab.open(page, lab.write("killed.ipynb", panel, number))
    notebook.run_all()
    kernel = int(re.search(r"\d+", notebook.wait_text(re.compile(r"kernel \d+")).inner_text())[0])
    notebook.type("Rounds", 200)
    notebook.press("Run")
    for _ in range(600):
        saved = next((lab.folder / "runs").glob(f"*-{kernel}/panel.json"), None)
        if saved and json.loads(saved.read_text())["runs"][0]["round"] > 1:
            break
        page.wait_for_timeout(100)
    os.kill(kernel, signal.SIGKILL)
    kept = json.loads(saved.read_text())["runs"][0]["round"]
    again = lab.open(page, notebook.path)  # the same notebook once more
    again.run_all()
    again.press("Open earlier runs")
    again.wait_text("1 runs are back: FedAvg")
    assert kept <= shown_round(again) < 200
    again.type("Rounds", 3)
    again.press("Run")
    again.wait_text(re.compile(r"FedAvg stands at round \d+"))
    straight = "(straight := bench.experiment.build().run(bench.result.round))"
    same = "all((bench.result.state[n] == t).all() for n, t in straight.state.items())"
    assert again.ask(f"{straight}.history == bench.result.history and {same}") == "True"
    again.screenshot("workbench-killed")
