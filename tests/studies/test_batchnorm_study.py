"""The study of batch normalisation: its split, its tables, its claims, and what the microscope draws."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedlab_core import plots
from fedlab_core.batchnorm.split import label_blocks
from fedlab_core.data import missing_data
from fedlab_core.experiment import Experiment
from fedlab_core.plots import batchnorm as plots_batchnorm
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.studies import batchnorm
from fedlab_core.studies.arms import by_arm
from fedlab_core.studies.batchnorm_exact import NO_NOISE, at_skews, full_batch
from fedlab_core.studies.batchnorm_runs import COMPARISONS, DIGITS, QUICK, VARIANTS
from fedlab_core.studies.queue import known, missing
from fedlab_core.studies.record import recorded
from fedlab_core.studies.units import Record
from fedlab_core.workbench import Workbench
from fedlab_core.workbench.browse import Browse
from fedlab_core.workbench.views.batchnorm import VIEWS

TINY = replace(QUICK, experiment=DIGITS.replace(evaluate_every=1, model_options={"hidden": [8]}), rounds=2, seeds=(0,))


@pytest.mark.parametrize("skew", [0.0, 0.5, 1.0])
def test_label_blocks_are_a_partition_into_equal_clients(skew: float) -> None:
    labels = torch.arange(10).repeat_interleave(20)
    made = label_blocks(labels, 5, skew, generator(0, "blocks"))
    assert sorted(made.indices.tolist()) == list(range(200)) and made.sizes.tolist() == [40] * 5
    kinds = [len(labels[part].unique()) for part in made]
    assert kinds == [2] * 5 if skew == 1 else min(kinds) > 5
    with pytest.raises(ValueError, match="skew=2"):
        label_blocks(labels, 5, 2, generator(0, "blocks"))


def test_halved_images_are_means_of_four_pixels() -> None:
    data, small = DIGITS.load_data(), DIGITS.replace(dataset_options={"pixels": 4}).load_data()
    assert small.input_shape == (1, 4, 4) and small.mean != data.mean
    assert small.x[3, 0, 1, 2] == data.x[3, 0, 2:4, 4:6].float().mean().round()
    with pytest.raises(ValueError, match="pixels=3"):
        DIGITS.replace(dataset_options={"pixels": 3}).load_data()


def test_the_first_of_each_class_are_taken_before_anything_else() -> None:
    data, few = DIGITS.load_data(), DIGITS.replace(dataset_options={"first": 5, "tests": 7}).load_data()
    assert few.y.bincount().tolist() == [5] * 10 and torch.equal(few.test_x, data.test_x[:7])
    assert torch.equal(few.x[few.y == 3], data.x[data.y == 3][:5]) and few.mean == data.mean


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant_runs_and_says_what_it_cost(name: str) -> None:
    (run,) = TINY.here(name)[name]
    assert run["round"] == [0, 1, 2] and len(run["test_accuracy"]) == 3 and run["test"] == run["test_accuracy"][-1]
    assert run["exchanges"][-1] == (2 * 4 if name.startswith("FedTAN") else 2)
    assert ("reestimated" in run) == (VARIANTS[name].get("batch_norm", "average") is not None)
    assert ("four_ways" in run) == (name in ("FedBN", "SiloBN"))


@pytest.mark.parametrize("record", [*(study.record for study in COMPARISONS), NO_NOISE], ids=lambda record: record.name)
def test_recorded_runs_are_those_of_the_plan(record: Record) -> None:
    assert missing(record, known(record, Path("nowhere"))) == []


@pytest.mark.skipif(bool(missing_data("mnist")), reason="MNIST is not in the data root")
def test_a_recorded_run_can_be_made_again() -> None:
    (again,) = replace(COMPARISONS[0], seeds=(0,)).here("FedAvg+BN")["FedAvg+BN"]
    then = by_arm(recorded("batchnorm_mnist"))["FedAvg+BN"][0]
    assert again["test"] == pytest.approx(then["test"], abs=0.02) and again["exchanges"] == then["exchanges"]


def test_skew_makes_mismatch_and_deviation() -> None:
    rows = at_skews(TINY.experiment, skews=(0, 1), rounds=(0, 2))
    assert [(row["skew"], row["round"]) for row in rows] == [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert rows[2]["between"][0] > 3 * rows[0]["between"][0]
    assert rows[2]["deviation"]["local"]["size"] > rows[0]["deviation"]["local"]["size"]
    assert all(row["deviation"]["none"]["size"] < 1e-10 for row in rows)


def test_without_noise_fedtan_follows_centralised_training() -> None:
    plain, tan, central = (
        full_batch(n, 6, experiment=DIGITS, points=3) for n in ("FedAvg+BN", "FedTAN", "centralised BN")
    )
    assert plain["round"] == [0, 2, 4, 6] and tan["objective"] == central["objective"] != plain["objective"]
    assert tan["gradient"] == central["gradient"]


@pytest.mark.parametrize("name", ["identity", "exchanges", "silobn"])
def test_exact_claims_are_shown(name: str) -> None:
    assert batchnorm.CLAIMS[f"batchnorm.{name}"]().verdict == "shown"


def test_claims_about_recorded_runs_are_not_run_without_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchnorm, "recorded", lambda name: None)
    for name in ("mnist", "no_noise_mnist", "gradients_cnn", "cifar"):
        assert batchnorm.CLAIMS[f"batchnorm.{name}"]().verdict == "not run"


def test_a_recording_is_a_picture_and_its_data(tmp_path: Path) -> None:
    data: dict[str, Any] = {"title": "", "note": "", "units": []}
    for name in ("FedTAN", "FedAvg+BN"):
        unit = TINY.unit(name, None, 0)
        data["units"].append({"arm": name, "seed": 0, "result": TINY.make(unit.settings, lambda: False, "cpu")})
    assert len(TINY.record.draw(data).axes) == 3
    assert TINY.finals(data, "FedTAN") == [data["units"][0]["result"]["test"]]


def test_sliders_browse_without_a_browser_and_say_what_went_wrong() -> None:
    drawn = []

    def draw(skew: float, round: int):
        drawn.append((skew, round))
        if round == 9:
            raise ValueError("no such round")
        return plots.figure()[0]

    look = Browse(draw, skew=(0.0, 0.5), round=(0, 9))
    assert look.values == {"skew": 0.0, "round": 0} and bytes(look.image.value)[1:4] == b"PNG"
    look.sliders["skew"].value = 0.5
    look.set(skew=0.0)
    assert drawn == [(0.0, 0), (0.5, 0)]  # looking again draws nothing again
    look.set(round=9)
    assert "no such round" in look.text.value
    for wrong in ({"skew": 0.3}, {"lr": 1}):
        with pytest.raises(ValueError, match="accepted"):
            look.set(**wrong)
    with pytest.raises(ValueError, match="at least one"):
        Browse(draw, skew=())


def test_the_microscope_looks_at_any_run_of_the_workbench() -> None:
    settings = Settings(fraction=1.0, batch_norm="average", batch_size=32)
    first = Experiment(partition="shards", clients=4, model="mlp", norm="batch", settings=settings)
    bench = Workbench(first, views=VIEWS, rounds=1, band=False)
    bench.run(2, block=True)
    bench.fork("frozen", at=1, batch_norm="frozen", lr=0.01)
    bench.run(1, block=True)
    for run in bench.runs:
        for view in VIEWS:
            for number in (0, 1, 2):
                assert view.draw(run, number).axes
    plain = Workbench(first.replace(norm="group", batch_norm=None), views=VIEWS, rounds=1, band=False)
    plain.run(1, block=True)
    assert "no batch normalisation" in VIEWS[0].draw(plain.runs[0], 1).axes[0].texts[0].get_text()


def test_number_lines_show_that_local_normalisation_hides_the_difference() -> None:
    _, axes = plots.figure(1, 3)
    plots_batchnorm.number_lines(axes[0], [0, 1, 2], [6, 7, 8])
    means = [[line.get_xdata().mean() for line in ax.lines] for ax in axes[0]]
    assert means[0] == [1, 7] and means[1] == pytest.approx([0, 0], abs=1e-12) and means[2][0] == -means[2][1] < -0.9
