"""The study of fine-tuning measures what its claims say, and its pictures show it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from fedlab_core import claims, plots
from fedlab_core.experiment import Experiment
from fedlab_core.finetuning.accounts import anatomy, cost_table
from fedlab_core.finetuning.classifiers import with_head
from fedlab_core.finetuning.shots import few_shot_clients
from fedlab_core.finetuning.tuning import tune
from fedlab_core.models.weights.shipped import NETWORK, VOCABULARY, blank, load_backbone
from fedlab_core.plots import finetuning as plots_finetuning
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import parameter_names
from fedlab_core.studies import finetuning, finetuning_runs
from fedlab_core.studies.arms import SEARCHED, Comparison, grouped
from fedlab_core.studies.finetuning_runs import COMPARISONS, SCENES, Way, arm, at_clients, federation, pictures, until
from fedlab_core.studies.queue import known, results
from fedlab_core.studies.units import sparse
from fedlab_core.workbench import Workbench
from fedlab_core.workbench.catalog import watched
from fedlab_core.workbench.views.finetuning import VIEWS, budgets_view, trained_view
from fedlab_core.workbench.views.tuner import Tuner

SMALL = SCENES.replace(
    dataset_options={"per_class": 8, "test_per_class": 3}, clients=3, fraction=1.0, steps=1, batch_size=4
)


def run(way: Way, lr: float = 0.01) -> dict[str, Any]:
    """A unit with few pictures and two rounds."""
    settings = {
        "experiment": sparse(SMALL.replace(lr=lr)),
        "way": asdict(replace(way, shots=4)),
        "rounds": 2,
        "every": 1,
    }
    return finetuning_runs.run(json.loads(json.dumps(settings)), lambda: False, "cpu")


@pytest.fixture(scope="module")
def one() -> dict:
    """A short run of the strong ViT with its biases tuned."""
    return run(Way(), 0.03)


@pytest.mark.parametrize(
    "way",
    [
        Way("random", "full"),
        Way("vit_weak", "vpt_deep"),
        Way("vit_strong", "adapter", local=True),
        Way("vit_strong", "bias", "prototypes"),
        Way("clip_tiny", "head", "text_frozen"),
        Way("clip_tiny", "bias", "text_init"),
        Way("clip_tiny", "coop", "text_frozen"),
    ],
    ids=str,
)
def test_every_way_runs_and_is_plain_data(way: Way) -> None:
    nothing = way.method == "head" and way.head == "text_frozen"
    if nothing:
        fed = federation(SMALL, way)
        assert not parameter_names(fed.model), "the zero-shot classifier has nothing to train"
        return
    found = run(way)
    json.dumps(found, allow_nan=False)
    assert found["round"] == ([0] if way.local else [0, 1, 2])
    assert found["bytes"][-1] == (0 if way.local else 2 * 2 * 3 * 4 * found["trained"])
    assert set(found["clients"]) == {"test", "own", "train"}
    assert all(0 <= value <= 1 for value in (*found["test"], *found["clients"].values(), found["held_out"]))


def test_a_prototype_head_starts_from_the_clients_pictures_and_zero_shot_from_words() -> None:
    data = SMALL.load_data()
    partition = few_shot_clients(SMALL.make_partition(data), data.y, 4, 0)
    chance = 1 / data.num_classes
    for way in (Way("vit_strong", "bias", "prototypes", shots=4), Way("clip_tiny", "bias", "text_frozen", shots=4)):
        fed = federation(SMALL, way)
        assert finetuning_runs.accuracy(fed, fed.state, data.test_x, data.test_y) > 3 * chance
        assert torch.equal(fed.partition.indices, partition.indices)


def test_clients_keep_few_pictures_of_a_class_and_tune_on_others_than_the_test() -> None:
    data, other = pictures(SMALL)
    for held in federation(SMALL, Way(shots=4)).partition:
        assert torch.bincount(data.y[held]).max() <= 4
    assert not any((data.test_x == picture).flatten(1).all(1).any() for picture in other.x[:10])


def test_own_accuracy_weights_classes_as_the_client_holds_them() -> None:
    fed = federation(SMALL, Way("vit_strong", "head", local=True, shots=4))
    fed.run(1)
    data, found = fed.dataset, at_clients(fed, fed.dataset.test_x, fed.dataset.test_y)
    each = []
    for client in range(len(fed.partition)):
        right = finetuning_runs.predictions(fed, fed.client_state(client), data.test_x) == data.test_y
        labels = data.y[fed.partition[client]]
        each.append(torch.stack([right[data.test_y == label].float().mean() for label in labels]).mean())
    assert found["own"] == pytest.approx(float(torch.stack(each).mean()), abs=1e-6)


def test_until_interpolates() -> None:
    curve = {"round": [0, 2, 4], "bytes": [0, 10, 20], "test": [0.1, 0.5, 0.4]}
    assert until(curve, "round", 0.3) == pytest.approx(1) and until(curve, "bytes", 0.5) == 10
    assert until(curve, "round", 0.05) == 0 and until(curve, "round", 0.6) == math.inf


def test_the_rate_is_searched_on_further_pictures_where_it_is_not_known() -> None:
    study = finetuning_runs.study("tiny", "", plots_finetuning.strength, {"a: bias": arm(Way(), None)})
    done: dict[str, Any] = {}
    while new := [unit for unit in study.plan(done) if unit.key not in done]:
        for unit in new:
            lr = unit.settings["experiment"]["settings"].get("lr", 0.1)
            done[unit.key] = {"held_out": -abs(math.log(lr / 0.0316))}
    rates = [u.settings["experiment"]["settings"].get("lr", 0.1) for u in study.plan(done) if u.seed < SEARCHED]
    assert rates == [0.0316] * 5


@pytest.mark.parametrize("study", COMPARISONS, ids=lambda study: study.name)
def test_recorded_runs_are_those_of_the_plan(study: Comparison) -> None:
    found = known(study.record, Path("nowhere"))
    planned = study.record.plan(results(found))
    assert found and found.keys() <= {unit.key for unit in planned}, "a setting has changed since it was recorded"
    assert {unit.seed for unit in planned if unit.key not in found} <= {3, 4}, "three seeds are whole, at least"


def comparison(one: dict, groups: Mapping[str, str], names: Sequence[str]) -> dict[str, Any]:
    """A record of three equal seeds, in which one way is better in each group."""
    best = {**one, "test": [v + 0.3 for v in one["test"]], "clients": {k: v + 0.3 for k, v in one["clients"].items()}}
    settings = {"experiment": sparse(SMALL)}
    units = [
        {"arm": f"{group}: {m}", "seed": seed, "settings": settings, "result": best if m == better else one}
        for group, better in groups.items()
        for m in names
        for seed in range(3)
    ]
    return {"units": units}


def test_claims_follow_the_record(one: dict) -> None:
    methods = finetuning_runs.METHODS
    claim = finetuning.claim("strength", comparison(one, {"random": "full", "strong": "bias"}, methods))
    assert claim.verdict == "shown" and claim.measured["strong: bias minus the best other"] == pytest.approx([0.3] * 3)
    flipped = comparison(one, {"random": "bias", "strong": "full"}, methods)
    assert finetuning.claim("strength", flipped).verdict == "refuted"
    assert finetuning.claim("strength", flipped).measured["strong: bias minus full"] == pytest.approx([-0.3] * 3)
    few = comparison(one, {"1": "CLIP, text head", "4": "CLIP, text head", "16": ""}, tuple(finetuning_runs.FAMILIES))
    measured = finetuning.claim("clip", few).measured
    assert measured["1 shot: CLIP minus ViT"] == pytest.approx([0.3] * 3)
    assert measured["16 shots: CLIP minus ViT"] == [0] * 3
    assert measured["lost from 16 shots to 1: ViT minus CLIP"] == pytest.approx([0.3] * 3)
    ways = ("bias, federated", "bias, alone", "full, federated", "full, alone")
    alone = comparison(one, dict.fromkeys(map(str, finetuning_runs.SHOTS), "bias, federated"), ways)
    claim = finetuning.claim("local", alone)
    assert claim.measured["4: all classes, FL minus alone"] == pytest.approx([0.3] * 3) and claim.verdict == "shown"
    claim = finetuning.claim("caltech_cifar", comparison(one, {"random": "", "Caltech-101": "bias"}, methods))
    assert claim.measured["bias: pre-trained minus random"] == pytest.approx([0.3] * 3) and claim.verdict == "shown"


def test_targets_compare_rounds_and_bytes(one: dict) -> None:
    curve = {"round": [0, 1, 2], "test": [0.0, 0.5, 1.0], "clients": {"test": 1.0, "own": 1.0, "train": 1.0}}
    runs = {
        "full": {**one, **curve, "bytes": [0, 100, 200]},
        "bias": {**one, **curve, "bytes": [0, 1, 2]},
        "head": {**one, **curve, "bytes": [0, 1, 2], "test": [0.0, 0.1, 0.2]},
    }
    units = [{"arm": f"strong: {name}", "seed": s, "result": found} for name, found in runs.items() for s in range(3)]
    claim = finetuning.claim("targets", {"units": units})
    assert claim.verdict == "shown" and claim.measured["bias: times fewer bytes than full"] == pytest.approx([100] * 3)
    assert claim.measured["target"] == 0.95 and claim.row()["measured"]["head: rounds"] == "never"


def test_without_a_record_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "recorded", lambda name: None)
    for name in ("strength", "clip", "local", "targets", "caltech_cifar", "paper"):
        claim = finetuning.CLAIMS[f"finetuning.{name}"]()
        assert claim.verdict == "not run" and claim.id == f"finetuning.{name}"
    assert "finetuning" in claims.STUDIES


def test_the_payloads_are_those_worked_out_by_hand() -> None:
    claim = finetuning.payload_claim()
    assert claim.id == "finetuning.payload" and claim.verdict == "shown"
    assert finetuning.PAYLOADS["full"] == 85_798_656 + 76_900
    assert finetuning.PAYLOADS["adapter /8, one per block, + head"] == 12 * (768 * 96 * 2 + 96 + 768) + 76_900


def test_pictures_of_recorded_runs(one: dict, tmp_path: Path) -> None:
    starts = comparison(one, dict.fromkeys(finetuning_runs.STARTS, ""), finetuning_runs.METHODS)
    fig = COMPARISONS[0].record.draw(starts)
    assert [ax.get_xscale() for ax in fig.axes[:4]] == ["linear", "linear", "log", "log"]
    assert [text.get_text() for text in fig.axes[0].get_xticklabels()] == ["random", "weak", "strong"]
    plots.save(fig, tmp_path / "a", starts)
    families = grouped(comparison(one, {"1": "", "4": ""}, tuple(finetuning_runs.FAMILIES)))
    fig = plots_finetuning.over_shots(families)
    assert list(fig.axes[1].get_lines()[0].get_ydata()) == [one["test"][0]] * 2
    fig = plots_finetuning.federated_or_alone(families)
    assert isinstance(fig, Figure) and len(fig.axes) == 3


def test_what_is_trained_is_drawn() -> None:
    vit = with_head(load_backbone("vit_weak").model, 16, generator(0, "head"))
    fig, axes = plots.figure()
    plots_finetuning.network(axes[0, 0], anatomy(tune(vit, "bias", generator(0, "t"))))
    words = [text.get_text() for text in axes[0, 0].texts]
    assert "head\n1,040" in words and words.count("attention\n256") == 4 and words.count("MLP\n320") == 4
    fig, axes = plots.figure()
    plots_finetuning.network(axes[0, 0], anatomy(tune(vit, "vpt_deep", generator(0, "t"), tokens=2)))
    words = [text.get_text() for text in axes[0, 0].texts]
    assert words.count("prompt\n128") == 4 and words.count("attention") == 4
    rows = cost_table(vit, torch.zeros(2, 3, 32, 32), ("full", "bias"))
    fig, axes = plots.figure()
    plots_finetuning.times_less(axes[0, 0], rows)
    heights = [bar.get_height() for bar in axes[0, 0].patches]
    assert heights[0] == 1 and heights[1] == pytest.approx(rows[0]["bytes"] / rows[1]["bytes"])


TUNED = Experiment(
    "scenes",
    {"per_class": 4, "test_per_class": 2},
    clients=2,
    model="vit",
    model_options={"patch": 8},
    start="vit_strong",
    tuning="bias",
    settings=Settings(1.0, lr=0.03, batch_size=16),
)


def test_an_experiment_says_what_is_trained() -> None:
    assert Experiment.from_json(json.loads(json.dumps(TUNED.to_json()))) == TUNED
    assert TUNED.key != TUNED.replace(tuning="full").key
    assert {key: value for key, value in NETWORK.items() if key != "patch"} == {"dim": 64, "depth": 4, "heads": 4}
    run, start = TUNED.build(), load_backbone("vit_strong").model.state_dict()
    assert all(torch.equal(run.state[name], start[name]) for name in start if not name.startswith("head."))
    run.run(1)
    moved = {name for name in start if not torch.equal(run.state[name], run.state_at(0)[name])}
    still = set(parameter_names(run.model)) - moved
    assert moved <= set(parameter_names(run.model)) and "head.weight" in moved and "embed.bias" in moved
    assert all(name.endswith("attention.k.bias") for name in still), "attention does not depend on a key's bias"
    assert all(name.endswith("bias") or name == "head.weight" for name in moved)
    with pytest.raises(ValueError, match="model is a .*accepted by 'bias'"):
        TUNED.replace(model="small_cnn", model_options={}, start="random").build()
    with pytest.raises(ValueError, match="start='vit_strong' has colour images of 32 x 32"):
        TUNED.replace(dataset="digits", dataset_options={}, model_options={}).build()


def test_the_workbench_shows_what_is_trained_and_accuracy_for_the_cost() -> None:
    bench = Workbench(TUNED, views=VIEWS, band=False)
    assert bench.experiment == watched(TUNED, band=False)
    bench.run(1, block=True)
    assert "trained: bias" in bench.panel.shown.value and "start: vit_strong" in bench.panel.shown.value
    with pytest.raises(ValueError, match="tuning bias → full"):
        bench.fork(tuning="full")
    bench.set(tuning="full")
    bench.run(1, block=True)
    first, second = bench.runs
    words = [text.get_text() for ax in trained_view(first, 1).axes for text in ax.texts]
    assert "attention\n256" in words and "head\n1,040" in words
    assert "15.9" in "".join(words).replace(" ", "") and "858" in "".join(words)
    fig = budgets_view(second, 1)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [first.name, second.name]
    sent = [line.get_xdata()[-1] for line in fig.axes[1].get_lines() if len(line.get_xdata()) == 2]
    assert sent == [run.federation.history[-1].total.bytes / 1e6 for run in bench.runs]
    bench.set(model="small_cnn", start="random")
    assert bench.controls.tuning.layout.display == "none" and bench.experiment.tuning == "full"
    bench.run(1, block=True)
    assert "vision transformers" in trained_view(bench.runs[2], 1).axes[0].texts[0].get_text()


def test_the_panel_of_ways_follows_its_choices() -> None:
    vit = with_head(load_backbone("vit_weak").model, 16, generator(0, "head"))
    images = torch.zeros(4, 3, 32, 32)
    networks = {"small ViT": (vit, images), "CLIP-tiny": (blank("clip_tiny", 1, 0), images)}
    tuner = Tuner(networks, VOCABULARY, ("solid ring", "dotted bar"))
    assert tuner.describe().startswith("3,984 of 214,608 parameters are trained and travel, 1,040 of them")
    before = tuner.image.value
    assert tuner.set(method="vpt_deep").family.value == "input" and tuner.image.value != before
    assert "coop" not in dict(tuner.method.options).values()
    tuner.set(network="CLIP-tiny", method="coop")
    words = [text.get_text() for text in tuner.figure().axes[0].texts]
    assert "prompt\n1,024" in words and tuner.describe().startswith("1,024 of ")
    tuner.set(family="baseline")
    assert tuner.method.value == "full" and "parameters are trained" in tuner.text.value
    assert len(tuner.figure().axes[1].patches) == 3
