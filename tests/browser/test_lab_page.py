"""A lab in JupyterLab: a first picture comes by itself, a knob and Run are used as a reader uses them."""

import re

CELL = """\
from fedlab_core.workbench.lab import Lab
from fedlab_core.workbench.labs.rounds import TUG_OF_WAR
lab = Lab(TUG_OF_WAR)
lab\
"""
SENTENCE = re.compile(r"The mean is \d+ % as long as the clients' updates in round 1, \d+ % in round (\d+)")


def test_a_lab_looks_first_then_runs_and_compares(lab, page):
    notebook = lab.open(page, lab.write("lab.ipynb", CELL))
    notebook.run_all()
    notebook.wait_text(SENTENCE)  # after the first look
    notebook.wait_text(re.compile(r"about \d+ s to the end"))
    image = notebook.outputs.locator(".fedlab-lab img")
    assert image.evaluate("picture => picture.naturalWidth") > 1000
    notebook.press("Run")
    assert SENTENCE.search(notebook.wait_text(re.compile("in round 12;")).inner_text())
    notebook.wait_text(re.compile(r"took \d+\.\d s"))
    notebook.outputs.locator(".fedlab-knobs .noUi-handle").first.press("ArrowRight")  # alpha: 0.1 -> 0.3
    notebook.wait_text("Before:")
    notebook.press("Copy as code")
    notebook.wait_text(re.compile(r"lab = Lab\(TUG_OF_WAR\)\.set\(alpha=0\.3, E=5, clients=10\)\.run\(block=True\)"))
    notebook.press("Open in the workbench")
    notebook.wait_text("Rewind")
    assert notebook.screenshot("lab").stat().st_size > 40_000


def test_a_saved_lab_holds_its_finished_picture(lab, page):
    notebook = lab.open(page, lab.write("saved.ipynb", CELL, "print(lab.run(block=True).sentence)"))
    notebook.run_all()
    notebook.wait_text(re.compile("in round 12;"))
    kinds = page.evaluate(
        """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells[0].outputs
            .flatMap(output => Object.keys(output.data ?? {}))"""
    )
    assert "image/png" in kinds and "application/vnd.jupyter.widget-view+json" in kinds
