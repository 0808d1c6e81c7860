"""Fine-tuning as a reader meets it: ways chosen and drawn, and runs compared, in JupyterLab."""

import re

from playwright.sync_api import expect

SETUP = """
import torch
from fedlab_core.experiment import Experiment
from fedlab_core.finetuning.classifiers import with_head
from fedlab_core.models.weights.shipped import VOCABULARY, load_backbone
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.workbench.views.finetuning import VIEWS
from fedlab_core.workbench import Workbench
from fedlab_core.workbench.views.tuner import Tuner
pictures = torch.zeros(4, 3, 32, 32)
vit = with_head(load_backbone("vit_strong").model, 16, generator(0, "head"))
networks = {"small ViT": (vit, pictures), "CLIP-tiny": (load_backbone("clip_tiny").model, pictures)}
"""
PANEL = "Tuner(networks, VOCABULARY, ('solid ring', 'dotted bar')).view"
BENCH = """
Workbench(Experiment(
    "scenes", {"per_class": 10, "test_per_class": 5}, clients=4, model="vit", model_options={"patch": 8},
    start="vit_strong", tuning="bias", settings=Settings(0.5, lr=0.03, batch_size=16, momentum=0.9)),
    views=VIEWS, rounds=2, band=False)
"""


def test_ways_are_chosen_and_drawn_and_runs_are_compared(lab, page):
    page.set_viewport_size({"width": 1400, "height": 1500})
    notebook = lab.open(page, lab.write("finetuning.ipynb", SETUP, PANEL, BENCH))
    notebook.run_all()
    notebook.wait_text("3,984 of 214,608 parameters are trained")
    notebook.choose("Family", "input")
    notebook.wait_text("of them in the classifier: 0.0")
    notebook.choose("Network", "CLIP-tiny")
    notebook.choose("Way", "coop: tokens before the class names; no classifier")
    notebook.wait_text("1,024 of 325,697 parameters are trained")
    notebook.screenshot("tuner")

    stage = notebook.root.locator(".fedlab-stage")
    notebook.press("Run")
    notebook.wait_text("stands at round 2")
    notebook.wait_text("trained: bias")
    notebook.choose("Fine-tune", "baseline: nothing")
    notebook.wait_text("tuning bias → head")
    notebook.press("Run")
    notebook.wait_text(re.compile("tuning head stands at round 2"))
    for tab in ("Trained", "Budgets"):
        before = stage.locator("img").get_attribute("src")
        notebook.press(tab)
        expect(stage.locator("img")).not_to_have_attribute("src", before)
        page.locator(".fedlab-bench").scroll_into_view_if_needed()
        notebook.screenshot(f"finetuning-{tab.lower()}")
