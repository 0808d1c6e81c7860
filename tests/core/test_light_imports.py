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
