"""The study of layer-wise training measures what its claims say, and its pictures show it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.layerwise.accounts import relative_flops, training_memory
from fedlab_core.layerwise.method import LayerWise
from fedlab_core.layerwise.network import build_staged
from fedlab_core.layerwise.stages import Stage
from fedlab_core.plots import layerwise as plots_layerwise
from fedlab_core.randomness import generator
from fedlab_core.studies import layerwise, layerwise_runs
from fedlab_core.studies.arms import Comparison, by_arm
from fedlab_core.studies.layerwise_runs import at_budget
from fedlab_core.studies.queue import known, missing
from fedlab_core.workbench.views.climb import Climb

SMALL = layerwise_runs.DIGITS.replace(
    dataset_options={"examples": 80},
    model_options={"patch": 4, "dim": 8, "depth": 2, "heads": 2},
    method_options={"rounds_per_stage": 1},
    clients=2,
    steps=2,
    batch_size=8,
)
TINY = layerwise_runs.budgets("tiny", "", SMALL, 1e-3, 1e-3, 1e-3)


@pytest.fixture(scope="module")
def runs() -> dict[str, list[dict]]:
    """One short run of each kind that the recorded comparison has."""
    patch = pytest.MonkeyPatch()
    patch.setattr(layerwise_runs, "LABELS", 2)
    found = replace(TINY, arms={name: replace(arm, seeds=(0,)) for name, arm in TINY.arms.items()}).here()
    patch.undo()
    return {name: list(one) for name, one in found.items()}


def recorded(runs: dict[str, list[dict]], **changed: dict) -> dict:
    """The data of a recorded comparison, with two equal seeds."""
    units = [
        {"arm": name, "seed": seed, "result": changed.get(name, one)}
        for name, (one,) in runs.items()
        for seed in (0, 1)
    ]
    return {"units": units}


def test_a_run_adds_up_what_it_costs(runs: dict[str, list[dict]]) -> None:
    assert 0 <= runs["supervised"][0]["accuracy"] <= 1
    kinds = {name: one for name, (one,) in runs.items() if name != "supervised"}
    for name, one in kinds.items():
        assert one["round"][-1] == len(one["loss"]) == (6 if "longer" in name else 2)
        for axis in ("round", "flops", "bytes", "bytes_stateless"):
            assert one[axis][0] == 0 and all(a < b for a, b in zip(one[axis], one[axis][1:], strict=False))
        assert all(0 <= value <= 1 for key in ("knn", "knn_train", "probe", "few") for value in one[key])
        json.dumps(one, allow_nan=False)
    layered, whole = kinds["layer-wise"], kinds["end-to-end"]
    assert kinds["layer-wise, 3 x longer"]["round"][-1] == 3 * layered["round"][-1] == 6
    assert layered["flops"][-1] < whole["flops"][-1] == pytest.approx(kinds["centralised"]["flops"][-1])
    assert layered["bytes"][-1] < whole["bytes"][-1] == whole["bytes_stateless"][-1]
    longer = kinds["layer-wise, 3 x longer"]
    assert longer["bytes"][-1] < longer["bytes_stateless"][-1]


def test_at_a_budget_two_evaluations_are_interpolated() -> None:
    one = {"flops": [0, 10, 20, 40], "knn": [0.9, 0.2, 0.3, 0.5]}
    found = [at_budget(one, "flops", budget, "knn") for budget in (10, 15, 20, 30, 40)]
    assert found == pytest.approx([0.2, 0.25, 0.3, 0.4, 0.5])
    assert at_budget(one, "flops", 5, "knn") is at_budget(one, "flops", 41, "knn") is None


def test_gaps_are_layer_wise_minus_end_to_end(runs: dict[str, list[dict]]) -> None:
    better = {**runs["layer-wise"][0], "knn": [1.0] * 3}
    longer = {**runs["layer-wise, 3 x longer"][0], "knn": [0.9] * 7}
    worse = {**runs["end-to-end"][0], "knn": [0.25, 0.5, 0.5]}
    data = recorded(runs, **{"layer-wise": better, "layer-wise, 3 x longer": longer, "end-to-end": worse})
    found = layerwise.gaps(by_arm(data), "knn")
    assert found["round"] == [0.5] * 2 and found["flops"] == pytest.approx([0.4] * 2) == found["bytes"]
    claim = layerwise.accuracy_claim(data)
    assert claim.measured["minus random frozen features"] == [0.75] * 2
    assert claim.verdict == "shown"
    flipped = recorded(
        runs, **{"layer-wise": worse, "layer-wise, 3 x longer": {**longer, "knn": [0.1] * 7}, "end-to-end": better}
    )
    assert layerwise.accuracy_claim(flipped).verdict == "refuted"
    assert all(value < 0 for values in layerwise.gaps(by_arm(flipped), "knn").values() for value in values)


def test_without_a_record_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerwise, "recorded", lambda name: None)
    for name in ("accuracy", "dropout_accuracy", "cifar10", "caltech101"):
        assert layerwise.CLAIMS[f"layerwise.{name}"]().verdict == "not run"


def test_every_claim_bears_its_own_name() -> None:
    quick = {"layerwise.oracles", "layerwise.memory", "layerwise.dropout", "layerwise.frozen"}
    for name, make in layerwise.CLAIMS.items():
        assert name in quick or make().id == name


def test_counted_flops_agree_with_the_closed_forms() -> None:
    model = build_staged((1, 8, 8), generator(0, "w"), patch=4, dim=32, heads=1, depth=6, **layerwise.NO_HEADS)
    found = layerwise.counted_flops(model, torch.zeros(2, 1, 8, 8))
    for name, rule in {"layer_wise": LayerWise(), "drop 0.75": LayerWise(drop=0.75)}.items():
        assert found[name] == pytest.approx(relative_flops(rule, 6), rel=0.02)


def test_frozen_blocks_claim() -> None:
    claim = layerwise.frozen_claim(SMALL)
    assert (
        claim.measured["equal, of all block-rounds"] == 2 * 2
        and claim.measured["blocks that their own stage changed"] == 4
    )


@pytest.mark.parametrize("study", layerwise_runs.COMPARISONS, ids=lambda study: study.name)
def test_recorded_runs_are_those_of_the_plan(study: Comparison) -> None:
    assert missing(study.record, known(study.record, Path("nowhere"))) == []


def test_the_small_network_has_equal_memory() -> None:
    (arm,) = {arm.changes["model_options"]["depth"] for name, arm in TINY.arms.items() if name.endswith("small")}
    assert layerwise_runs.equal_memory(layerwise_runs.DIGITS) == arm == 1


def test_pictures_of_recorded_runs(runs: dict[str, list[dict]], tmp_path: Path) -> None:
    data = recorded(runs)
    fig = TINY.record.draw(data)
    labels = [line.get_label() for line in fig.axes[0].get_lines()]
    assert "layer-wise" in labels and "random frozen features" in labels and "centralised" not in labels
    assert [ax.get_xscale() for ax in fig.axes[:4]] == ["linear", "log", "log", "log"]
    plots.save(fig, tmp_path / "a", data)
    rates = {rate: runs["layer-wise"] for rate in ("0", "0.5", "0.5, mask by step")}
    fig = plots_layerwise.dropout_rates(rates)
    assert isinstance(fig, Figure) and list(fig.axes[1].get_lines()[0].get_ydata()) == [1.0, 1.0]


def test_the_network_is_drawn_as_it_is_trained() -> None:
    fig, axes = plots.figure()
    plots_layerwise.network(axes[0, 0], 4, Stage(2, 3, 2, 2), [True, False, True])
    words = [text.get_text() for text in axes[0, 0].texts if text.get_text()]
    assert words == [
        *("stem", "frozen", "block 1", "frozen", "block 2", "dropped", "block 3", "trained", "block 4"),
        *("heads", "trained"),
    ]


def test_the_climb_follows_its_sliders() -> None:
    model = lambda units: build_staged((1, 8, 8), generator(0, "w"), **{**SMALL.model_options, "depth": units})  # noqa: E731
    climb = Climb(model, (1, 8, 8))
    before = climb.image.value
    assert climb.round.max == 24 and climb.set(round=24).image.value != before
    assert climb.figure().axes[0].get_title() == "round 24: stage 6 of 6"
    climb.set(units=3, stage_rounds=2)
    assert climb.round.max == climb.round.value == 6
    climb.set(batch=8)
    assert climb.figure().axes[0].get_title() == "round 6: stage 3 of 3"
    memory = training_memory(model(3), LayerWise(), Stage(2, 3, 2, 2), torch.zeros(8, 1, 8, 8))
    labels = [text.get_text() for text in climb.figure().axes[1].texts]
    assert labels[0] == f"{memory.total / 2**20:.2f}" and float(labels[1]) > float(labels[0])
    climb.set(drop=1.0)
    words = [text.get_text() for text in climb.figure().axes[0].texts]
    assert words.count("dropped") == 2 and "times less memory" in climb.text.value
