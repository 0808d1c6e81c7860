"""The table of claims: verdicts follow from numbers, rows are plain data, missing records are said to be missing."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlab_core import claims
from fedlab_core.studies.claim import VERDICTS, Claim, Range
from fedlab_core.studies.record import once, recorded

numbers = st.one_of(st.none(), st.floats(allow_nan=True), st.integers(-5, 5))


def claim(measured: dict, **expected: Range) -> Claim:
    return Claim("study.name", "a < b & c", "ours", "quick", expected or {"x": Range(low=1)}, measured, (0, 1))


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        ({"a": 1.0, "b": 5}, "shown"),
        ({"a": 0.99, "b": 5}, "partly"),
        ({"a": 1.0}, "partly"),
        ({"a": 0.0, "b": 4}, "not shown"),
        ({"a": math.nan, "b": math.inf}, "not shown"),
        ({"a": None}, "not run"),
        ({"other": 3.0}, "not run"),
    ],
)
def test_the_verdict_follows_from_the_numbers(measured: dict, verdict: str) -> None:
    assert claim(measured, a=Range(low=1), b=Range(5, 5)).verdict == verdict


@given(st.dictionaries(st.sampled_from("abcd"), numbers), st.lists(st.floats(allow_nan=False), min_size=2, max_size=2))
def test_rows_are_plain_data_whatever_was_measured(measured: dict, limits: list[float]) -> None:
    row = claim(measured, a=Range(*sorted(limits)), b=Range()).row()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert list(row) == ["id", "claim", "source", "size", "expected", "measured", "seeds", "verdict"]
    assert row["verdict"] in VERDICTS and repr(claims.ClaimTable([row])) and claims.ClaimTable([row])._repr_html_()


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Range(), "any"),
        (Range(low=0.5), ">= 0.5"),
        (Range(high=0.02), "<= 0.02"),
        (Range(3, 3), "= 3"),
        (Range(65.25, 1038.75), "65.25 to 1,038.75"),
    ],
)
def test_ranges_are_written_out(limits: Range, text: str) -> None:
    assert str(limits) == text


def test_a_range_includes_its_limits_and_refuses_to_be_empty() -> None:
    assert 1 in Range(1, 2) and 2 in Range(1, 2) and 2.001 not in Range(1, 2) and math.nan not in Range()
    with pytest.raises(ValueError, match="low=2"):
        Range(2, 1)
    with pytest.raises(ValueError, match="study.name"):
        Claim("study.name", "text", "ours", "quick", {})


def test_a_table_reads_the_same_every_time_and_escapes_its_text() -> None:
    made = claim({"x": 1.23456, "more": 7_968_400, "gone": math.inf})
    shown = claims.table(made, made)
    assert "1.235" in repr(shown) and "7,968,400" in repr(shown) and "never" in repr(shown)
    assert repr(shown) == repr(claims.table(made, made))
    html = shown._repr_html_()
    assert "a &lt; b &amp; c" in html and html.count("<tr>") == 1 + 2 * 3 and html.count("shown") == 2


def test_every_claim_has_an_id_of_its_study() -> None:
    import importlib

    for study in claims.STUDIES:
        found = importlib.import_module(f"fedlab_core.studies.{study}").CLAIMS
        assert found and all(key.startswith(f"{study}.") for key in found)


def test_the_command_prints_rows_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(claims, "collect", lambda only: iter([claim({"x": 2.0}), replace(claim({}), id="study.none")]))
    file = tmp_path / "new" / "claims.json"
    assert claims.main(["--out", str(file)]) == 0
    assert [row["verdict"] for row in json.loads(file.read_text())] == ["shown", "not run"]
    said = capsys.readouterr().out
    assert said.endswith("2 claims: 1 shown, 0 partly, 0 not shown, 1 not run\n") and "study.name: a < b & c" in said


def test_some_rows_are_replaced_and_the_others_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "claims.json"
    file.write_text(json.dumps([{"id": "other.a"}, {"id": "study.name", "verdict": "old"}, {"id": "other.b"}]))
    monkeypatch.setattr(claims, "collect", lambda only: iter([claim({"x": 2.0})]))
    assert claims.main(["--only", "study", "--out", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [row["id"] for row in rows] == ["other.a", "study.name", "other.b"] and rows[1]["verdict"] == "shown"
    monkeypatch.setattr(claims, "collect", lambda only: iter([claim({"x": 0.0})]))
    assert claims.main(["--out", str(file)]) == 0
    assert [row["verdict"] for row in json.loads(file.read_text())] == ["not shown"]


def test_recorded_rows_are_shown_or_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "recorded", lambda name: [claim({"x": 2.0}).row()])
    assert claims.recorded_table("study.name").rows[0]["verdict"] == "shown"
    with pytest.raises(ValueError, match="study.other"):
        claims.recorded_table("study.other")


def test_an_unknown_claim_is_refused() -> None:
    with pytest.raises(ValueError, match="fedavg.rounds"):
        list(claims.collect("nothing."))


def test_records_are_read_or_missing_or_damaged(tmp_path: Path) -> None:
    assert recorded("none", tmp_path) is None
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="bad.json"):
        recorded("bad", tmp_path)


def test_a_finished_run_is_not_computed_again(tmp_path: Path) -> None:
    calls = []

    def make() -> dict:
        calls.append(1)
        return {"x": [1.5, None]}

    folder = tmp_path / "runs"
    assert [once("key", make, folder) for _ in range(3)] == [{"x": [1.5, None]}] * 3 and len(calls) == 1
    assert [p.name for p in folder.iterdir()] == ["key.json"]
    once("key", make, None)
    assert len(calls) == 2
