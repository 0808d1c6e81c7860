"""Every recorded picture of a study has a name by which it is made again."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import labs
from fedlab_core import claims
from fedlab_core.about import versions
from fedlab_core.claims import Claim, Range
from fedlab_core.studies.__main__ import QUEUE
from fedlab_core.studies.record import FIGURES, record_to_frame, recorded

MADE_OF_UNITS = [path.stem for path in sorted(FIGURES.glob("*.json")) if "units" in (recorded(path.stem) or {})]

OTHERS = {"claims", "bench", "growth", "panel", "first_run", "workbench", "faults", "labs"}  # by other commands


def test_every_record_in_figures_can_be_made_again() -> None:
    found = {path.stem for path in FIGURES.glob("*.json")} - OTHERS
    assert found <= {record.name for record in QUEUE}
    assert {path.stem for path in FIGURES.glob("*.png")} - OTHERS == found, "a picture and its data belong together"


ROW_BY_ROW = {"labs", "first_run"}
"""Files whose rows are measured one by one and carry their own versions; rows from before have none yet."""


def parts(name: str) -> list[dict[str, Any]]:
    """What was measured at one time, with what it was measured with."""
    found = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))
    if name == "claims":
        return found
    if name == "labs":
        return [*found["labs"].values(), *found["notebooks"].values()]
    if name == "first_run":
        return [found, *(part for part in found.values() if isinstance(part, dict))]
    return list(found.values()) if name == "faults" else [found]


@pytest.mark.parametrize("name", sorted(path.stem for path in FIGURES.glob("*.json")))
def test_a_record_says_what_it_was_made_with(name: str) -> None:
    for part in parts(name):
        assert "versions" in part or name in ROW_BY_ROW, part
        assert part.get("versions", versions()).keys() >= {"python", "fedlab_core", "torch"}
    if name == "first_run":
        wheel = recorded(name)["wheel"]
        assert re.match(r"\d+\.\d+\.\d+", wheel["versions"]["torch"]) and sum(wheel["seconds"].values()) > 60


def test_what_is_measured_now_is_written_with_its_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Claim("study.name", "text", "ours", "quick", expected={"x": Range(low=0)}, measured={"x": 1.0}, seeds=(0,))
    monkeypatch.setattr(claims, "collect", lambda only: iter([made]))
    assert claims.main(["--out", str(tmp_path / "claims.json")]) == 0
    row = {"picture": {"median": 1.0}, "end": 2.0, "processor": [0.1, 0.2], "load": 0.0, "nice": 0}
    monkeypatch.setattr(labs, "measured", lambda names: iter([("labs", "fedavg.RACE", row)]))
    monkeypatch.setattr(labs, "FILE", tmp_path / "labs.json")
    monkeypatch.setattr(labs, "ROOT", tmp_path)
    monkeypatch.setattr(labs, "page", lambda text, found: text)
    monkeypatch.setattr(sys, "argv", ["labs", "fedavg.RACE"])
    (tmp_path / "docs").mkdir()
    for file in ("docs/labs.md", "README.md"):
        (tmp_path / file).write_text("")
    labs.main()
    (claim,) = json.loads((tmp_path / "claims.json").read_text())
    lab = json.loads((tmp_path / "labs.json").read_text())["labs"]["fedavg.RACE"]
    assert claim["versions"] == lab["versions"] == versions()


def numbers(value: Any) -> int:
    """How many numbers, or places of missing ones, a result holds, places along its curves left out."""
    if isinstance(value, dict):
        return sum(numbers(part) for name, part in value.items() if name not in ("round", "theta"))
    return sum(map(numbers, value)) if isinstance(value, list) else int(not isinstance(value, str))


@pytest.mark.parametrize("name", MADE_OF_UNITS)
def test_every_number_of_a_record_is_one_row_of_its_table(name: str) -> None:
    frame, units = record_to_frame(name), recorded(name)["units"]
    assert len(frame) == sum(numbers(unit["result"]) for unit in units)
    assert not frame.duplicated([column for column in frame if column != "value"]).any()
    assert frame.empty or frame.value.dtype == float


def test_a_table_says_where_each_number_was_measured(tmp_path: Path) -> None:
    result = {
        "round": [0, 5],
        "test_accuracy": [0.1, None],
        "curves": {"drift": ["nan", 2.0], "steps": [7, 8, 9]},
        "line": {"theta": [0.0, 0.5], "loss": [3.0, 4.0]},
        "last": {"round": 5, "cosine": 0.25},
        "inside": [{"round": 1, "gain": 1.5}],
        "variant": "FedAvg",
        "reached": None,
    }
    unit = {"arm": "a", "seed": 3, "settings": {"experiment": {"lr": 0.5}}, "key": "a-3", "result": result}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"units": [unit, unit | {"settings": {}, "key": "a-3-other", "result": {}}]}))
    nan = float("nan")
    rows = [
        ("test_accuracy", 0, nan, nan, 0.1),
        ("test_accuracy", 5, nan, nan, nan),
        ("curves.drift", 0, nan, nan, nan),
        ("curves.drift", 5, nan, nan, 2.0),
        ("curves.steps", nan, nan, 0, 7.0),
        ("curves.steps", nan, nan, 1, 8.0),
        ("curves.steps", nan, nan, 2, 9.0),
        ("line.loss", nan, 0.0, nan, 3.0),
        ("line.loss", nan, 0.5, nan, 4.0),
        ("last.cosine", 5, nan, nan, 0.25),
        ("inside.gain", 1, nan, 0, 1.5),
        ("reached", nan, nan, nan, nan),
    ]
    expected = pd.DataFrame(rows, columns=["measure", "round", "theta", "index", "value"])
    expected.insert(0, "experiment.lr", 0.5)
    for name, value in (("unit", "a-3"), ("seed", 3), ("arm", "a")):
        expected.insert(0, name, value)
    pd.testing.assert_frame_equal(record_to_frame(file, ["experiment.lr"]), expected, check_dtype=False)


def test_a_table_gives_the_numbers_that_a_claim_rests_on() -> None:
    claim = next(row for row in recorded("claims") if row["id"] == "fedavg.rounds_iid")
    frame = record_to_frame("fedavg_tables", settings=["target"])
    found = frame[(frame.measure == "reached") & (frame.arm == "IID, C=0.1, E=1, B=10")]
    found = found[found.seed.isin(claim["seeds"])]
    assert len(found) == claim["n"] and np.isclose(found.value.mean(), claim["measured"][claim["headline"]])
    assert (found["target"] == 0.97).all()


def test_what_is_no_record_or_no_setting_is_refused() -> None:
    for record in ("bench", "claims", "elsewhere"):
        with pytest.raises(ValueError, match=f"record='{record}', accepted: .*'fedavg_tables'"):
            record_to_frame(record)
    with pytest.raises(ValueError, match="settings='experiment.lr', accepted: what leads into a unit's settings"):
        record_to_frame("fedavg_tables", ["experiment.lr"])
