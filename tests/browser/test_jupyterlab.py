"""The fixtures reach a kernel and its widgets as a reader does: what the workbench's own browser test stands on."""

import pytest

PANEL = """\
import threading, time
import ipywidgets as widgets
rounds = widgets.IntSlider(description="Rounds", value=3, min=1, max=50)
method = widgets.Dropdown(description="Method", options=["FedAvg", "FedSGD"])
name = widgets.Text(description="Name", continuous_update=False)
run = widgets.Button(description="Run", icon="play")
bar = widgets.IntProgress(min=0, max=1)
status = widgets.HTML("ready")

def work():
    for done in range(1, rounds.value + 1):
        time.sleep(0.05)
        bar.max, bar.value = rounds.value, done
        status.value = f"{method.value} {name.value}: round {done} of {rounds.value}"
    run.disabled = False

def start(_):
    run.disabled = True
    threading.Thread(target=work, daemon=True).start()

run.on_click(start)
widgets.VBox([rounds, method, name, run, bar, status])\
"""


def test_a_panel_is_driven_and_a_thread_reports(lab, page):
    notebook = lab.open(page, lab.write("panel.ipynb", "print('a first cell')", PANEL))
    notebook.run_all()
    notebook.wait_text("a first cell")
    notebook.slide("Rounds", 12)
    notebook.choose("Method", "FedSGD")
    notebook.type("Name", "mine")
    notebook.press("Run")
    notebook.wait_text("FedSGD mine: round 12 of 12")
    assert notebook.screenshot("jupyterlab").stat().st_size > 20_000
    assert page.locator(".jp-toast-button, .Toastify__toast, .jp-Dialog").count() == 0


def test_a_cell_that_raises_is_reported(lab, page):
    notebook = lab.open(page, lab.write("raises.ipynb", "1 / 0"))
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        notebook.run_all()
