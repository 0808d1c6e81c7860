"""The pre-training study and its views: held-out choice, verdict numbers on made-up runs, pictures that draw."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlab_core import plots, probes
from fedlab_core.experiment import Experiment
from fedlab_core.plots import probes as plots_probes
from fedlab_core.pretraining.starts import Fractals
from fedlab_core.settings import Settings
from fedlab_core.studies import pretraining as study
from fedlab_core.studies import pretraining_rows as rows_of
from fedlab_core.studies import pretraining_runs as runs
from fedlab_core.studies import pretraining_standard as standard
from fedlab_core.studies import pretraining_standard_runs as standard_runs
from fedlab_core.workbench import Workbench
from fedlab_core.workbench.views import probes as views
from fedlab_core.workbench.views.probes import VIEWS


def row(start: str, skew: str, seed: int, lr: float, test: float, held_out: float, method: str = "fedavg") -> dict:
    return {
        "start": start, "skew": skew, "seed": seed, "lr": lr, "test": test, "held_out": held_out, "method": method
    }  # fmt: skip


def test_held_out_examples_are_stratified_and_gone_from_the_training_data() -> None:
    data = runs.DIGITS.load_data()
    rest, chooser = runs.hold_out(data, runs.HELD_OUT)
    assert len(rest.x) + len(chooser.test_x) == len(data.x) and torch.equal(rest.test_x, data.test_x)
    assert torch.equal(rest.x, chooser.x) and chooser.test_y.bincount().min() >= 13
    again = torch.cat((rest.x, chooser.test_x)).flatten(1).double() @ torch.rand(64, dtype=torch.float64)
    assert len(again) == len(data.x)


def test_the_learning_rate_is_chosen_on_held_out_accuracy_not_on_the_test_set() -> None:
    rows = [
        row("random", "IID", s, lr, test, held) for s in (1, 0) for lr, test, held in ((0.1, 0.5, 0.9), (1, 0.9, 0.5))
    ]
    assert study.finals(rows, start="random", skew="IID", method="fedavg") == [0.5, 0.5]
    assert [one["seed"] for one in study.best(rows, start="random")] == [0, 1]
    with pytest.raises(ValueError, match="no run"):
        study.best(rows, start="letters")


def test_the_gap_is_narrowed_by_the_difference_of_differences() -> None:
    fed = {
        "random": {"IID": 0.9, "Dir(0.3)": 0.8, "Dir(0.05)": 0.5},
        "letters": {"IID": 0.9, "Dir(0.3)": 0.85, "Dir(0.05)": 0.7},
    }
    rows = [
        row(n, s, seed, 0.1, v + 0.01 * seed, v) for n, by in fed.items() for s, v in by.items() for seed in (0, 1, 2)
    ]
    pooled = {"random": 0.95, "letters": 0.97}
    rows = [
        one
        | {
            "curves": {"test_accuracy": [one["test"]] * 6},
            "test": one["test"] + (one["start"] == "letters") * 1e-6 * one["seed"],
        }
        for one in rows
    ]
    rows += [row(n, "pooled", seed, 0.1, v + 0.01 * seed, v) for n, v in pooled.items() for seed in (0, 1, 2)]
    found = study.gap_measures({"rows": rows})
    assert found["Dir(0.05): gap narrowed by"] == pytest.approx([0.45 - 0.27] * 3, abs=1e-5)
    assert found["narrowed more under Dir(0.05) than IID by"] == pytest.approx([0.18 + 0.02] * 3, abs=1e-5)


def test_rounds_are_matched_by_the_accuracy_before_them() -> None:
    random = {"test_accuracy": [0.1, 0.5, 0.7], "relative_drift": [None, 0.4, 0.2], "cosine": [None, 0.0, 0.1]}
    letters = {"test_accuracy": [0.5, 0.9, 0.95], "relative_drift": [None, 0.1, 0.1], "cosine": [None, 0.3, 0.2]}
    assert study.matched_accuracy(random, letters) == pytest.approx((0.1 / 0.2, 0.3 - 0.1))


def test_a_small_table_has_a_row_per_run(tmp_path) -> None:
    small = runs.DIGITS.replace(model_options={"hidden": [8]}, epochs=1, batch_size=None)
    found = runs.table({"random": ()}, ("IID",), experiment=small, rounds=1, grid=(0.1,), seeds=(0,), folder=tmp_path)
    assert [one["skew"] for one in found] == ["IID", "pooled"] and all(0 <= one["test"] <= 1 for one in found)
    again = runs.table({"random": ()}, ("IID",), experiment=small, rounds=1, grid=(0.1,), seeds=(0,), folder=tmp_path)
    assert again == found and len(list(tmp_path.iterdir())) == 2
    server = {"fedavgm": {"server_lr": (0.5, 1.0), "beta": 0.0}}
    options = {"experiment": small, "rounds": 1, "grid": (0.1,), "seeds": (0,), "pooled": False}
    both = runs.table({"random": ()}, ("IID",), methods=server, **options)
    assert [(one["lr"], one["server_lr"]) for one in both] == [(0.1, 1.0), (0.1, 0.5)]
    assert both[0]["test"] == found[0]["test"]  # without momentum a step of 1 is FedAvg's


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=2),
    st.integers(0, 2**20).map(lambda seed: np.random.default_rng(seed).integers(0, 5, (6, 6))),
)
def test_a_climb_ends_where_no_neighbour_is_better(sizes: list[int], heights: np.ndarray) -> None:
    asked = []

    def score(point: tuple[int, ...]) -> float:
        asked.append(point)
        return float(heights[point if len(point) == 2 else (*point, 0)])

    tried = rows_of.climb(score, sizes)
    assert len(asked) == len(set(asked)) == len(tried)
    top = max(tried, key=lambda p: (tried[p], [-i for i in p]))
    steps = [tuple(int(a == axis) * step for a in range(len(sizes))) for axis in range(len(sizes)) for step in (-1, 1)]
    around = [tuple(a + b for a, b in zip(top, step, strict=True)) for step in steps]
    assert {p for p in around if all(0 <= i < n for i, n in zip(p, sizes, strict=True))} <= tried.keys()


def test_a_search_asks_few_seeds_and_the_winner_runs_with_all() -> None:
    def run(seed: int, rates: dict[str, float]) -> dict[str, float]:
        return {"held_out": -abs(rates["lr"] - 0.3) - abs(rates["server_lr"] - 0.1) + seed}

    ladders = {"lr": (0.01, 0.03, 0.1, 0.3, 1.0), "server_lr": (0.1, 1.0, 3.0)}
    rows = rows_of.tuned(run, ladders, (0, 1, 2), (1,))
    chosen = rows_of.best(rows)
    assert [(row["seed"], row["lr"], row["server_lr"]) for row in chosen] == [(s, 0.3, 0.1) for s in (0, 1, 2)]
    assert sum(row["seed"] != 1 for row in rows) == 2 and len(rows) < 2 + 5 * 3


def test_a_standard_run_is_kept_with_its_final_state(tmp_path, monkeypatch) -> None:
    one = standard_runs.SETUPS["mnist"]
    experiment = Experiment(
        "digits", {"examples": 80}, clients=4, model="small_cnn", norm="batch", model_options={"channels": [4]},
        settings=Settings(1.0, epochs=1, batch_size=10, batch_norm="average", channels_last=True),
    )  # fmt: skip
    starts = {"random": (), "noise": (Fractals("noise", codes=4, images=64, epochs=1),)}
    small = replace(
        one,
        experiment=experiment,
        rounds=2,
        starts=starts,
        images=60,
        tests=40,
        pixels=4,
        recalibrate_with=40,
    )
    monkeypatch.setattr(standard_runs, "HELD_OUT", 0.1)
    monkeypatch.setattr(standard_runs, "GRID", (0.1,))
    data = standard_runs.runs(small, tmp_path)
    assert {(row["start"], row["skew"], row["seed"]) for row in data["rows"]} == {
        (start, skew, seed) for start in starts for skew in ("IID", "Dir(0.05)", "pooled") for seed in (0, 1, 2)
    }
    kept = len(list(tmp_path.iterdir()))
    assert kept == 2 * (18 + 3) and standard_runs.runs(small, tmp_path) == data
    assert len(list(tmp_path.iterdir())) == kept
    for measure in (
        standard.gap_measures,
        standard.gain_measures,
        standard.basin_measures,
        standard.stability_measures,
    ):
        assert all(np.isfinite(value).all() for value in measure(data).values())
    assert {"random, re-estimated", "different random"} <= data["lines"][0].keys()
    federation = standard_runs.Runner(small, standard_runs.prepare(small), tmp_path).begin("random", "IID", 0, 0.1, 0)[
        1
    ]
    row = next(row for row in data["rows"] if (row["start"], row["skew"], row["seed"]) == ("random", "IID", 0))
    assert federation.run(2).evaluate()["test_accuracy"] == pytest.approx(row["test"], abs=1e-5)
    assert standard.overview({"digits": data}).axes


def test_without_a_record_the_standard_claims_are_not_run(monkeypatch) -> None:
    monkeypatch.setattr(standard, "record", lambda: None)
    assert {make().verdict for make in standard.CLAIMS.values()} == {"not run"}
    assert standard.CLAIMS.items() <= study.CLAIMS.items()


def test_every_claim_has_a_verdict_and_without_a_record_it_is_not_run(monkeypatch) -> None:
    monkeypatch.setattr(study, "record", lambda: None)
    monkeypatch.setattr(standard, "record", lambda: None)
    assert {make().verdict for make in study.CLAIMS.values()} == {"not run"}


def test_the_views_draw_before_and_after_rounds() -> None:
    experiment = Experiment(
        "digits", {"examples": 60}, clients=4, model="mlp", model_options={"hidden": [8]},
        settings=Settings(1.0, epochs=1, batch_size=None, lr=0.1),
    )  # fmt: skip
    bench = Workbench(experiment, views=VIEWS, rounds=2, band=False)
    bench.run(2, block=True)
    assert bench.error is None
    for view in VIEWS:
        for round in (0, 2):
            assert view.draw(bench.runs[-1], round).axes


def test_stability_is_computed_once_from_the_kept_rounds(monkeypatch) -> None:
    experiment = Experiment(
        "digits", {"examples": 60}, clients=4, model="mlp", model_options={"hidden": [8]},
        settings=Settings(1.0, epochs=1, batch_size=None, lr=0.1),
    )  # fmt: skip
    bench, asked, spread = Workbench(experiment, band=False), [], probes.spread
    monkeypatch.setattr(probes, "spread", lambda run, t, **more: asked.append(t) or spread(run, t, **more))
    bench.run(20, block=True)
    run = bench.runs[0]
    views.stability_view(run, 3)
    assert asked == [1, 5, 9, 13, 17, 20]
    views.stability_view(run, 7)
    assert len(asked) == 6
    bench.run(1, block=True)
    drawn = views.stability_view(run, 7).axes[0].lines[0]
    assert asked[6:] == [21] and list(drawn.get_xdata()) == [1, 5, 9, 13, 17, 20, 21]
    found = spread(run.federation, 9, count=12)
    assert drawn.get_ydata()[2] == found["accuracy_mean"]
    assert found["accuracy_sd"] == probes.stability(run.federation, 9, count=12)["dirichlet"]["accuracy_sd"]


def test_the_panels_runs_are_shown_by_start_and_partition() -> None:
    experiment = Experiment(
        "digits", {"examples": 60}, clients=4, model="mlp", model_options={"hidden": [8]},
        settings=Settings(1.0, epochs=1, batch_size=None, lr=0.1),
    )  # fmt: skip
    bench = Workbench(experiment, band=False, reference=True)
    bench.run(1, block=True)
    bench.set(start="letters")
    bench.run(2, block=True)
    (ax,) = views.starts_view(bench.runs[1], 1).axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["random", "letters"]
    means = [line.get_ydata()[0] for line in ax.lines if line.get_label() in ("random", "letters")]
    assert means == [run.federation.history[1].metrics["test_accuracy"] for run in bench.runs]


def test_pictures_of_weight_space_show_what_they_are_given() -> None:
    fig, ((left, right),) = plots.figure(1, 2)
    seen = probes.Landscape(np.arange(3.0), np.arange(3.0), np.full((3, 3), np.nan), np.full((3, 3), np.nan), 2)
    for i, j in ((0, 0), (0, 2), (2, 0), (2, 2)):
        seen.loss[i, j], seen.accuracy[i, j] = 1.0 + i + j, 0.5
    plots_probes.landscape(left, seen)
    assert left.get_title() == "44% of the grid"
    plots_probes.paths(left, {"run": [[0, 0], [1, 2]]})
    assert [label.get_label() for label in left.get_legend_handles_labels()[0]] == ["run"]
    plots_probes.triangle(right, probes.triangle_weights(4), list(range(15)), "abc", [0.2, 0.3, 0.5])
    assert {text.get_text() for text in right.texts} == set("abc")
