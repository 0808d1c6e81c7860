"""Experiments as plain data, settings that check themselves, and rounds to a target."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import equal, small_federation, split

from fedlab_core.costs import Costs
from fedlab_core.data.prepared import TICK
from fedlab_core.experiment import Experiment
from fedlab_core.history import Record, clients_to_frame, rounds_to_target, to_frame
from fedlab_core.pretraining.named import recipe
from fedlab_core.settings import Settings

QUICK = Experiment(dataset_options={"examples": 200}).replace(fraction=0.2, lr=0.2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"partition": "shards", "partition_options": {"per_client": 1}},
        {"partition": "dirichlet", "partition_options": {"alpha": 0.1, "feature_skew": "rotation", "strength": 30.0}},
        {"partition": "quantity", "model": "small_cnn", "norm": "group"},
        {"partition": "pooled", "method": "fedprox", "method_options": {"mu": 0.1}},
    ],
)
def test_an_experiment_survives_json_and_builds_the_same_run_again(changes: dict[str, Any]) -> None:
    experiment = QUICK.replace(**changes)
    again = Experiment.from_json(json.loads(json.dumps(experiment.to_json())))
    assert again == experiment and again.key == experiment.key
    first, second = experiment.build().run(2), again.build().run(2)
    assert first.history == second.history and equal(first.state, second.state)


def test_a_start_fills_everything_but_the_classifier() -> None:
    experiment = QUICK.replace(model="mlp", model_options={"hidden": [8]}, start="letters")
    again = Experiment.from_json(json.loads(json.dumps(experiment.to_json())))
    assert again == experiment and experiment.key != experiment.replace(start="random").key
    run, plain = experiment.build(), experiment.replace(start="random").build()
    start = experiment.make_start(recipe("letters", (1, 8, 8)))
    assert equal({name: run.state[name] for name in start.state}, start.state)
    assert {name for name in run.state if equal({name: run.state[name]}, {name: plain.state[name]})} == {
        "head.weight",
        "head.bias",
    }


def test_a_key_from_before_starts_were_named_is_kept() -> None:
    plain = QUICK.to_json()
    del plain["start"]
    old = Experiment.from_json(plain)
    assert old == QUICK and old.key == QUICK.key


def test_experiments_differ_by_key_and_seed() -> None:
    other = QUICK.replace(seed=1)
    assert other.key != QUICK.key and other.settings.lr == 0.2
    runs = [experiment.build() for experiment in (QUICK, other)]
    assert runs[0].partition.fingerprint != runs[1].partition.fingerprint
    assert not equal(runs[0].state, runs[1].state)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"partition": "sorted"}, "partition='sorted', accepted"),
        ({"tuning": "prefix"}, "tuning='prefix', accepted: .*'head'"),
        ({"partition_options": {"alpha": 1}}, "do not fit 'iid'"),
        ({"clients": 1000}, "at most 200"),
        ({"model": "gpt"}, "gpt"),
        ({"dataset": "imagenet"}, "imagenet"),
        ({"method": "fedavg", "method_options": {"mu": 1}}, "does not take"),
        ({"partition": "natural"}, "groups"),
        ({"partition_options": {"feature_skew": "rotation"}}, "strength"),
        ({"start": "elsewhere"}, "start='elsewhere', accepted"),
    ],
)
def test_impossible_experiments_say_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QUICK.replace(**changes).build()


@pytest.mark.parametrize(
    "changes",
    [
        {"fraction": 1.5},
        {"lr": 0.0},
        {"lr": math.nan},
        {"epochs": 0},
        {"epochs": 1.5},
        {"batch_size": 0},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"lr_schedule": "step"},
        {"lr_decay": 0.0},
        {"weighting": "none"},
        {"epochs": 1, "steps": 2},
        {"evaluate_every": 0},
    ],
)
def test_bad_settings_name_themselves(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(changes)):
        Settings(**changes)


def test_settings_replace_switches_between_epochs_and_steps() -> None:
    assert Settings().replace(steps=5).epochs is None
    assert Settings(epochs=None, steps=5).replace(epochs=2).steps is None


@pytest.mark.parametrize("fraction, clients, expected", [(0.0, 100, 1), (0.1, 100, 10), (1.0, 7, 7), (0.25, 20, 5)])
def test_clients_per_round_is_at_least_one(fraction: float, clients: int, expected: int) -> None:
    assert Settings(fraction=fraction).clients_per_round(clients) == expected


def test_local_steps_are_those_of_the_paper() -> None:
    assert Settings(epochs=5, batch_size=10).local_steps(600) == 300  # u of McMahan et al. 2017, table 2
    assert Settings(epochs=1, batch_size=None).local_steps(600) == 1
    assert Settings(epochs=2, batch_size=50).local_steps(101) == 6


def test_schedules() -> None:
    decay = Settings(lr=1.0, lr_schedule="exponential", lr_decay=0.9)
    assert [decay.lr_at(t) for t in (1, 2, 3)] == pytest.approx([1, 0.9, 0.81])
    cosine = Settings(lr=1.0, lr_schedule="cosine", schedule_rounds=4)
    expected = [1, 0.853553, 0.5, 0.146447, 0.146447]
    assert [cosine.lr_at(t) for t in (1, 2, 3, 4, 9)] == pytest.approx(expected, abs=1e-6)
    run = small_federation(split(20), lr_schedule="exponential", lr_decay=0.5).run(3)
    assert [record.lr for record in run.history[1:]] == pytest.approx([0.3, 0.15, 0.075])


def records(*accuracies: float | None) -> list[Record]:
    return [
        Record(t, 0.1, {} if a is None else {"test_accuracy": a}, Costs(), Costs(), [])
        for t, a in enumerate(accuracies)
    ]


@pytest.mark.parametrize(
    "accuracies, expected",
    [
        ((0.1, 0.5, 0.9), 1.75),  # between 0.5 and 0.9
        ((0.1, 0.5, 0.3, 0.9), 2.75),  # the curve is made monotone: from 0.5 at round 2
        ((0.1, None, None, 0.9), 3 * 0.7 / 0.8),  # evaluated every third round
        ((0.1, 0.8), 1.0),  # exactly
        ((0.9, 0.1), 0.0),
        ((0.1, 0.7, math.nan), math.inf),
    ],
)
def test_rounds_to_target_are_monotone_and_interpolated(accuracies: tuple[float | None, ...], expected: float) -> None:
    assert rounds_to_target(records(*accuracies), 0.8) == pytest.approx(expected)


def test_histories_become_tables() -> None:
    run = small_federation(split(20, 20)).run(2)
    frame, clients = to_frame(run.history), clients_to_frame(run.history)
    assert list(frame["round"]) == [0, 1, 2] and frame["total_bytes_up"].iloc[2] == 2 * frame["bytes_up"].iloc[1]
    assert list(clients["client"]) == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "value",
    [np.float32(0.3), np.float64(0.3), torch.tensor(0.3), np.array(0.3), torch.tensor(0.3, dtype=torch.float64)],
)
def test_values_of_a_sweep_are_plain_at_once(value: Any) -> None:
    swept = Experiment(partition="dirichlet", partition_options={"alpha": value}, clients=np.int64(20))
    plain = Experiment(partition="dirichlet", partition_options={"alpha": 0.3})
    assert swept == plain and swept.key == plain.key
    assert type(swept.partition_options["alpha"]) is float and type(swept.clients) is int
    assert json.loads(json.dumps(swept.to_json())) == plain.to_json()


def test_options_hold_what_json_gives_back_and_nothing_else() -> None:
    options = {"hidden": (np.int64(8), 4), "widths": np.arange(2), "where": Path("a"), "type": torch.float32}
    made = Experiment(model_options=options)
    assert made.model_options == {"hidden": [8, 4], "widths": [0, 1], "where": "a", "type": "float32"}
    with pytest.raises(ValueError, match=r"model_options\['act'\]=<built-in.*accepted: numbers, texts"):
        Experiment(model_options={"act": torch.relu})
    with pytest.raises(ValueError, match=r"dataset_options\['a'\]\[1\]=\{1\}"):
        Experiment(dataset_options={"a": [0, {1}]})


def test_keys_of_earlier_files_are_kept() -> None:
    """Recorded before starts, tunings, layouts, precisions and scalings had names."""
    experiment = Experiment(settings=Settings(engine="loop"))
    mnist = Experiment(
        "mnist",
        {"examples": 100, "standardise": False},
        partition_options={"feature_skew": "rotation", "strength": 30.0},
        model="mlp",
        model_options={"hidden": (8,)},
        settings=Settings(steps=3, epochs=None, batch_size=None, lr=0.05, engine="loop"),
    )
    changed = experiment.replace(batch_norm="average", engine="auto", device="cuda", seed=4)
    assert [experiment.key, experiment.replace(channels_last=True).key] == ["75a87430", "00464ad5"]
    assert [mnist.key, changed.key] == ["84879c5f", "ab40da8f"]
    assert experiment.replace(start="letters", tuning="bias").key == "8aeb3611"


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [({"scaling": "unit"}, 0.0, 1.0), ({"standardise": False}, 0.0, 1.0), ({"scaling": "centred"}, -0.5, 0.5)],
)
def test_pixels_are_scaled_as_asked(options: dict[str, Any], low: float, high: float) -> None:
    data = Experiment(dataset_options=options).load_data()
    seen = data.prepare(data.x)
    assert (seen.min().item(), seen.max().item()) == (low, high)
    assert torch.allclose(seen, data.x / 255 + low, atol=1e-7)


def test_standardised_pixels_are_the_default_and_other_scalings_are_refused() -> None:
    plain, named = Experiment().load_data(), Experiment(dataset_options={"scaling": "standardised"}).load_data()
    assert (plain.mean, plain.std) == (named.mean, named.std) and plain.mean != (0.0,)
    with pytest.raises(ValueError, match="scaling='zero', accepted: .*'centred'"):
        Experiment(dataset_options={"scaling": "zero"}).load_data()
    with pytest.raises(ValueError, match="scaling='unit': python_docs has no pixels"):
        Experiment("python_docs", {"scaling": "unit"}).load_data()


def pictures(folder: Path, count: int, shade: int = 0) -> None:
    for name in "ab":
        (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(np.full((8, 8), (10 * i + shade) % 256, np.uint8)).save(
                folder / "photos" / name / f"{i}.png"
            )


def test_changed_files_and_another_data_root_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, first, second = Experiment("folder:photos"), tmp_path / "first", tmp_path / "second"
    pictures(first, 5)
    pictures(second, 10)
    assert len(experiment.load_data(first).x) == 8
    pictures(first, 5, shade=100)
    assert experiment.load_data(first).x.min() >= 100  # other pixels under the same names
    pictures(first, 20)
    assert len(experiment.load_data(first).x) == 32
    for root, count in ((first, 32), (second, 16)):
        monkeypatch.setenv("FEDLAB_DATA", str(root))
        assert len(experiment.load_data().x) == count


def test_unchanged_files_are_loaded_once(tmp_path: Path) -> None:
    pictures(tmp_path, 5)
    for file in tmp_path.rglob("*.png"):
        os.utime(file, (1e9, 1e9))
    experiment = Experiment("folder:photos")
    later = max(file.stat().st_ctime_ns for file in tmp_path.rglob("*.png")) + 2 * TICK
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedlab_core.data.prepared.time.time_ns", lambda: later)  # the files are old by then
        assert experiment.load_data(tmp_path) is experiment.load_data(tmp_path)
    assert Experiment().load_data() is Experiment().load_data()
