"""Runs are kept in a temporary folder, and clients can be held up."""

import threading
from collections.abc import Iterator

import pytest

from fedlab_core.engines import loop
from fedlab_core.workbench.bench import Workbench
from tests.workbench.panels import PATIENCE, SMALL, Gate


@pytest.fixture(autouse=True)
def quick(request, monkeypatch, tmp_path):
    """Pictures are drawn but not rendered, except where a test asks for `pictures`; runs are kept for the test only."""
    monkeypatch.setenv("FEDLAB_RUNS", str(tmp_path / "runs"))
    if "pictures" not in request.fixturenames:
        for module in ("pictures", "display", "export"):
            monkeypatch.setattr(f"fedlab_core.workbench.{module}.png", lambda *_: b"\x89PNG")


@pytest.fixture
def pictures() -> None:
    """Renders the pictures of a test."""


@pytest.fixture
def bench() -> Iterator[Workbench]:
    bench = Workbench(SMALL, rounds=3)
    yield bench
    bench.stop()


@pytest.fixture
def gate(monkeypatch) -> Iterator[Gate]:
    gate, original = Gate(), loop.train_client

    def train_client(*arguments):
        if threading.current_thread() is threading.main_thread():  # a trial of the settings
            return original(*arguments)
        gate.entered.release()
        assert gate.go.acquire(timeout=PATIENCE)
        gate.trained += 1
        return original(*arguments)

    monkeypatch.setattr(loop, "train_client", train_client)
    yield gate
    for _ in range(1000):
        gate.go.release()
