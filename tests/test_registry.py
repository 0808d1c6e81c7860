"""One table of names: built-in entries whatever was imported, and one's own of every kind, from a notebook cell."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from small import equal
from torch import Tensor, nn

from fedlab_core import register
from fedlab_core.data import load_dataset
from fedlab_core.data.dataset import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.local.work import Context
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.methods.named import METHODS, build_method
from fedlab_core.models.build import MODELS, build_model
from fedlab_core.partition import Partition
from fedlab_core.pretraining.named import OWN
from fedlab_core.pretraining.starts import Fractals
from fedlab_core.randomness import generator, torch_draws_from
from fedlab_core.registry import TABLES
from fedlab_core.settings import Settings
from fedlab_core.state import State

QUICK = Experiment(dataset_options={"examples": 120}, clients=4, settings=Settings(fraction=1.0, lr=0.1))


@pytest.fixture(autouse=True)
def tables_as_they_were() -> Iterator[None]:
    before = {kind: dict(table) for kind, table in TABLES.items()}
    yield
    for kind, table in TABLES.items():
        table.clear()
        table.update(before[kind])
    OWN.clear()


class Recurrent(nn.Module):
    """A GRU over the rows of an image, a bare parameter and a dropout: nothing that the package knows how to draw."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 8, rate: float = 0.0) -> None:
        super().__init__()
        self.rows = nn.GRU(input_shape[2], width, batch_first=True)
        self.shift = nn.Parameter(torch.randn(width))
        self.drop = nn.Dropout(rate)
        self.head = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.drop(self.rows(x.flatten(1, 2))[0][:, -1] + self.shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@dataclass(frozen=True)
class Clipped(FedAvg):
    """A method of one's own."""

    most: float = 0.1
    name = "clipped"

    def correct(self, context: Context, grads: State, weights: State) -> None:
        for grad in grads.values():
            grad.clamp_(-self.most, self.most)


def test_the_readmes_own_things_work_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Your own data, model and method")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    scope: dict[str, Any] = {"__name__": __name__}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    assert len(blocks) == 2 and scope["federation"].round == 5 and "my_net" in MODELS and "sign" in METHODS


@pytest.mark.parametrize("module", ["methods", "models.build", "data.load", "state"])
def test_what_is_on_the_menu_does_not_depend_on_what_was_imported(module: str) -> None:
    program = f"""
import json
import fedlab_core.{module}
from fedlab_core.methods.named import METHODS
from fedlab_core.data import dataset_names
print(json.dumps([sorted(METHODS), sorted(dataset_names())]))"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [sorted(METHODS), sorted(TABLES["data"])]
    assert {"fedtan", "union_sgd", "layer_wise"} < set(METHODS)


def test_a_model_of_ones_own_needs_no_further_line() -> None:
    register("model", "rows", Recurrent)
    experiment = QUICK.replace(model="rows", model_options={"width": 5, "rate": 0.25})
    again = Experiment.from_json(json.loads(json.dumps(experiment.to_json())))
    assert again == experiment and again.key == experiment.key
    run = experiment.build()
    assert run.state["shift"].shape == (5,) and run.run(2).history[-1].metrics["train_loss"] > 0


def test_its_weights_are_those_of_its_own_code_under_the_addressed_seed() -> None:
    register("model", "rows", Recurrent)
    before = torch.get_rng_state()
    one, two, other = (
        build_model("rows", (1, 8, 8), 10, generator(seed, "weights"), rate=0.5).state_dict() for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    with torch_draws_from(generator(0, "weights")):
        own = Recurrent((1, 8, 8), 10, rate=0.5).state_dict()
    assert equal(one, two) and equal(one, own) and not any(torch.equal(one[n], other[n]) for n in one)


def test_running_the_cell_again_replaces_the_entry() -> None:
    for width in (3, 4):

        @register("model", "net")
        def net(input_shape: tuple[int, ...], num_classes: int, width: int = width) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))

        assert MODELS["net"].options == {"width": width} and callable(net)
        assert QUICK.replace(model="net").build().state["1.weight"].shape == (width, 64)


def test_a_model_may_ask_for_nothing_and_a_wrong_option_is_named() -> None:
    register("model", "fixed", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    QUICK.replace(model="fixed").build()
    with pytest.raises(ValueError, match="width=3: fixed accepts no options"):
        QUICK.replace(model="fixed", model_options={"width": 3}).build()
    register("model", "broken", lambda: None)
    with pytest.raises(ValueError, match="model 'broken' made a NoneType, accepted: an nn.Module"):
        QUICK.replace(model="broken").build()


def test_a_method_of_ones_own_trains_by_name() -> None:
    register("method", "clipped", Clipped)
    experiment = QUICK.replace(method="clipped", method_options={"most": 0.01})
    assert build_method("clipped", most=0.01) == experiment.build().method == Clipped(0.01)
    assert not equal(experiment.build().run(1).state, QUICK.build().run(1).state)
    with pytest.raises(ValueError, match=r"'clipped' does not take \['mots'\], accepted: \['most'\]"):
        QUICK.replace(method="clipped", method_options={"mots": 1}).build()


def test_data_of_ones_own_are_a_function_or_a_data_set() -> None:
    digits = load_dataset("digits")

    @register("data", "few")
    def few(n: int = 50) -> Dataset:
        return digits.subset(n)

    assert len(load_dataset("few", n=40).x) == 40
    experiment = QUICK.replace(dataset="few", dataset_options={"n": 60, "examples": 30})
    assert len(experiment.load_data().x) == 30 and experiment.load_data() is experiment.load_data()
    register("data", "few", lambda n=0: digits.subset(70))
    assert len(QUICK.replace(dataset="few", dataset_options={}).load_data().x) == 70
    register("data", "few", digits)
    assert QUICK.replace(dataset="few", dataset_options={}).load_data() is digits
    register("data", "wrong", lambda: digits.x)
    with pytest.raises(ValueError, match="data 'wrong' made a Tensor, accepted: a Dataset"):
        load_dataset("wrong")


def test_a_partition_of_ones_own() -> None:
    @register("partition", "halves")
    def halves(data: Dataset, clients: int, draws: torch.Generator, share: float = 0.5) -> Partition:
        cut = int(share * len(data.x))
        return Partition(torch.arange(len(data.x)), torch.tensor([0, cut, len(data.x)]), "halves")

    run = QUICK.replace(partition="halves", partition_options={"share": 0.25}).build()
    assert run.partition.sizes.tolist() == [30, 90]
    with pytest.raises(ValueError, match=r"\['shares'\] do not fit 'halves', accepted: \['share', 'feature_skew'"):
        QUICK.replace(partition="halves", partition_options={"shares": 0.25}).build()


def test_a_start_of_ones_own_is_a_state_or_a_function() -> None:
    experiment = QUICK.replace(model="mlp", model_options={"hidden": [8]}, start="mine")
    known = QUICK.replace(model="mlp", model_options={"hidden": [8]}, seed=5).build().state
    register("start", "mine", known)
    run, random = experiment.build(), experiment.replace(start="random").build()
    for name, tensor in run.state.items():
        assert torch.equal(tensor, (random.state if name.startswith("head.") else known)[name])
    seen: dict[str, Any] = {}

    @register("start", "mine")
    def mine(model: nn.Module, data: Dataset, seed: int) -> State:
        """Ones everywhere."""
        seen.update(data=data, seed=seed)
        return {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}

    run = experiment.build()
    assert all((tensor == 1).all() == (not name.startswith("head.")) for name, tensor in run.state.items())
    assert seen == {"data": experiment.load_data(), "seed": 0} and TABLES["start"]["mine"] == "Ones everywhere"
    register("start", "mine", lambda: [1])
    with pytest.raises(ValueError, match="start 'mine' made a list"):
        experiment.build()


def test_starts_of_registered_models_are_not_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path))
    register("model", "rows", Recurrent)
    steps = (Fractals("labels", codes=4, images=64, epochs=1),)
    first = QUICK.replace(model="rows", model_options={"width": 4}).make_start(steps)
    assert first.state and not list(tmp_path.rglob("*.safetensors"))


def test_a_tuning_of_ones_own() -> None:
    @register("tuning", "shift only")
    def shift_only(model: nn.Module, draws: torch.Generator) -> nn.Module:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name == "shift")
        return model

    register("model", "rows", Recurrent)
    run = QUICK.replace(model="rows", tuning="shift only").build()
    before = run.state
    after = run.run(1).state
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["shift"]


@pytest.mark.parametrize(
    ("kind", "name", "entry", "message"),
    [
        ("network", "x", nn.Linear, "kind='network', accepted: .*'model'"),
        ("model", "cnn", Recurrent, "name='cnn' is a built-in model"),
        ("model", "", Recurrent, "name='', accepted: a text"),
        ("model", "x", 3, "model=3, accepted: a class derived from nn.Module"),
        ("model", "x", nn.Linear, "parameter 'in_features' of Linear has no default"),
        ("method", "x", Recurrent, "method 'x' is .*Recurrent.*, accepted: a dataclass derived from FedAvg"),
        ("data", "x", 3, "data 'x' is a int, accepted: a Dataset"),
        ("partition", "x", 3, "partition 'x' is a int"),
        ("start", "x", {"w": 1}, "start 'x' is a dict, accepted: tensors by name"),
        ("tuning", "x", 3, "tuning 'x' is a int"),
    ],
)
def test_what_cannot_be_registered_says_why(kind: str, name: str, entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register(kind, name, entry)
