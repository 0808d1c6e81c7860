"""The study of layer-wise training measures what its claims say, and its pictures show it."""

import json
from dataclasses import replace

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
from fedlab_core.studies import layerwise, layerwise_record, layerwise_runs
from fedlab_core.studies.layerwise_runs import Setup, at_budget, kept_run, tuned
from fedlab_core.workbench.views.climb import Climb

SMALL = Setup(
    examples=80,
    model={"patch": 4, "dim": 8, "depth": 2, "heads": 2, "hidden": 8, "out": 4, "layers": 2},
    clients=2,
    steps=2,
    batch_size=8,
    stage=1,
    labels=2,
)


@pytest.fixture(scope="module")
def runs() -> dict[str, dict]:
    """One short run of each kind that the recorded comparison has."""
    kinds = {**layerwise_runs.COMPARED, "end-to-end, small": {"scheme": "end_to_end", "depth": 1}}
    return {name: layerwise_runs.run(SMALL, 0, 1e-3, **options) for name, options in kinds.items()}


def recorded(runs: dict[str, dict], **changed: dict) -> dict:
    """The same as a recorded comparison, with two equal seeds."""
    return {
        "runs": {name: [changed.get(name, one)] * 2 for name, one in runs.items()},
        "seeds": (0, 1),
        "supervised": [0.9] * 2,
    }


def test_a_run_adds_up_what_it_costs(runs: dict[str, dict]) -> None:
    for name, one in runs.items():
        assert one["round"][-1] == len(one["loss"]) == (6 if "longer" in name else 2)
        for axis in ("round", "flops", "bytes", "bytes_stateless"):
            assert one[axis][0] == 0 and all(a < b for a, b in zip(one[axis], one[axis][1:], strict=False))
        assert all(0 <= value <= 1 for key in ("knn", "knn_train", "probe", "few") for value in one[key])
        json.dumps(one, allow_nan=False)
    layered, whole = runs["layer-wise"], runs["end-to-end"]
    assert runs["layer-wise, 3 x longer"]["round"][-1] == 3 * layered["round"][-1] == 6
    assert layered["flops"][-1] < whole["flops"][-1] == pytest.approx(runs["centralised"]["flops"][-1])
    assert layered["bytes"][-1] < whole["bytes"][-1] == whole["bytes_stateless"][-1]
    longer = runs["layer-wise, 3 x longer"]
    assert longer["bytes"][-1] < longer["bytes_stateless"][-1]


def test_at_a_budget_two_evaluations_are_interpolated() -> None:
    one = {"flops": [0, 10, 20, 40], "knn": [0.9, 0.2, 0.3, 0.5]}
    found = [at_budget(one, "flops", budget, "knn") for budget in (10, 15, 20, 30, 40)]
    assert found == pytest.approx([0.2, 0.25, 0.3, 0.4, 0.5])
    assert at_budget(one, "flops", 5, "knn") is at_budget(one, "flops", 41, "knn") is None


def test_gaps_are_layer_wise_minus_end_to_end(runs: dict[str, dict]) -> None:
    better = {**runs["layer-wise"], "knn": [1.0] * 3}
    longer = {**runs["layer-wise, 3 x longer"], "knn": [0.9] * 7}
    worse = {**runs["end-to-end"], "knn": [0.25, 0.5, 0.5]}
    data = recorded(runs, **{"layer-wise": better, "layer-wise, 3 x longer": longer, "end-to-end": worse})
    found = layerwise.gaps(data, "knn")
    assert found["round"] == [0.5] * 2 and found["flops"] == pytest.approx([0.4] * 2) == found["bytes"]
    claim = layerwise.accuracy_claim(data)
    assert claim.measured["minus random frozen features"] == [0.75] * 2
    assert claim.verdict == "shown"
    flipped = recorded(
        runs, **{"layer-wise": worse, "layer-wise, 3 x longer": {**longer, "knn": [0.1] * 7}, "end-to-end": better}
    )
    assert layerwise.accuracy_claim(flipped).verdict == "refuted"
    assert all(value < 0 for values in layerwise.gaps(flipped, "knn").values() for value in values)


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


def test_frozen_blocks_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerwise, "Setup", lambda **changes: replace(SMALL, **changes))
    claim = layerwise.frozen_claim()
    assert (
        claim.measured["equal, of all block-rounds"] == 2 * 2
        and claim.measured["blocks that their own stage changed"] == 4
    )


def test_finished_runs_are_kept_and_the_rate_is_chosen_on_training_pictures(tmp_path, monkeypatch) -> None:
    calls = []

    def fake(setup: Setup, seed: int, lr: float, **options) -> dict:
        calls.append(lr)
        return {"knn_train": [0.0, {0.1: 0.5, 0.2: 0.9, 0.4: 0.7}[lr]]}

    monkeypatch.setattr(layerwise_runs, "run", fake)
    assert tuned(SMALL, {"scheme": "layer_wise"}, (0.1, 0.2, 0.4), tmp_path) == 0.2
    kept_run(tmp_path, SMALL, 0, 0.2, scheme="layer_wise")
    assert calls == [0.1, 0.2, 0.4]
    kept_run(tmp_path, replace(SMALL, steps=3), 0, 0.2, scheme="layer_wise")
    assert calls[3:] == [0.2]


def test_dirichlet_clients_hold_a_batch_each() -> None:
    run, _ = layerwise_runs.federation(replace(SMALL, alpha=0.3), 0, 1e-3, scheme="layer_wise")
    assert run.partition.sizes.min() >= SMALL.batch_size and "dirichlet" in run.partition.description


def test_supervised_training_gives_an_accuracy() -> None:
    assert 0 <= layerwise_runs.supervised(SMALL, 0, 1e-3) <= 1


def test_the_small_network_has_equal_memory() -> None:
    assert layerwise_record.equal_memory(SMALL) >= 1
    with pytest.raises(ValueError, match="name='nothing' is unknown"):
        layerwise_record.record("nothing")


def test_pictures_of_recorded_runs(runs: dict[str, dict], tmp_path) -> None:
    data = recorded(runs)
    fig = plots_layerwise.three_budgets(data)
    labels = [line.get_label() for line in fig.axes[0].get_lines()]
    assert "layer-wise" in labels and "random frozen features" in labels and "centralised" not in labels
    assert [ax.get_xscale() for ax in fig.axes[:4]] == ["linear", "log", "log", "log"]
    plots.save(fig, tmp_path / "a", data)
    rates = {"runs": {rate: [runs["layer-wise"]] for rate in ("0", "0.5", "0.5, mask by step")}}
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
    model = lambda units: build_staged((1, 8, 8), generator(0, "w"), **{**SMALL.model, "depth": units})  # noqa: E731
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
