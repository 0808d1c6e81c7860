"""The study of batch normalisation: its split, its tables, its claims, and what the microscope draws."""

from pathlib import Path

import pytest
import torch

from fedlab_core import plots
from fedlab_core.experiment import Experiment
from fedlab_core.plots import batchnorm as plots_batchnorm
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.studies import batchnorm, batchnorm_record
from fedlab_core.studies.batchnorm_exact import at_skews, full_batch
from fedlab_core.studies.batchnorm_runs import VARIANTS, Setup, compare, halved, label_blocks
from fedlab_core.workbench import Workbench
from fedlab_core.workbench.browse import Browse
from fedlab_core.workbench.views.batchnorm import VIEWS

TINY = Setup(rounds=2, evaluate_every=1, options={"hidden": (8,)})


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
    data = Setup().load()
    small = halved(data)
    assert small.input_shape == (1, 4, 4)
    assert small.x[3, 0, 1, 2] == data.x[3, 0, 2:4, 4:6].float().mean().round()


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant_runs_and_says_what_it_cost(name: str) -> None:
    result = compare(TINY, [name], seeds=(0,), lrs=(0.1,))[name]
    run = result["runs"][0]
    assert run["round"] == [0, 1, 2] and len(run["test_accuracy"]) == 3 and run["final"] == result["mean"]
    assert run["exchanges"][-1] == (2 * 4 if name.startswith("FedTAN") else 2)
    assert ("reestimated" in run) == (VARIANTS[name].norm == "batch")
    assert ("four_ways" in run) == (name in ("FedBN", "SiloBN"))


def test_each_variant_is_judged_at_its_best_rate_and_finished_runs_are_kept(tmp_path: Path) -> None:
    first = compare(TINY, ["FedAvg+BN"], seeds=(0,), lrs=(1e-6, 0.1), folder=tmp_path)["FedAvg+BN"]
    assert first["lr"] == 0.1 and first["by_lr"]["0.1"] > first["by_lr"]["1e-06"]
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert compare(TINY, ["FedAvg+BN"], seeds=(0,), lrs=(1e-6, 0.1), folder=tmp_path)["FedAvg+BN"] == first


def test_skew_makes_mismatch_and_deviation() -> None:
    rows = at_skews(TINY, skews=(0, 1), rounds=(0, 2))
    assert [(row["skew"], row["round"]) for row in rows] == [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert rows[2]["between"][0] > 3 * rows[0]["between"][0]
    assert rows[2]["deviation"]["local"]["size"] > rows[0]["deviation"]["local"]["size"]
    assert all(row["deviation"]["none"]["size"] < 1e-10 for row in rows)


def test_without_noise_fedtan_follows_centralised_training() -> None:
    data = Setup().load()
    plain, tan, central = (full_batch(n, 6, data=data, points=3) for n in ("FedAvg+BN", "FedTAN", "centralised BN"))
    assert plain["round"] == [0, 2, 4, 6] and tan["objective"] == central["objective"] != plain["objective"]
    assert tan["gradient"] == central["gradient"]


@pytest.mark.parametrize("name", ["identity", "exchanges", "silobn"])
def test_exact_claims_are_shown(name: str) -> None:
    assert batchnorm.CLAIMS[f"batchnorm.{name}"]().verdict == "shown"


def test_claims_about_recorded_runs_are_not_run_without_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchnorm, "recorded", lambda name: None)
    for name in ("mnist", "no_noise_mnist", "gradients_cnn", "cifar"):
        assert batchnorm.CLAIMS[f"batchnorm.{name}"]().verdict == "not run"


def test_a_recording_is_a_picture_and_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["FedTAN", "FedAvg+BN"]
    monkeypatch.setattr(batchnorm_record, "COMPARISONS", {"tiny": (TINY, names, (0.1,), (0, 1))})
    data = batchnorm_record.record("tiny", None, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"batchnorm_tiny.png", "batchnorm_tiny.json"}
    assert list(data["results"]) == names and data["setup"]["rounds"] == 2
    with pytest.raises(ValueError, match="name='none'"):
        batchnorm_record.record("none", None, tmp_path)


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
