"""What the reader brings along: federations, models, methods, data, and panels that replace each other."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fedlab_core.data import load_dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.partition import iid
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.workbench import alive, export
from fedlab_core.workbench.bench import Workbench
from tests.workbench.panels import SMALL, said


@dataclasses.dataclass(frozen=True)
class Halved(FedAvg):
    """A step of part of the way.

    Args:
        part: of the averaged update.
    """

    part: float = 0.5
    name = "halved"

    def aggregate(self, start, updates, weights, server, clients):
        state, server = super().aggregate(start, updates, weights, server, clients)
        return {
            n: t + self.part * (state[n] - t) if t.is_floating_point() else state[n] for n, t in start.items()
        }, server


def network(num_classes: int, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))


def of_ones_own() -> Federation:
    data = load_dataset("digits").subset(120)
    torch.manual_seed(0)
    return Federation(data, iid(120, 4, generator(0, "partition")), network(10), Settings(0.5, lr=0.1), Halved(0.7))


def test_a_federation_of_ones_own_goes_on_where_it_stands():
    straight = of_ones_own().run(5)
    given = of_ones_own().run(2)
    bench = Workbench(given)
    assert bench.runs[0].round == 2 and bench.runs[0].federation is given and "Stale" not in bench.panel.shown.value
    bench.run(3, block=True)
    assert len(bench.runs) == 1 and bench.result.history == straight.history


def test_a_federation_of_ones_own_can_be_begun_anew_and_forked_with_other_settings():
    bench = Workbench(of_ones_own(), keep=False)
    bench.run(2, block=True)
    assert bench.result.history == of_ones_own().run(2).history
    assert bench.controls.option("method", "part").value == 0.7
    bench.fork(at=1, method="scaffold", lr=0.05)
    bench.run(1, block=True)
    assert bench.result.method.name == "SCAFFOLD" and "✓" in said(bench)
    bench.set(method="given", seed=3, lr=0.1)
    bench.run(1, block=True)
    assert bench.result.method == Halved(0.7) and len(bench.runs) == 3


def test_the_code_of_runs_of_ones_own_says_what_to_put_in_and_then_rebuilds_them():
    bench = Workbench(of_ones_own(), keep=False)
    bench.run(2, block=True)
    bench.set(partition="iid", clients=3)
    bench.controls.option("method", "part").value = 0.25
    bench.run(1, block=True)
    bench.fork(at=1, method="scaffold", lr=0.05)
    bench.run(1, block=True)
    bench.set(model="2nn", model_options={}, partition="given", clients=4, method="fedprox", method_options={"mu": 0.2})
    bench.run(1, block=True)
    assert len(bench.runs) == 4
    parts = of_ones_own()
    own = {"data": parts.dataset, "partition": parts.partition, "model": parts.model, "method": parts.method}
    for run, needed in zip(
        bench.runs, (own, own.keys() - {"partition"}, own.keys() - {"partition"}, {"data", "partition"}), strict=True
    ):
        text = export.code(run)
        asked = set(re.findall(r"^# own_(\w+) = \.\.\.", text, re.M))
        assert asked == set(needed) and "'given'" in text
        names = {f"own_{name}": own[name] for name in asked}
        exec(text, names)
        assert names["federation"].history == run.federation.history


def test_own_models_methods_and_data_are_in_the_menus_with_their_options():
    data = dataclasses.replace(load_dataset("digits").subset(150), name="mine")
    bench = Workbench(SMALL, models={"two layers": network}, methods={"halved": Halved}, data=data)
    assert {"two layers"} <= {name for _, name in bench.controls.model.options}
    bench.set(model="two layers", model_options={"width": 16}, method="halved", dataset="mine")
    assert "Ready" in said(bench) or "✗" not in said(bench)
    assert bench.controls.option("model", "width").value == 16
    field = bench.controls.option("method", "part")
    assert field.value == 0.5 and "of the averaged update" in field.tooltip
    field.value = 0.25
    bench.run(2, block=True)
    assert bench.result.method == Halved(0.25) and len(bench.result.dataset.x) == 150
    assert bench.result.model[1].out_features == 16
    expected = Federation(
        bench.result.dataset, bench.result.partition, bench.result.model, bench.result.settings, Halved(0.25)
    ).run(2)
    assert bench.result.history == expected.history


def test_a_folder_of_images_is_typed_in(tmp_path):
    bench = Workbench(SMALL, root=tmp_path)
    bench.controls.dataset.value = "folder:"
    bench._worker.join()
    assert bench.controls.path.layout.display == "" and "type the path" in said(bench)
    bench.controls.path.value = "nowhere"
    bench._worker.join()
    assert "nowhere" in said(bench) and "✗" in said(bench)
    for i in range(12):
        image = Image.fromarray(np.random.default_rng(i).integers(100 * (i % 2), 156 + 100 * (i % 2), (8, 8), "uint8"))
        (tmp_path / "photos" / ("dark", "light")[i % 2]).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "photos" / ("dark", "light")[i % 2] / f"{i}.png")
    bench.set(dataset_options={}, clients=2, partition="iid", norm="none")
    bench.controls.path.value = "photos"
    bench._worker.join()
    assert "Ready" in said(bench) and bench.experiment.dataset == "folder:photos"
    bench.run(2, block=True)
    assert bench.result.dataset.classes == ("dark", "light") and bench.result.round == 2
    outside = Experiment("folder:photos", partition="iid", clients=2, settings=bench.experiment.settings)
    assert bench.result.history == outside.build(root=tmp_path).run(2).history


def test_a_text_file_is_typed_in_and_takes_one_click(tmp_path):
    (tmp_path / "short.txt").write_text("a word")
    lines = (f"line {i} goes on and on, and never ends: {i * i}" for i in range(300))
    (tmp_path / "poem.txt").write_text("\n\n".join("\n".join(part) for part in zip(*[lines] * 10, strict=True)))
    bench = Workbench(SMALL, root=tmp_path, keep=False)
    for path, words in (
        ("", "type the path of a text file"),
        ("nowhere.txt", "nowhere.txt"),
        ("short.txt", "short.txt"),
    ):
        bench.controls.dataset.value, bench.controls.path.value = "text:", path
        bench._worker.join()
        assert words in said(bench) and "✗" in said(bench) and bench.panel.way_out.layout.display == "none"
    bench.controls.path.value = "poem.txt"
    bench._worker.join()
    assert bench.panel.way_out.description == "Use natural groups and the model lstm"
    bench.panel.way_out.click()
    assert "Ready" in said(bench) and bench.experiment.dataset == "text:poem.txt"
    bench.run(1, block=True)
    assert "✓" in said(bench) and bench.result.history == bench.experiment.build(root=tmp_path).run(1).history
    assert "text:poem.txt" in bench.panel.shown.value and "'text:poem.txt'" in export.code(bench.runs[0])


def test_a_cell_that_runs_again_replaces_its_panel(monkeypatch):
    where = ["cell", "first"]
    monkeypatch.setattr(alive, "_cell", lambda: tuple(where))
    one, two = Workbench(SMALL), Workbench(SMALL)
    one.run(1, block=True)
    assert one.view.comm is not None and one.runs
    where[1] = "second"
    three = Workbench(SMALL)
    assert one.view.comm is None and two.view.comm is None and one.runs == [] and three.view.comm is not None
    where[0] = "another cell"
    Workbench(SMALL)
    assert three.view.comm is not None


@pytest.mark.parametrize("show", [True, False])
def test_a_panel_that_is_shown_gives_signs_of_life(show, monkeypatch):
    monkeypatch.setattr(alive, "_heart", object())  # no thread
    bench = Workbench(SMALL)
    if show:
        bench._repr_mimebundle_()
    before = bench.panel.alive.value
    alive.beat(7)
    assert ("kernel is gone" in bench.panel.alive.value) == show and (bench.panel.alive.value != before) == show
    bench.close()
    alive.beat(8)
    assert "8" not in bench.panel.alive.value
