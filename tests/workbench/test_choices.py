"""Every choice of the menus trains exactly as the experiment does, or is refused with a way out that works."""

import dataclasses
import itertools
import random

import pytest

from fedlab_core.data import load_dataset
from fedlab_core.experiment import Experiment
from fedlab_core.models.build import MODELS as architectures
from fedlab_core.registry import register
from fedlab_core.settings import Settings
from fedlab_core.workbench.catalog import Catalog
from fedlab_core.workbench.controls import Controls
from fedlab_core.workbench.fits import Trials
from fedlab_core.workbench.labels import PARTITION_LABELS

WHOLE = {
    "digits": load_dataset("digits"),
    "letters": load_dataset("letters", size=12, per_class=2, test_per_class=1),
    "scenes": load_dataset("scenes", per_class=3, test_per_class=1),
    "python docs": load_dataset("python_docs"),
}
TINY = [f"tiny {name}" for name in WHOLE]
BASE = Experiment(
    dataset="tiny digits",
    clients=2,
    settings=Settings(fraction=0.0, steps=1, epochs=None, batch_size=8, engine="loop"),
)
MODELS = [name for _, name in Catalog().model_labels]
METHODS = [name for _, name in Catalog().method_labels]
LARGE = ("resnet20", "efficientnet_lite0")
SOME = ("fedavg", "scaffold", "layer_wise")  # of the methods, beside digits


@pytest.fixture(autouse=True)
def tiny_data() -> None:
    for name, whole in WHOLE.items():
        register("data", f"tiny {name}", dataclasses.replace(whole.subset(32, 12), name=f"tiny {name}"))


def methods_for(data: str, model: str) -> tuple[str, ...] | list[str]:
    if model in LARGE:
        return SOME if data == "tiny digits" else SOME[:1]
    return METHODS if data == "tiny digits" else SOME


def look(controls: Controls, trials: Trials, wanted: Experiment, chosen: str) -> None:
    experiment = controls.experiment
    assert experiment == wanted
    try:
        trials.check(experiment)
    except Exception as error:
        assert str(error), experiment
        (way,) = trials.ways_out(experiment, chosen)
        assert way.words.startswith("Use ") and len(way.words) < 90
        controls.move(**way.changes)
        trials.check(controls.experiment)
        return
    mine, plain = controls.catalog.build(experiment), wanted.build()
    assert mine.run(1).history == plain.run(1).history, experiment


@pytest.mark.parametrize(("model", "norm"), [(model, norm) for model in MODELS for norm in Catalog().norms(model)])
@pytest.mark.parametrize("data", TINY)
def test_methods_models_norms_and_data(data, model, norm):
    base = BASE.replace(dataset=data)
    controls = Controls(base, lambda: None)
    trials = Trials(controls.catalog)
    for method in methods_for(data, model):
        controls.load(base)
        controls.model.value, controls.norm.value, controls.method.value = model, norm, method
        look(controls, trials, base.replace(model=model, norm=norm, method=method), "method")


def fitting(data: str) -> list[tuple[str, str]]:
    """Models with their norms that read such data, without those that take seconds to build."""
    kind = WHOLE[data.removeprefix("tiny ")].kind
    models = [name for name in MODELS if architectures[name].kind in (kind, "any") and name not in LARGE]
    return [(model, norm) for model in models for norm in Catalog().norms(model)]


@pytest.mark.parametrize("data", TINY)
def test_every_method_on_every_data_with_models_drawn_by_seed(data):
    choices = fitting(data)
    random.Random(data).shuffle(choices)
    base = BASE.replace(dataset=data, partition="natural" if "docs" in data else "iid")
    controls = Controls(base, lambda: None)
    trials, length = Trials(controls.catalog), max(len(choices), len(METHODS))
    walked = zip(range(length), itertools.cycle(METHODS), itertools.cycle(choices), strict=False)
    seen = []
    for _, method, (model, norm) in walked:
        controls.load(base)
        controls.model.value, controls.norm.value, controls.method.value = model, norm, method
        look(controls, trials, base.replace(model=model, norm=norm, method=method), "method")
        seen.append((method, model, norm))
    assert {method for method, _, _ in seen} == set(METHODS) and {(m, n) for _, m, n in seen} == set(choices)


@pytest.mark.parametrize("policy", ["average", "local_statistics", "local", "frozen", "total_variance"])
@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_policies(policy, method):
    base = BASE.replace(model="mlp", norm="batch", batch_norm="average")
    controls = Controls(base, lambda: None)
    controls.method.value, controls.batch_norm.value = method, policy
    look(controls, Trials(controls.catalog), base.replace(method=method, batch_norm=policy), "batch_norm")


@pytest.mark.parametrize("partition", [name for name in PARTITION_LABELS if name != "given"])
@pytest.mark.parametrize("data", TINY)
def test_partitions(partition, data):
    base = BASE.replace(dataset=data, model="lstm" if "docs" in data else "2nn")
    controls = Controls(base, lambda: None)
    controls.partition.value = partition
    wanted = base.replace(partition=partition)
    look(controls, Trials(controls.catalog), wanted, "partition")


def test_what_the_reader_chose_last_is_left_alone_if_possible():
    controls = Controls(BASE, lambda: None)
    trials = Trials(controls.catalog)
    text = BASE.replace(dataset="tiny python docs", partition="dirichlet")
    (way,) = trials.ways_out(text, "dataset")
    assert way.changes["model"] == "lstm" and way.changes["partition"] == "natural" and "dataset" not in way.changes
    assert way.words == "Use natural groups and the model lstm"
    (way,) = trials.ways_out(BASE.replace(model="lstm"), "model")
    assert way.words == "Use the data python_docs"


def test_methods_with_layers_of_their_own_bring_them_along():
    trials = Trials(Catalog())
    (way,) = trials.ways_out(BASE.replace(method="flora", fraction=0.5), "method")
    assert way.changes["tuning_options"] == {"delta": True} and way.changes["fraction"] == 1.0
    assert way.words == "Use low-rank updates, the model vit and every client in every round"
    tuned = BASE.replace(method="flora", fraction=0.5, model="vit", tuning="lora", tuning_options={"delta": True})
    (way,) = trials.ways_out(tuned, "method")
    assert way.changes == {"fraction": 1.0}
    (way,) = trials.ways_out(BASE.replace(method="hbn"), "method")
    assert way.changes == {"model": "mlp", "model_options": {}, "norm": "batch", "batch_norm": "average"}


def test_options_of_tuning_are_fields_of_a_vit():
    controls = Controls(BASE.replace(model="vit", tuning="lora", tuning_options={"rank": 2}), lambda: None)
    assert controls.option("tuning", "rank").value == 2 and "FFA-LoRA" in controls.option("tuning", "freeze_a").tooltip
    controls.option("tuning", "freeze_a").value = True
    assert controls.experiment.tuning_options == {"rank": 2, "freeze_a": True}
    controls.tuning.value = "adapter"
    assert controls.experiment.tuning_options == {}
    controls.model.value = "2nn"
    assert controls.experiment.tuning == "full" and controls.experiment.tuning_options == {}
