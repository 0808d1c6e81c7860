"""What a reader waits for before the first cell: packages that few cells need are imported by those that do."""

import subprocess
import sys

HEAVY = ("pandas", "scipy", "sklearn", "sympy", "torchvision", "transformers", "timm", "ray", "matplotlib.pyplot")


def test_the_panel_is_imported_without_heavy_packages() -> None:
    code = f"import sys, fedlab_core.workbench; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    before = f"import sys, torch, ipywidgets, matplotlib; print([name for name in {HEAVY} if name in sys.modules])"
    others = subprocess.run([sys.executable, "-c", before], capture_output=True, text=True, check=True).stdout.strip()
    assert found == others  # some release of torch may import one of them itself


def test_a_first_round_imports_neither_a_compiler_nor_scikit_learn() -> None:
    code = """
import sys
from fedlab_core.experiment import Experiment
for model in ("2nn", "cnn", "lstm"):
    text = model == "lstm"
    one = Experiment("python_docs" if text else "digits", model=model, partition="natural" if text else "iid")
    one.replace(fraction=0.01, steps=1, epochs=None, batch_size=4, engine="stacked").build().run(1)
print([name for name in ("torch._dynamo", "sympy", "sklearn", "scipy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
