"""The queue: every finished unit is found again, whenever it was killed and wherever it goes on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.experiment import Experiment
from fedlab_core.local.work import Stopped
from fedlab_core.settings import Settings
from fedlab_core.studies import fedavg_tables, queue
from fedlab_core.studies.__main__ import QUEUE, main
from fedlab_core.studies.queue import gathered, known, missing, work_off
from fedlab_core.studies.record import recorded
from fedlab_core.studies.units import Record, Results, Unit, full, sparse

SEEDS = (0, 1, 2)


def tiny_run(settings: Mapping[str, Any], stop: Callable[[], bool], device: str) -> dict[str, Any]:
    """Says in a file that it began, works through some rounds, and says what it was given."""
    with open(settings["log"], "a") as log:
        log.write(f"{settings['name']}\n")
    if settings["name"] == settings.get("fails"):
        raise RuntimeError("as asked")
    for _ in range(5):
        if stop():
            raise Stopped
        time.sleep(0.01)
    return {"score": settings["lr"] - settings["seed"], "device": device}


def tiny_plan(log: str, fails: str | None, done: Results) -> list[Unit]:
    """A search over two rates, then three seeds at the better one."""

    def one(lr: float, seed: int) -> Unit:
        more = {} if fails is None else {"fails": fails}
        return Unit("arm/a", seed, {"log": log, "name": f"{lr}, {seed}", "lr": lr, "seed": seed, **more})

    search = [one(lr, 100) for lr in (0.1, 0.2)]
    if any(unit.key not in done for unit in search):
        return search
    best = max(search, key=lambda unit: done[unit.key]["score"])
    return search + [one(best.settings["lr"], seed) for seed in SEEDS]


def tiny(log: Path, fails: str | None = None) -> Record:
    return Record(
        "tiny", "a title", partial(tiny_plan, str(log), fails), tiny_run, lambda data: plots.figure()[0], SEEDS
    )


def work(folder: Path, **options: Any) -> int:
    return work_off(
        [tiny(folder / "log", options.pop("fails", None))],
        runs=folder / "runs",
        figures=folder / "figures",
        nice=0,
        **options,
    )


def begun(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines() if (folder / "log").exists() else []


def units(folder: Path) -> dict[str, dict]:
    return known(tiny(folder / "log"), folder / "runs", folder / "figures")


def test_units_are_made_once_and_gathered(tmp_path: Path) -> None:
    said: list[str] = []
    assert work(tmp_path, workers=2, say=said.append) == 0
    assert sorted(begun(tmp_path)) == ["0.1, 100", "0.2, 0", "0.2, 1", "0.2, 100", "0.2, 2"]
    data = json.loads((tmp_path / "figures" / "tiny.json").read_text())
    assert data["complete"] == [0, 1, 2] and data["note"] == "3 of 3 seeds, 5 runs"
    assert [unit["seed"] for unit in data["units"]] == [100, 100, 0, 1, 2]
    assert (tmp_path / "figures" / "tiny.png").stat().st_size > 0
    assert said[-1].startswith("5 units done, 0 in hand (nothing), 0 left") and "0.0 hours left" in said[-1]
    assert work(tmp_path) == 0 and len(begun(tmp_path)) == 5


def test_a_second_clone_goes_on_from_the_committed_record(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    record = tiny(first / "log")
    for number in range(4):  # the searches, and one seed after the other
        unit = missing(record, known(record, first / "runs", first / "figures"))[0]
        queue._make(tiny_run, unit, first / "runs" / "tiny" / f"{unit.key}.json", "cpu", first / "stop", 0)
        data = queue.write(record, first / "runs", first / "figures")
        assert data and len(data["units"]) == number + 1
        assert data["note"] == f"{max(number - 1, 0)} of 3 seeds, {number + 1} runs"
    (second / "figures").mkdir()
    (second / "figures" / "tiny.json").write_text((first / "figures" / "tiny.json").read_text())
    rest = missing(record, known(record, second / "runs", second / "figures"))
    assert [unit.seed for unit in rest] == [2]
    assert work_off([record], runs=second / "runs", figures=second / "figures", nice=0) == 0
    assert len(begun(first)) == 5 and [path.stem for path in (second / "runs" / "tiny").iterdir()] == [rest[0].key]
    assert gathered(record, known(record, second / "runs", second / "figures"))["complete"] == [0, 1, 2]


def test_other_settings_are_another_unit(tmp_path: Path) -> None:
    one = Unit("a", 0, {"lr": 0.1})
    assert one.key == Unit("a", 0, {"lr": 0.1}).key
    others = [Unit("b", 0, {"lr": 0.1}), Unit("a", 1, {"lr": 0.1}), Unit("a", 0, {"lr": 0.2})]
    assert len({unit.key for unit in (one, *others)}) == 4


def test_a_setting_that_is_added_later_leaves_the_keys_of_finished_units() -> None:
    one = Experiment("mnist", clients=7, settings=Settings(lr=0.5, seed=3, engine="loop"))
    assert sparse(one) == {"dataset": "mnist", "clients": 7, "settings": {"lr": 0.5, "seed": 3}}
    assert full(json.loads(json.dumps(sparse(one)))) == one and full(sparse(Experiment())) == Experiment()
    assert fedavg_tables.RECORD.plan({})[0].key == "IID-C-0.1-E-1-B-10-seed100-2c2d950bd1"


@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_whenever_it_is_killed_finished_units_are_found_again(tmp_path: Path) -> None:
    draws = random.Random(0)
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + (
        f"import test_queue, pathlib; test_queue.work(pathlib.Path({str(tmp_path)!r}), workers=2)"
    )
    for _ in range(4):
        before, goal = set(units(tmp_path)), len(begun(tmp_path)) + draws.randint(1, 2)
        counted = len(begun(tmp_path))
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.DEVNULL)
        while len(begun(tmp_path)) < goal and child.poll() is None:
            time.sleep(0.01)
        time.sleep(draws.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        child.wait()
        found = units(tmp_path)  # every file is whole
        assert before <= set(found) and all(unit["result"]["device"] == "cpu" for unit in found.values())
        names = {unit["settings"]["name"] for key, unit in found.items() if key in before}
        assert not names & set(begun(tmp_path)[counted:]), "a finished unit was begun again"
    assert work(tmp_path) == 0
    assert len(units(tmp_path)) == 5
    assert json.loads((tmp_path / "figures" / "tiny.json").read_text())["complete"] == [0, 1, 2]


def test_it_stops_between_rounds_and_goes_on(tmp_path: Path) -> None:
    record = tiny(tmp_path / "log")
    unit = missing(record, {})[0]
    queue.halt(tmp_path / "runs")
    file = tmp_path / "runs" / "tiny" / f"{unit.key}.json"
    queue._make(tiny_run, unit, file, "cpu", tmp_path / "runs" / "stop", 0)
    assert begun(tmp_path) == ["0.1, 100"] and not file.exists() and not units(tmp_path)
    assert work(tmp_path) == 0 and len(units(tmp_path)) == 5, "a queue that is started anew goes on"


def test_a_record_is_made_again_on_a_machine_that_has_only_the_committed_one(tmp_path: Path) -> None:
    work(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    assert work(tmp_path) == 0 and len(begun(tmp_path)) == 5, "nothing is missing"
    assert work(tmp_path, again=True) == 0 and len(begun(tmp_path)) == 10 and len(units(tmp_path)) == 5


def test_a_unit_that_fails_is_said_and_the_others_are_made(tmp_path: Path) -> None:
    said: list[str] = []
    assert work(tmp_path, fails="0.2, 1", say=said.append) == 1
    assert any("failed, exit code 1" in line for line in said)
    data = json.loads((tmp_path / "figures" / "tiny.json").read_text())
    assert data["complete"] == [0, 2] and data["note"] == "2 of 3 seeds, 4 runs"


def test_the_command_line_names_its_records(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [record.name for record in QUEUE]
    assert len(set(names)) == len(names)
    with pytest.raises(SystemExit):
        main(["records", "nothing"])
    assert f"accepted: {names[0]}" in capsys.readouterr().err
    asked: list[Any] = []
    monkeypatch.setattr(queue, "halt", lambda: asked.append("stop"))
    monkeypatch.setattr(queue, "work_off", lambda chosen, **options: asked.append((len(chosen), options)) or 0)
    assert main(["records", "--stop"]) == 0 and main(["records", "fedavg_tables", "--device", "cuda"]) == 0
    assert asked == ["stop", (1, {"workers": None, "device": "cuda", "again": False})]


@pytest.mark.parametrize("record", QUEUE, ids=lambda record: record.name)
@pytest.mark.parametrize("lost", ["one arm's last seed", "the last seeds", "most of them"])
def test_every_record_is_drawn_with_the_units_that_it_has(record: Record, lost: str) -> None:
    data = recorded(record.name)
    if data is None:
        pytest.skip(f"figures/{record.name}.json is not there yet")
    units, draws = data["units"], random.Random(0)
    if lost == "one arm's last seed":
        kept = units[:-1]
    elif lost == "the last seeds":
        kept = [unit for unit in units if unit["seed"] != max(one["seed"] for one in units)]
    else:
        kept = [unit for unit in units if draws.random() < 0.3]
    assert queue.picture(record, {**data, "units": kept, "complete": []}).axes


def test_a_picture_that_cannot_be_drawn_is_an_error_once_every_seed_is_there() -> None:
    def broken(data: Mapping[str, Any]) -> Figure:
        raise KeyError("arm")

    record = Record("tiny", "a title", lambda done: [], tiny_run, broken, SEEDS)
    so_far = queue.picture(record, {"complete": [0, 1], "note": "2 of 3 seeds, 2 runs"})
    assert so_far.axes[0].texts[0].get_text() == "a title\n2 of 3 seeds, 2 runs so far"
    with pytest.raises(KeyError):
        queue.picture(record, {"complete": [0, 1, 2], "note": "3 of 3 seeds, 3 runs"})
