"""Changes of the controls while the thread works: none is missed, and the last word is about the last of them."""

import threading

import pytest

from fedlab_core.workbench.bench import Workbench
from fedlab_core.workbench.tabs import View, waiting_view
from fedlab_core.workbench.worker import Worker
from tests.workbench.panels import PATIENCE, SMALL, said

TOO_MANY = {"partition": "shards", "partition_options": {"per_client": 20}, "clients": 200}
WHEN = ("before", "in the middle", "after the message", "after the end")


class Refused:
    """Holds a refused Run at one moment, for a change of the controls."""

    def __init__(self, bench: Workbench, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here, self.go = threading.Event(), threading.Event()
        worker = bench._worker
        if when == "before":
            monkeypatch.setattr(bench.catalog.__class__, "build", self._first(bench.catalog.__class__.build))
        elif when == "in the middle":
            monkeypatch.setattr(worker, "_finish", self._first(worker._finish))
        elif when == "after the message":
            monkeypatch.setattr(worker, "show", self._then(worker.show))
        else:
            monkeypatch.setattr(worker, "_settle", self._first(worker._settle))

    def _first(self, call):
        def held(*arguments, **named):
            self._wait()
            return call(*arguments, **named)

        return held

    def _then(self, call):
        def held(*arguments, **named):
            result = call(*arguments, **named)
            self._wait()
            return result

        return held

    def _wait(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.here.set()
            assert self.go.wait(PATIENCE)


@pytest.mark.parametrize("when", WHEN)
def test_a_setting_put_right_while_its_run_is_refused_reads_ready(when, monkeypatch):
    bench = Workbench(SMALL)
    bench.set(**TOO_MANY)
    assert "at most 6 clients" in said(bench)
    held = Refused(bench, when, monkeypatch)
    bench.panel.run.click()
    assert held.here.wait(PATIENCE)
    bench.controls.clients.value = 5
    held.go.set()
    assert bench._worker.join(PATIENCE)
    assert "Ready" in said(bench) and bench.panel.way_out.layout.display == "none" and bench.runs == []
    monkeypatch.undo()
    bench.run(1, block=True)
    assert len(bench.result.partition) == 5


@pytest.mark.parametrize("when", WHEN)
def test_a_setting_made_wrong_while_its_run_is_refused_is_the_last_word(when, monkeypatch):
    bench = Workbench(SMALL)
    bench.set(**TOO_MANY)
    held = Refused(bench, when, monkeypatch)
    bench.panel.run.click()
    assert held.here.wait(PATIENCE)
    bench.controls.option("partition", "per_client").value = 30
    held.go.set()
    assert bench._worker.join(PATIENCE)
    assert "at most 4 clients with per_client=30" in said(bench)


@pytest.mark.parametrize("when", ["while it trains", "at its end"])
def test_who_holds_what_follows_a_change_made_while_rounds_run(when, gate, monkeypatch):
    bench, seen = Workbench(SMALL), []
    draft = bench._display.draft
    monkeypatch.setattr(bench._display, "draft", lambda data, p: seen.append(len(p)) or draft(data, p))
    worker, at_end, go = bench._worker, threading.Event(), threading.Event()
    finish = worker._finish

    def held() -> None:
        finish()
        at_end.set()
        assert go.wait(PATIENCE)

    monkeypatch.setattr(worker, "_finish", held)
    bench.run(1)
    gate.wait()
    if when == "while it trains":
        bench.controls.clients.value = 4
    for _ in range(10):
        gate.go.release()
    assert at_end.wait(PATIENCE)
    if when == "at its end":
        bench.controls.clients.value = 4
    assert seen == []
    go.set()
    assert bench._worker.join(PATIENCE)
    assert seen == [4] and "stands at round 1" in said(bench) and "Stale" in bench.panel.shown.value


def test_a_slow_view_chosen_at_the_last_moment_is_drawn(monkeypatch):
    drawn = []

    def draw(run, round):
        drawn.append(round)
        return waiting_view(run.federation.dataset, run.federation.partition)

    bench = Workbench(SMALL, views=[View("Mine", draw, slow=True)])
    worker, at_end, go = bench._worker, threading.Event(), threading.Event()
    finish = worker._finish
    monkeypatch.setattr(worker, "_finish", lambda: (finish(), at_end.set(), go.wait(PATIENCE)))
    bench.run(2)
    assert at_end.wait(PATIENCE)
    bench.panel.tabs.value = "Mine"
    assert "drawn when the round" in bench.panel.text.value
    go.set()
    assert bench._worker.join(PATIENCE)
    assert drawn == [2] and bench.panel.text.value == ""


def test_work_begun_at_the_end_of_other_work_is_waited_for_too():
    said, inner = [], threading.Event()

    class Front:
        def say(self, kind, text):
            said.append(text)

        def show_text(self, text):
            pass

    def settle() -> None:
        if not inner.is_set():
            inner.set()
            worker.start(lambda: ("done", "second"))

    worker = Worker(Front(), settle=settle)
    worker.start(lambda: ("done", "first"), block=True)
    assert said == ["first", "second"] and not worker.busy


def test_the_first_round_of_a_run_is_drawn_as_soon_as_it_comes(monkeypatch):
    monkeypatch.setattr("fedlab_core.workbench.pictures.SHORTEST", 3600)
    bench, drawn = Workbench(SMALL), []
    display = bench._display
    figure = display.figure
    monkeypatch.setattr(display, "figure", lambda: drawn.append(len(bench.result.past.records)) or figure())
    bench.run(4, block=True)
    assert drawn == [0, 2, 5]  # none yet, the first (beside round 0), and all of them at the end


def test_a_text_in_the_place_of_a_number_is_refused_in_words(bench):
    bench.set(method="fedprox")
    with pytest.raises(ValueError, match="mu.*'x', accepted: a number"):
        bench.set(method_options={"mu": "x"})


def test_a_view_that_fails_while_rounds_arrive_keeps_to_its_share_of_the_time(monkeypatch):
    def fails(run, round):
        raise ZeroDivisionError("on purpose")

    bench, told = Workbench(SMALL, views=[View("Broken", fails)]), []
    bench.panel.tabs.value = "Broken"
    monkeypatch.setattr(bench._display._pace, "drawn", lambda began, *, live: told.append(live))
    bench.run(3, block=True)
    assert told[0] is True and told[-1] is False
