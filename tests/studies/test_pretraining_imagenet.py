"""The record of a start from ImageNet, at toy size: its units, what they measure, its claims and its picture."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch

from fedlab_core.experiment import Experiment
from fedlab_core.models.build import Architecture
from fedlab_core.pretraining import distillation
from fedlab_core.pretraining.distillation import Distillation, distilled, lite0_features
from fedlab_core.pretraining.kept import Start, read, write
from fedlab_core.settings import Settings
from fedlab_core.studies import pretraining_imagenet as study
from fedlab_core.studies import pretraining_imagenet_runs as runs
from fedlab_core.studies.arms import SEARCHED
from fedlab_core.studies.queue import gathered, missing
from fedlab_core.studies.units import Record

pytest.importorskip("timm")
DIGITS = Experiment("digits", clients=4, model="mlp", settings=Settings(1.0, epochs=1, batch_size=16, evaluate_every=1))
SIZE = runs.Size(
    unlabelled=200, images=300, held_out=100, tests=100, rounds=2, search_rounds=1, mixtures=3, level=0.1, first=-1,
    how=Distillation(enlarge=4, epochs=2, lr=0.01, batch_size=32),
)  # fmt: skip


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The gathered record of two seeds."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FEDLAB_DATA", str(tmp_path_factory.mktemp("data")))
    plan = partial(runs.plan, experiment=DIGITS, size=SIZE, seeds=(0, 1))
    small, found = Record("small", "small", plan, runs.run, study.draw, (0, 1)), {}
    while todo := missing(small, found):
        for unit in todo:
            result = runs.run(unit.settings, lambda: False, "cpu")
            plain = {"arm": unit.arm, "seed": unit.seed, "settings": unit.settings, "result": result}
            found[unit.key] = plain | {"key": unit.key}
    patch.undo()
    return gathered(small, found)


def test_searches_end_at_a_rate_that_neither_neighbour_beats_and_seeds_run_there(record: dict[str, Any]) -> None:
    assert record["note"].startswith("2 of 2 seeds")
    for start in study.STARTS:
        (rates,) = {tuple(u["settings"]["rates"].items()) for u in record["units"] if u["arm"] == start}
        for skew, lr in rates:
            tried = {u["settings"]["rates"][skew]: u["result"][skew]["held_out"] for u in record["units"]
                     if u["arm"] == f"{start}, {skew}" and u["seed"] == SEARCHED}  # fmt: skip
            assert tried[lr] == max(tried.values()) and min(tried) < lr < max(tried)


def test_what_is_measured_fits_together(record: dict[str, Any]) -> None:
    for pair in study.paired(record).values():
        for one in pair:
            curve = one[study.SKEW]
            assert curve["round"] == [0, 1, 2]
            assert curve["test"] == curve["test_accuracy"][-1] == one["mixtures"]["average_accuracy"]
            line = one["line"]
            assert (line["accuracy"][0], line["accuracy"][-1]) == (one[study.SKEW]["test"], one["IID"]["test"])
            assert line["barrier"] >= 0 and all(a < b for a, b in pairwise(line["theta"]))
            assert one["last"]["round"] == SIZE.rounds and one["last"]["relative_drift"] > 0


def test_the_gap_is_narrowed_by_the_difference_of_differences(record: dict[str, Any]) -> None:
    pairs = list(study.paired(record).values())
    found = study.gap_measures(pairs)
    for i, (random, start) in enumerate(pairs):
        gaps = [one["pooled"]["test"] - one[study.SKEW]["test"] for one in (random, start)]
        assert math.isclose(found[f"{study.SKEW}: gap narrowed by"][i], gaps[0] - gaps[1], abs_tol=1e-9)


def test_a_half_finished_record_draws_and_its_claims_tell_their_seeds(
    record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(study.draw(record).axes) == 4
    one = record | {"units": [u for u in record["units"] if u["seed"] != 1 or u["arm"] == "random"]}
    assert "(1 of 2 seeds)" in study.draw(one)._suptitle.get_text()
    for data, seeds, verdict in ((None, [], "not run"), (one, [0], "undecided")):
        monkeypatch.setattr(study, "recorded", lambda name, data=data: data)
        rows = [make().row() for make in study.CLAIMS.values()]
        assert [row["seeds"] for row in rows] == [seeds] * 5 and {row["verdict"] for row in rows} == {verdict}


def test_a_seed_draws_images_and_no_client_holds_one_that_the_start_has_seen() -> None:
    task, chooser, seen = runs.prepare(DIGITS, SIZE)
    assert [len(task.x), len(chooser.test_x), len(seen.x), len(task.test_x)] == [300, 100, 200, 100]
    images = [{x.numpy().tobytes() for x in part} for part in (task.x, chooser.test_x, seen.x)]
    doubles = len(DIGITS.load_data().x) - len({x.numpy().tobytes() for x in DIGITS.load_data().x})
    assert sum(len(a & b) for a, b in ((images[0], images[2]), (images[1], images[2]))) <= doubles
    again, _, same = runs.prepare(DIGITS.replace(seed=1), SIZE)
    assert torch.equal(same.x, seen.x) and not torch.equal(again.x, task.x)


def test_a_distilled_start_learns_the_features_and_is_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, images = runs.prepare(DIGITS, SIZE)
    features = lite0_features(images, 4)
    assert features.shape == (200, 1280) and features.mean(0).abs().max() < 1e-5
    assert math.isclose(features.square().mean().item(), 1, rel_tol=1e-5)
    start = distilled(Architecture("mlp"), images, SIZE.how, root=tmp_path)
    assert not any(name.startswith("head.") for name in start.state)
    monkeypatch.setattr(distillation, "lite0_features", None)  # it is not asked again
    folded = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    write([tmp_path], "folded", Start("folded", {"kernel": folded}, {}))
    assert read(tmp_path / "folded", "folded") is not None
    kept = distilled(Architecture("mlp"), images, SIZE.how, root=tmp_path)
    assert kept.fingerprint == start.fingerprint and kept.recipe == start.recipe
