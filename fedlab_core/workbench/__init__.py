"""The workbench: one widget panel over one round loop."""

from fedlab_core.workbench.bench import Workbench
from fedlab_core.workbench.runs import Run
from fedlab_core.workbench.tabs import View
from fedlab_core.workbench.worker import Busy

__all__ = ["Busy", "Run", "View", "Workbench"]
