"""Stop is heard in every phase of a round, while data are read, and by the views."""

import threading

import pytest

from fedlab_core.engines import get_engine
from fedlab_core.experiment import Experiment
from fedlab_core.local.work import Stopped, Work
from fedlab_core.settings import Settings
from fedlab_core.workbench.bench import Workbench
from fedlab_core.workbench.catalog import Catalog
from fedlab_core.workbench.tabs import View, waiting_view
from fedlab_core.workbench.views.probes import VIEWS
from tests.workbench.panels import PATIENCE, said

SMALL = Experiment(
    dataset_options={"examples": 120},
    clients=6,
    settings=Settings(fraction=0.5, epochs=1, lr=0.1, engine="loop"),
)


@pytest.mark.parametrize("engine", ["loop", "threads", "stacked", "auto"])
def test_an_evaluation_asks_before_every_batch_whether_to_stop(engine):
    federation = SMALL.build()
    parts = federation.model, federation.dataset, federation.partition, federation.settings, {}, 1
    states = [federation.state] * 3
    assert (
        get_engine(engine).evaluate(Work(*parts), states)
        == [{k.removeprefix("test_"): pytest.approx(v) for k, v in federation.evaluate().items()}] * 3
    )
    with pytest.raises(Stopped):
        get_engine(engine).evaluate(Work(*parts, stop=lambda: True), states)


def test_what_looks_at_a_run_heeds_stop_and_the_run_itself_does_not():
    federation, stop = SMALL.build().run(3), threading.Event()
    heeding = federation.heeding(stop)
    assert heeding.evaluate() == federation.evaluate() and heeding.inside(2).weights == federation.inside(2).weights
    stop.set()
    for look in (heeding.evaluate, lambda: heeding.inside(2), lambda: heeding.fork("branch", at=2).inside(1)):
        with pytest.raises(Stopped):
            look()
    assert federation.run(1).round == 4 and federation.inside(4).updates


def test_stop_is_heard_while_ray_starts(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'fedlab_core[ray]'")
    begun, go, asked = threading.Event(), threading.Event(), []

    def connect(address=None):
        asked.append(address)
        begun.set()
        assert go.wait(PATIENCE)

    monkeypatch.setattr("fedlab_core.engines.ray.connect", connect)
    bench = Workbench(SMALL.replace(engine="ray:10.0.0.1:6379"), keep=False)
    bench.panel.run.click()
    try:
        assert begun.wait(PATIENCE) and "starting Ray" in bench.panel.timing.value
        bench.panel.stop.click()
        assert bench._worker.join(PATIENCE)  # though Ray is still starting
        assert not go.is_set() and asked == ["10.0.0.1:6379"]
    finally:
        go.set()
    assert "Stopped before the first round" in said(bench) and bench.result.round == 0
    bench.set(engine="loop")
    bench.run(1, block=True)
    assert "✓" in said(bench) and bench.result.round == 1


@pytest.mark.parametrize("name", ["Drift", "Stability", "Basin", "Twins", "Plane", "Triangle"])
def test_every_slow_view_heeds_stop(name, pictures):
    bench = Workbench(SMALL, views=VIEWS, keep=False)
    bench.run(3, block=True)
    run, view = bench.runs[0], bench._display.views[name]
    run.stop.set()
    with pytest.raises((Stopped, InterruptedError)):
        view.draw(run, 3)
    run.stop.clear()
    view.draw(run, 3)
    assert bench.result.history == bench.experiment.build().run(3).history


def test_after_stop_a_slow_view_is_drawn_on_its_own_and_can_be_stopped_too(gate):
    begun, go, drawn = threading.Semaphore(0), threading.Semaphore(0), []

    def draw(run, round):
        begun.release()
        assert go.acquire(timeout=PATIENCE)
        run.heeding.evaluate()
        drawn.append(round)
        return waiting_view(run.federation.dataset, run.federation.partition)

    bench = Workbench(SMALL, views=[View("Mine", draw, slow=True)], keep=False)
    bench.panel.tabs.value = "Mine"
    for _ in range(10):
        gate.go.release()
    bench.run(50)
    assert begun.acquire(timeout=PATIENCE)  # the first round
    bench.stop()
    go.release()
    assert begun.acquire(timeout=PATIENCE)  # on its own, after the run
    assert "Stopped after 1 of 50" in said(bench) and drawn == []
    bench.stop()
    go.release()
    assert bench._worker.join(PATIENCE)
    assert drawn == [] and "was stopped" in bench.panel.text.value
    assert not begun.acquire(blocking=False)  # what was stopped is not drawn again unasked
    bench.panel.tabs.value = "Curves"
    bench.panel.tabs.value = "Mine"
    go.release()
    assert bench._worker.join(PATIENCE)
    assert drawn == [1] and bench.panel.text.value == ""


def test_the_loading_of_data_can_be_stopped_and_run_loads_them(monkeypatch):
    bench, go, load = Workbench(SMALL, keep=False), threading.Event(), Catalog.load

    def slow(self, experiment):
        if experiment.dataset == "scenes" and not go.is_set():
            assert go.wait(PATIENCE)
            return None  # nobody waits for it any more
        return load(self, experiment)

    monkeypatch.setattr(Catalog, "load", slow)
    bench.controls.dataset.value = "scenes"
    assert "Loading scenes" in said(bench) and bench.busy
    bench.stop()
    assert bench._worker.join(PATIENCE)
    assert "loading of scenes was stopped" in said(bench) and not bench.busy
    go.set()
    bench.set(dataset_options={"per_class": 2, "test_per_class": 1}, model="mlp")
    bench.run(1, block=True)
    assert bench.result.dataset.name == "scenes"
