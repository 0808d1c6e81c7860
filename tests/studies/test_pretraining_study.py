"""The pre-training study and its views: verdict numbers on made-up runs, units of both sizes, pictures that draw."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedlab_core import plots, probes
from fedlab_core.experiment import Experiment
from fedlab_core.plots import probes as plots_probes
from fedlab_core.settings import Settings
from fedlab_core.studies import pretraining as study
from fedlab_core.studies import pretraining_imagenet
from fedlab_core.studies import pretraining_measures as measures
from fedlab_core.studies import pretraining_runs as runs
from fedlab_core.studies import pretraining_standard as standard
from fedlab_core.studies.arms import Arm, Comparison
from fedlab_core.studies.queue import known, results
from fedlab_core.studies.record import recorded
from fedlab_core.studies.units import full, sparse
from fedlab_core.workbench import Workbench
from fedlab_core.workbench.views import probes as views
from fedlab_core.workbench.views.probes import VIEWS


def record(found: Mapping[str, Sequence[float]]) -> dict:
    """A record whose arms end at some accuracies, one per seed."""
    ends = [(arm, seed, test) for arm, tests in found.items() for seed, test in enumerate(tests)]
    return {
        "units": [
            {"arm": arm, "seed": seed, "result": {"test": test, "test_accuracy": [test] * 6}}
            for arm, seed, test in ends
        ]
    }


def test_the_gap_is_narrowed_by_the_difference_of_differences() -> None:
    ends = {
        "random": {"IID": 0.9, "Dir(0.3)": 0.8, "Dir(0.05)": 0.5, "pooled": 0.95},
        "letters": {"IID": 0.9, "Dir(0.3)": 0.85, "Dir(0.05)": 0.7, "pooled": 0.97},
    }
    arms = {f"{start}, {skew}": end for start, by in ends.items() for skew, end in by.items()}
    data = record({arm: [end + 0.01 * seed for seed in range(3)] for arm, end in arms.items()})
    found = measures.gap_measures(data)
    assert found["Dir(0.05): gap narrowed by"] == pytest.approx([0.45 - 0.27] * 3, abs=1e-5)
    assert found["narrowed more under Dir(0.05) than IID by"] == pytest.approx([0.18 + 0.02] * 3, abs=1e-5)


@pytest.mark.parametrize("study", [runs.STUDY, standard.STANDARD], ids=lambda study: study.name)
def test_recorded_runs_are_those_of_the_plan(study: Comparison) -> None:
    found = known(study.record, Path("nowhere"))
    planned = study.record.plan(results(found))
    assert found and found.keys() <= {unit.key for unit in planned}, "a setting has changed since it was recorded"
    assert {unit.seed for unit in planned if unit.key not in found} <= {3, 4}, "three seeds are whole, at least"
    assert study.record.draw(recorded(study.name)).axes


def test_recorded_rates_are_those_of_the_best_held_out_accuracy() -> None:
    for unit in (recorded("pretraining") or {})["units"]:
        if tried := unit.get("searched"):
            one = full(unit["settings"]["experiment"])
            rates = [one.settings.lr, *(v for key, v in one.method_options.items() if key == "server_lr")]
            assert tried[", ".join(f"{rate:g}" for rate in rates)] == max(tried.values())


def test_rounds_are_matched_by_the_accuracy_before_them() -> None:
    random = {"test_accuracy": [0.1, 0.5, 0.7], "relative_drift": [None, 0.4, 0.2], "cosine": [None, 0.0, 0.1]}
    letters = {"test_accuracy": [0.5, 0.9, 0.95], "relative_drift": [None, 0.1, 0.1], "cosine": [None, 0.3, 0.2]}
    assert measures.matched_accuracy(random, letters) == pytest.approx((0.1 / 0.2, 0.3 - 0.1))


def test_units_on_digits_are_runs_basins_and_what_happens_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    small = runs.DIGITS.replace(model_options={"hidden": [8]}, epochs=1, batch_size=None, evaluate_every=1)
    arms = {name: replace(runs.STUDY.arms[name], seeds=(0,)) for name in ("random, IID", "random, pooled")}
    arms["server"] = Arm({"method": "fedavgm", "method_options": {"server_lr": 1.0, "beta": 0.0}}, lr=0.3, seeds=(0,))
    found = replace(runs.STUDY, experiment=small, rounds=2, arms=arms).here()
    ends = {name: one["test_accuracy"] for name, (one,) in found.items()}
    assert ends["server"] == ends["random, IID"], "without momentum a step of 1 is FedAvg's"
    assert len(ends["random, pooled"]) == 3 and found["random, pooled"][0]["bytes"] < found["server"][0]["bytes"]
    monkeypatch.setattr(runs, "trained", partial(runs.trained, experiment=small, rounds=1))
    look = runs.make({"experiment": sparse(small), "look": "basin"}, lambda: False, "cpu")
    assert look["random, batch order"]["barrier"] < 1e-6, "with all data in each step the order changes nothing"
    inside = runs.rounds_inside("random", 0, 0.3, (1,))
    assert [one["round"] for one in inside["local"]] == [1] and inside["curves"]["drift"][0] is None


def test_a_unit_of_standard_size_averages_pixels_and_looks_at_lines() -> None:
    experiment = Experiment(
        "digits", {"examples": 80}, clients=4, model="small_cnn", norm="batch", model_options={"channels": [4]},
        settings=Settings(1.0, epochs=1, batch_size=10, batch_norm="average", channels_last=True),
    )  # fmt: skip
    size: dict[str, Any] = {"images": 60, "tests": 40, "pixels": 4}
    more: dict[str, Any] = {"from": "noise", "size": size, "mixtures": 3, "again": 40}
    sides = {f"random, {skew}": 0.1 for skew in ("IID", runs.SKEW)}
    arms = {
        "a": Arm(runs.SKEWS[runs.SKEW], lr=0.1, more=more),
        "lines": Arm(lr=0.1, more={**more, "look": "lines", "rates": sides}),
    }
    study = replace(standard.STANDARD, experiment=experiment, rounds=2, arms=arms, seeds=(0,), held_out=0.1)
    found = study.here()
    json.dumps(found, allow_nan=False)
    assert np.isfinite(list(found["a"][0]["mixtures"].values())).all() and found["a"][0]["done"] == 2
    kinds = [f"{kind}{end}" for kind in ("random", "different random") for end in ("", ", re-estimated")]
    assert list(found["lines"][0]) == kinds
    data, chooser = standard.prepare(experiment, 0.1, **size)
    assert data.input_shape == (1, 4, 4) and len(data.x) == 60 and torch.equal(data.x, chooser.x)


def test_every_claim_has_a_verdict_and_without_a_record_it_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (study, pretraining_imagenet):
        monkeypatch.setattr(module, "recorded", lambda name: None)
    made = {key: make() for key, make in study.CLAIMS.items()}
    assert {claim.verdict for claim in made.values()} == {"not run"} and all(key == c.id for key, c in made.items())
    assert {claim.size for claim in made.values()} >= {"quick", "standard"}


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
    plots_probes.triangle(right, probes.triangle_weights(4), list(range(15)), list("abc"), [0.2, 0.3, 0.5])
    assert {text.get_text() for text in right.texts} == set("abc")
