"""The workbench: one widget panel over one round loop."""

import gc

from fedlab_core.workbench.bench import Workbench
from fedlab_core.workbench.runs import Run
from fedlab_core.workbench.tabs import View
from fedlab_core.workbench.worker import Busy

gc.freeze()  # what was imported stays: looking through it for garbage again and again held rounds and pictures up

__all__ = ["Busy", "Run", "View", "Workbench"]
