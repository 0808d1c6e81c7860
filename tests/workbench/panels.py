"""Panels for tests: small data, and clients that can be held up."""

import threading

from fedlab_core.experiment import Experiment
from fedlab_core.settings import Settings
from fedlab_core.workbench.bench import Workbench

SMALL = Experiment(
    dataset_options={"examples": 120},
    partition="dirichlet",
    clients=6,
    settings=Settings(fraction=0.5, epochs=1, lr=0.1, engine="loop"),
)
PATIENCE = 60  # seconds until a thread that hangs fails its test


class Gate:
    """Holds clients up: `entered` tells that one has begun, `go.release()` lets one finish."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.trained = 0  # clients that were let go on

    def wait(self) -> None:
        """Until a client has begun."""
        assert self.entered.acquire(timeout=PATIENCE)


def said(bench: Workbench) -> str:
    return bench.panel.status.value
