"""figures/workbench.png: the panel in JupyterLab, after a run and a fork of it from an earlier round.

.venv/bin/python -m tools.panel_picture
"""

from tools.check import ROOT
from tools.jupyterlab import open_notebook

CELL = """\
from fedlab_core.experiment import Experiment
from fedlab_core.workbench import Workbench

bench = Workbench(Experiment(partition="dirichlet", clients=20).replace(fraction=0.25, epochs=5), reference=True)
bench\
"""


def main() -> None:
    """Makes the picture."""
    with open_notebook(CELL, name="federated learning.ipynb") as notebook:
        page = notebook.page
        notebook.wait_text("then press")
        page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
        notebook.type("Rounds", 20)
        notebook.press("Run")
        notebook.wait_text("FedAvg stands at round 20")
        notebook.choose("Method", "SCAFFOLD")
        notebook.wait_text("method FedAvg → SCAFFOLD")
        notebook.slide("Round", 8)
        notebook.press("Fork")
        notebook.wait_text("branches off")
        notebook.type("Rounds", 10)
        notebook.press("Run")
        notebook.wait_text("stands at round 18")
        notebook.root.locator(".fedlab").evaluate("e => e.scrollIntoView({block: 'end'})")
        page.wait_for_timeout(2000)
        page.screenshot(path=ROOT / "figures" / "workbench.png")


if __name__ == "__main__":
    main()
