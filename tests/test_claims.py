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
from fedlab_core.studies.record import recorded
from fedlab_core.studies.statistics import differences, interval, ratios, test_set_error

numbers = st.one_of(
    st.none(),
    st.floats(allow_nan=True),
    st.integers(-5, 5),
    st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf]), max_size=4),
)


def claim(measured: dict, **expected: Range) -> Claim:
    return Claim("study.name", "a < b & c", "ours", "quick", expected or {"x": Range(low=1)}, measured, (0, 1))


def mean_claim(values: list[float] | float | None, limits: Range = Range(low=1)) -> Claim:  # noqa: B008
    return Claim("study.mean", "text", "ours", "quick", {"x": limits}, {"x": values}, (0, 1, 2), "x")


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        ({"a": 1.0, "b": 5}, "shown"),
        ({"a": 0.99, "b": 5}, "refuted"),
        ({"a": 1.0}, "undecided"),
        ({"a": 0.0}, "refuted"),
        ({"a": math.nan, "b": math.inf}, "refuted"),
        ({"a": None}, "not run"),
        ({"other": 3.0}, "not run"),
    ],
)
def test_an_exact_claim_holds_in_every_part_or_is_refuted(measured: dict, verdict: str) -> None:
    made = claim(measured, a=Range(low=1), b=Range(5, 5))
    assert made.verdict == verdict and made.interval is None
    assert (verdict == "refuted") == bool(made.failed)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([2.0, 2.1, 1.9], "shown"),
        ([0.0, 0.1, -0.1], "refuted"),
        ([1.0, 1.5, 1.2], "undecided"),
        ([5.0], "undecided"),
        (5.0, "undecided"),
        ([2.0, math.inf, 2.0], "undecided"),
        ([], "not run"),
        (None, "not run"),
    ],
)
def test_the_interval_of_the_headline_decides(values: list[float] | float | None, verdict: str) -> None:
    assert mean_claim(values).verdict == verdict


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6), st.floats(-10, 10), st.floats(0, 5))
def test_a_verdict_is_the_place_of_the_interval(values: list[float], low: float, width: float) -> None:
    limits = Range(low, low + width)
    made = mean_claim(values, limits)
    lower, upper = made.interval
    assert lower <= sum(values) / len(values) + 1e-9 and upper >= sum(values) / len(values) - 1e-9
    inside, outside = lower in limits and upper in limits, upper < limits.low or lower > limits.high
    assert made.verdict == ("shown" if inside else "refuted" if outside else "undecided")


def test_intervals_are_students_and_test_sets_leave_an_error() -> None:
    values = [0.1, 0.2, 0.4, 0.3]  # mean 0.25, standard error 0.0645497; t(0.975, 3) = 3.182446
    assert interval(values) == pytest.approx((0.25 - 3.182446 * 0.0645497, 0.25 + 3.182446 * 0.0645497), abs=1e-6)
    assert interval([1.0]) is None and interval([1.0, math.nan]) is None and interval([2.0, 2.0]) == (2.0, 2.0)
    assert test_set_error(0.5, 100) == 0.05 and test_set_error(1.0, 10) == 0
    assert differences([3, 2], [1, 1]) == [2, 1] and ratios([3, 2], [1, 0]) == [3, math.inf]
    with pytest.raises(ValueError, match="shorter|longer"):
        differences([1], [1, 2])


@given(st.dictionaries(st.sampled_from("abcd"), numbers), st.lists(st.floats(allow_nan=False), min_size=2, max_size=2))
def test_rows_are_plain_data_whatever_was_measured(measured: dict, limits: list[float]) -> None:
    exact = claim(measured, a=Range(*sorted(limits)), b=Range())
    judged = Claim("s.n", "t", "o", "quick", {"a": Range(*sorted(limits))}, measured, (), "a", test_size=9)
    for made in (exact, judged):
        row = made.row()
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        old = ["id", "claim", "source", "size", "expected", "measured", "seeds", "verdict"]
        assert set(old) | {"headline", "interval", "registered", "n", "test_size"} <= set(row)
        assert row["verdict"] in VERDICTS and "\n" not in repr(claims.ClaimTable([row]))
        assert repr(claims.ClaimTable([row], verbose=True)) and claims.ClaimTable([row])._repr_html_()


def test_a_row_tells_the_error_of_its_test_set_where_it_is_larger_than_the_spread() -> None:
    made = replace(mean_claim([2.0, 2.001, 1.999]), test_size=100, references={"reached": 0.5})
    assert (
        made.row()["test_set_error"] == 0.05 and "standard error 0.05" in claims.ClaimTable([made.row()])._repr_html_()
    )
    assert "test_set_error" not in replace(made, measured={"x": [1.0, 2.0, 3.0]}).row()


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
    with pytest.raises(ValueError, match="the headline 'x' alone"):
        Claim("study.name", "text", "ours", "quick", {"x": Range(), "y": Range()}, headline="x")


def test_a_table_is_one_line_a_claim_and_unfolds() -> None:
    made = replace(claim({"x": 1.23456, "more": 7_968_400, "gone": math.inf}), references={"chance": 0.1})
    short, long = claims.table(made, made), claims.ClaimTable([made.row()], verbose=True)
    assert repr(short).count("\n") == 1 and "1.235" in repr(short) and "7,968,400" not in repr(short)
    assert "7,968,400" in repr(long) and "never" in repr(long) and "reference: chance" in repr(long)
    html = short._repr_html_()
    assert "a &lt; b &amp; c" in html and html.count("<details>") == 2 and html.count("<b>shown</b>") == 2
    judged = claims.table(mean_claim([2.0, 2.1, 1.9]))
    assert "2 [1.752, 2.248]; expected x >= 1" in repr(judged)


def test_of_a_refuted_exact_claim_the_line_names_the_part_that_failed() -> None:
    assert "expected b = 5" in repr(claims.table(claim({"a": 2.0, "b": 4}, a=Range(low=1), b=Range(5, 5))))


def test_no_recorded_claim_is_partly_shown() -> None:
    rows = recorded("claims")
    assert rows and {row["verdict"] for row in rows} <= set(VERDICTS)
    for row in rows:
        assert row["registered"], row["id"]
        assert bool(row["headline"]) == (list(row["expected"]) == [row["headline"]]), row["id"]


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
    assert (
        said.endswith("2 claims: 1 shown, 0 refuted, 0 undecided, 1 not run\n")
        and "study.name" in said
        and "a < b" not in said
    )
    monkeypatch.setattr(claims, "collect", lambda only: iter([claim({"x": 2.0})]))
    assert claims.main(["--verbose", "--out", str(file)]) == 0 and "study.name: a < b & c" in capsys.readouterr().out


def test_some_rows_are_replaced_and_the_others_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "claims.json"
    file.write_text(json.dumps([{"id": "other.a"}, {"id": "study.name", "verdict": "old"}, {"id": "other.b"}]))
    monkeypatch.setattr(claims, "collect", lambda only: iter([claim({"x": 2.0})]))
    assert claims.main(["--only", "study", "--out", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [row["id"] for row in rows] == ["other.a", "study.name", "other.b"] and rows[1]["verdict"] == "shown"
    monkeypatch.setattr(claims, "collect", lambda only: iter([claim({"x": 0.0})]))
    assert claims.main(["--out", str(file)]) == 0
    assert [row["verdict"] for row in json.loads(file.read_text())] == ["refuted"]


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
