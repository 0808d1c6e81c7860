"""The pre-training study and its views: held-out choice, verdict numbers on made-up runs, pictures that draw."""

import numpy as np
import pytest
import torch

from fedlab_core import plots, probes
from fedlab_core.experiment import Experiment
from fedlab_core.plots import probes as plots_probes
from fedlab_core.settings import Settings
from fedlab_core.studies import pretraining as study
from fedlab_core.studies import pretraining_runs as runs
from fedlab_core.views.probes import VIEWS
from fedlab_core.workbench import Workbench


def row(start: str, skew: str, seed: int, lr: float, test: float, held_out: float, method: str = "fedavg") -> dict:
    return {
        "start": start, "skew": skew, "seed": seed, "lr": lr, "test": test, "held_out": held_out, "method": method
    }  # fmt: skip


def test_held_out_examples_are_stratified_and_gone_from_the_training_data() -> None:
    data = runs.DIGITS.load_data()
    rest, chooser = runs.hold_out(data)
    assert len(rest.x) + len(chooser.test_x) == len(data.x) and torch.equal(rest.test_x, data.test_x)
    assert torch.equal(rest.x, chooser.x) and chooser.test_y.bincount().min() >= 13
    again = torch.cat((rest.x, chooser.test_x)).flatten(1).double() @ torch.rand(64, dtype=torch.float64)
    assert len(again) == len(data.x)


def test_the_learning_rate_is_chosen_on_held_out_accuracy_not_on_the_test_set() -> None:
    rows = [
        row("random", "IID", s, lr, test, held) for s in (1, 0) for lr, test, held in ((0.1, 0.5, 0.9), (1, 0.9, 0.5))
    ]
    assert study.finals(rows, start="random", skew="IID", method="fedavg") == [0.5, 0.5]
    assert [one["seed"] for one in runs.best(rows, start="random")] == [0, 1]
    with pytest.raises(ValueError, match="no run"):
        runs.best(rows, start="letters")


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
    assert found["Dir(0.05): gap narrowed by"] == pytest.approx(0.45 - 0.27, abs=1e-5)
    assert found["Dir(0.05): sd over seeds"] == pytest.approx(1e-6, rel=0.01)
    assert found["narrowed more under Dir(0.05) than IID by"] == pytest.approx(0.18 + 0.02, abs=1e-5)


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


def test_every_claim_has_a_verdict_and_without_a_record_it_is_not_run(monkeypatch) -> None:
    monkeypatch.setattr(study, "record", lambda: None)
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
