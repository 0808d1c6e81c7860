"""Runs are kept as they go: a dead kernel, another notebook, a full disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small import equal

from fedlab_core.federation import Federation
from fedlab_core.workbench import runs, store
from fedlab_core.workbench.bench import Workbench
from tests.workbench.panels import PATIENCE, SMALL, said
from tests.workbench.test_open import Halved, network

LONG = """
from fedlab_core.workbench.bench import Workbench
from tests.workbench.panels import SMALL
bench = Workbench(SMALL)
print(bench.folder, flush=True)
bench.run(200, block=True)
"""
OWN = """
from fedlab_core.workbench.bench import Workbench
from tests.workbench.panels import SMALL
from tests.workbench.test_open import Halved, network
own = {"models": {"two layers": network}, "methods": {"halved": Halved, "own": Halved(0.3)}}
bench = Workbench(SMALL.replace(model="mlp"), **own)
bench.set(model="two layers", model_options={"width": 16}, method="halved", method_options={"part": 0.25})
bench.run(2, block=True)
bench.fork(at=1, method="own", method_options={})
bench.run(1, block=True)
print(bench.folder)
"""
ROOT = str(Path(__file__).parents[2])


def test_runs_and_forks_come_back_and_go_on_bit_for_bit(bench):
    bench.run(3, block=True)
    bench.fork("branch", at=2, lr=0.05, method="fedprox")
    bench.run(2, block=True)
    assert str(bench.folder) in bench.panel.place.value
    again = Workbench.open(bench.folder)
    assert [(run.name, run.round, run.start) for run in again.runs] == [("FedAvg", 3, 0), ("branch", 4, 2)]
    assert again.runs[1].parent is again.runs[0] and "2 runs are back" in said(again)
    assert again.experiment == bench.experiment and "Stale" not in again.panel.shown.value
    for one in (bench, again):
        one.run(2, block=True)
    assert again.result.history == bench.result.history and again.folder == bench.folder
    assert all((again.result.state[name] == tensor).all() for name, tensor in bench.result.state.items())


def test_a_killed_kernel_loses_nothing_but_the_rounds_since_the_last_saving(tmp_path):
    code = [sys.executable, "-c", LONG]
    process = subprocess.Popen(code, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    folder = Path(process.stdout.readline().strip())
    for _ in range(10 * PATIENCE):
        if process.poll() is None and (folder / store.PANEL).exists():
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    bench = Workbench.open(folder)
    done = bench.result.round
    assert done >= 1
    bench.run(2, block=True)
    assert bench.result.history == bench.runs[0].plan[0][1].build().run(done + 2).history


def test_runs_of_own_methods_and_models_come_back_in_another_process():
    code = [sys.executable, "-c", OWN]
    done = subprocess.run(code, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ROOT})
    folder = Path(done.stdout.split("\n")[0])
    with pytest.raises(ValueError, match="method='halved', accepted"):
        Workbench.open(folder)
    bench = Workbench.open(folder, models={"two layers": network}, methods={"halved": Halved, "own": Halved(0.3)})
    assert [(run.experiment.method, run.experiment.model, run.round) for run in bench.runs] == [
        ("halved", "two layers", 2),
        ("own", "two layers", 2),
    ]
    assert "2 runs are back" in said(bench) and "Stale" not in bench.panel.shown.value
    bench.run(1, block=True)
    first = bench.runs[0].federation.run(1)
    straight = bench.runs[0].experiment.build().run(3)
    assert first.method == Halved(0.25) and first.history == straight.history and equal(first.state, straight.state)
    straight = straight.fork("own", at=1, method=Halved(0.3)).run(2)
    assert bench.result.method == Halved(0.3) and equal(bench.result.state, straight.state)


def test_earlier_runs_are_a_menu_of_the_next_panel(bench):
    bench.run(1, block=True)
    other = Workbench(SMALL)
    assert other.panel.earlier.layout.display == "" and "FedAvg (1)" in other.panel.earlier.label
    other.panel.open.click()
    other.wait(PATIENCE)
    assert [run.name for run in other.runs] == ["FedAvg"] and other.result.history == bench.result.history
    other.run(1, block=True)
    assert other.folder != bench.folder and (other.folder / store.PANEL).exists()


def test_a_folder_that_is_not_ours_is_refused_and_never_deleted(bench, tmp_path):
    mine = store.runs_home() / "mine"
    mine.mkdir(parents=True)
    (mine / "panel.json").write_text("{}")
    (mine / "thesis.txt").write_text("words")
    with pytest.raises(FileNotFoundError, match="holds no panel's runs"):
        Workbench.open(mine)
    bench._keeper._store.limit_mib = 0
    bench.run(1, block=True)
    assert (mine / "thesis.txt").read_text() == "words"


def test_old_panels_are_deleted_beyond_the_limit():
    folders = []
    for _ in range(3):
        bench = Workbench(SMALL)
        bench._keeper._store.limit_mib = 0.6  # each takes about half of it
        bench.run(1, block=True)
        folders.append(bench.folder)
        bench.close()
    assert folders[-1].exists() and not folders[0].exists()


@pytest.mark.parametrize(
    "content",
    [
        {"made_by": store.MARK},
        {"made_by": store.MARK, "saved": 1.0, "runs": [{"name": "a"}]},
        {"made_by": store.MARK, "saved": "x", "runs": []},
        {"made_by": store.MARK, "saved": 1.0, "runs": 3},
        [store.MARK],
        "",
    ],
)
def test_a_damaged_folder_beside_it_is_passed_over(bench, content):
    bench.run(1, block=True)
    other = store.runs_home() / "damaged"
    other.mkdir()
    (other / store.PANEL).write_text(json.dumps(content) if content else "{")
    assert store.earlier() == [bench.folder] and store.title(other) == "damaged"
    assert [folder for _, folder in Workbench(SMALL).panel.earlier.options] == [str(bench.folder)]
    with pytest.raises(FileNotFoundError, match="holds no panel's runs"):
        store.bring_back(other, bench.catalog, threading.Event())


def test_the_folder_of_a_panel_in_use_is_never_deleted(bench):
    """Neither in this kernel nor in another one that lives; a number that another process has got since is no sign."""
    bench.run(1, block=True)
    kept, (other, gone, later) = bench.folder, (store.runs_home() / name for name in ("other", "gone", "later"))
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as idle:
        for folder, process, seconds in ((other, idle.pid, 60), (later, idle.pid, -9999), (gone, None, 60)):
            shutil.copytree(kept, folder)
            row = json.loads((folder / store.PANEL).read_text()) | {"process": process}
            (folder / store.PANEL).write_text(json.dumps(row))
            os.utime(folder / store.PANEL, (time.time() + seconds,) * 2)
        new = Workbench(SMALL)
        new._keeper._store.limit_mib = 0
        new.run(1, block=True)
        idle.stdin.close()
    assert kept.exists() and other.exists() and not later.exists() and not gone.exists()
    closed = new.folder
    new.close()
    last = Workbench(SMALL)
    last._keeper._store.limit_mib = 0
    last.run(1, block=True)
    assert kept.exists() and not closed.exists() and not other.exists()


def test_what_cannot_be_kept_is_said_and_the_run_goes_on(bench, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(Federation, "save", full)
    bench.run(2, block=True)
    assert "✓" in said(bench) and bench.result.round == 2
    assert "not kept on disk: No space left on device" in bench.panel.place.value


def test_nothing_is_written_if_not_wanted(tmp_path):
    bench = Workbench(SMALL, keep=False)
    bench.run(1, block=True)
    assert bench.folder is None and not store.runs_home().exists()


def test_a_long_run_keeps_few_snapshots_and_every_round_can_still_be_had(bench, monkeypatch):
    monkeypatch.setattr(runs, "MOST_SNAPSHOTS", 6)
    bench.run(20, block=True)
    straight = SMALL.build().run(20)
    assert len(bench.result.timeline.rounds()) <= 6
    bench.fork("branch", at=13, lr=0.05)
    bench.run(20, block=True)
    assert len(bench.result.timeline.rounds()) <= 5  # and the fork point stays
    for round in (1, 7, 13, 19):
        state = bench.runs[0].federation.state_at(round)
        assert all((state[name] == tensor).all() for name, tensor in straight.state_at(round).items())
