"""The claims about speed follow from the recorded benchmark and from nothing else."""

import pytest

from benchmarks import page
from fedlab_core import files
from fedlab_core.studies import engines
from fedlab_core.studies.record import recorded

PLAIN = {"plain, 1 thread": 2.0, "plain, 2 threads": 1.4}


def bench(**changes: object) -> dict[str, object]:
    """A record in which every model takes 1.4 s plain and its best engine meets the target exactly."""
    rows = []
    for model, target in (engines.TARGETS | {"2nn": 7.0}).items():
        seconds = PLAIN | {"loop": 1.5, "threads": 1.4, "stacked": 1.4 / target, "auto": 1.4 / target}
        seconds |= {"auto, 1 core": 0.4, "auto, a core taken": 0.5, "FedJAX": 0.5} if model == "2nn" else {}
        for engine, value in seconds.items():
            rows.append(
                {
                    "model": model,
                    "engine": engine,
                    "seconds_per_round": value,
                    "seconds_min": 0.9 * value,
                    "seconds_max": 1.2 * value,
                    "ratio_to_plain": 1.4 / value,
                    "peak_mib": 700,
                    "percent_of_peak": 14.0 / value,
                }
            )
    return {"rows": rows, "accuracy": {"loop": [0.8, 0.9], "threads": [0.8, 0.9], "stacked": [0.3, 0.31]}} | changes


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    data = bench()
    monkeypatch.setattr(engines, "recorded", lambda name: data if name == "bench" else None)
    return data


def test_the_best_engine_is_judged_and_what_auto_chose_is_told(record: dict[str, object]) -> None:
    claim = engines.rounds_claim()
    assert claim.verdict == "shown" and claim.measured["2NN: x plain"] == pytest.approx(7)
    assert claim.measured["2NN: % of the matmul peak"] == pytest.approx(70)
    assert claim.measured["2NN: a core taken, against one core"] == pytest.approx(1.25)
    assert claim.measured["2NN: of FedJAX's time"] == pytest.approx(0.4)
    record["rows"] = [row for row in record["rows"] if row["engine"] != "stacked" or row["model"] != "vit"]
    for row in record["rows"]:
        if row["model"] == "vit" and row["engine"] == "auto":
            row["ratio_to_plain"] = 1.1
    claim = engines.rounds_claim()
    assert claim.verdict == "refuted" and claim.measured["ViT: x plain"] == pytest.approx(1.1)
    assert "2NN: x plain, products alone" not in claim.measured
    record["products_seconds"] = {"2nn": 0.1}
    assert engines.rounds_claim().measured["2NN: x plain, products alone"] == pytest.approx(14)  # 1.4 s against 0.1 s


@pytest.mark.parametrize("missing", ["FedJAX", "auto, 1 core"])
def test_what_a_ratio_needs_and_nobody_timed_leaves_it_open(record: dict[str, object], missing: str) -> None:
    record["rows"] = [row for row in record["rows"] if row["engine"] != missing]
    assert engines.rounds_claim().verdict == "undecided"


def test_accuracies_that_lie_apart_are_seen(record: dict[str, object]) -> None:
    claim = engines.accuracy_claim()
    assert claim.verdict == "refuted" and claim.failed == ["stacked minus loop, largest"]
    assert claim.measured["stacked minus loop, largest"] == pytest.approx(0.59)
    assert list(claim.seeds) == [0, 1]


def test_what_was_not_measured_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "recorded", lambda name: None)
    assert {make().verdict for make in engines.CLAIMS.values()} == {"not run"}


def test_the_picture_has_a_mark_per_way_and_model() -> None:
    data = bench(peers={"FedJAX": "0.0.17", "pfl-research": "0.6"})
    data["rows"] += [{**data["rows"][0], "engine": f"pfl-research, {n}", "ratio_to_plain": 0.1 * n} for n in (2, 1)]
    fig = engines.picture(data)
    marks = {bars.get_label(): bars.lines[0].get_ydata() for bars in fig.axes[0].containers}
    assert marks.keys() == {*engines.ENGINES, "auto, a core taken", "FedJAX", "pfl-research"}
    assert list(marks["pfl-research"]) == [0.2]
    assert len(marks["loop"]) == len(engines.TARGETS) + 1 and len(marks["FedJAX"]) == 1
    assert max(marks["auto"]) == pytest.approx(7) and min(marks["loop"]) == pytest.approx(1.4 / 1.5)
    fig = engines.picture(data | {"products_seconds": {"2nn": 0.1, "cnn": 0.7}})
    (lines,) = [lines for lines in fig.axes[0].collections if lines.get_label() == "products alone"]
    assert [segment[0][1] for segment in lines.get_segments()] == [pytest.approx(14), pytest.approx(2)]


def test_the_page_holds_the_recorded_table() -> None:
    text = page.FILE.read_text(encoding="utf-8")
    assert text == files.between(text, page.BEGIN, page.END, page.table(recorded("bench")))  # run make bench
    rows = page.panel_rows(recorded("panel"))  # python -m benchmarks.panel
    assert text == files.between(text, page.PANEL, page.END, rows)
    assert text.count(page.BEGIN) == text.count(page.PANEL) == 1 and text.count(page.END) == 2


def test_the_table_takes_the_fastest_of_a_framework_s_ways() -> None:
    data = bench(
        peers={"pfl-research": "pfl 0.6"}, machine="a machine", torch="2.14", matmul_gflops=200.0, load_before=0
    )
    data["rows"] += [
        {**data["rows"][0], "model": "cnn", "engine": f"pfl-research, {way}", "seconds_per_round": seconds}
        for way, seconds in (("1 thread", 3.0), ("2 processes", 1.6))
    ]
    (head, _, *lines), cnn = page.table(data), None
    for line in lines:
        cnn = line if line.startswith("| CNN |") else cnn
    cells = dict(zip(head.strip("| ").split(" | "), cnn.strip("| ").split(" | "), strict=True))
    assert cells["pfl-research"] == "1.60" and cells["plain loop"] == "1.40" and cells["loop"] == "1.50"
