"""Every choice of the menus trains exactly as the experiment does, or is refused with a way out that works."""

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from small import equal

from fedlab_core.data import load_dataset
from fedlab_core.experiment import Experiment
from fedlab_core.finetuning.tuning import TUNINGS
from fedlab_core.glossary import define
from fedlab_core.models.build import MODELS as architectures
from fedlab_core.pretraining import named
from fedlab_core.pretraining.named import STARTS, recipe
from fedlab_core.registry import METHODS as METHODS_BY_NAME
from fedlab_core.registry import register
from fedlab_core.settings import Settings
from fedlab_core.workbench.bench import Workbench
from fedlab_core.workbench.catalog import Catalog
from fedlab_core.workbench.controls import Controls
from fedlab_core.workbench.display import Display
from fedlab_core.workbench.fields import dropdown
from fedlab_core.workbench.fits import Trials
from fedlab_core.workbench.labels import PARTITION_LABELS
from fedlab_core.workbench.options import options_of
from tests.workbench.panels import said

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
PLAIN = {name: getattr(BASE, name) for name in ("norm", "tuning", "tuning_options", "model_options", "partition")}
PLAIN |= {"model": "mlp", "method_options": {}, "fraction": BASE.settings.fraction, "batch_norm": None}
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
        experiment = wanted = controls.experiment
        trials.check(experiment)
    mine, plain = controls.catalog.build(experiment), wanted.build()
    assert mine.run(1).history == plain.run(1).history, experiment


def pressed(bench: Workbench, elsewhere: Path | None = None, **choices: Any) -> None:
    """Chooses, takes the way out where one is offered, presses Run, and compares with the experiment."""
    bench.set(**choices)
    if bench.panel.way_out.layout.display != "none":
        bench.panel.way_out.click()
    bench.run(1, block=True)
    outside = bench.experiment.build(root=elsewhere).run(1)
    assert "✓" in said(bench) and bench.result.round == 1, choices
    assert bench.result.history == outside.history and equal(bench.result.state, outside.state), choices
    bench.reset()


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


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Pictures take longer than the training here."""
    for name in ("draw", "draft"):
        monkeypatch.setattr(Display, name, lambda *_, **__: None)


def test_every_method_in_a_panel(undrawn):
    bench = Workbench(BASE.replace(model="mlp", evaluate_clients=True), keep=False)
    for method in METHODS:
        pressed(bench, **(PLAIN | {"method": method}))
        assert (bench.experiment.method == method) is (method != "layer_wise"), "it climbs blocks, and here are none"


def small_steps(name: str, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The steps of a start, with a few images, rendered ones if any, and one pass each."""
    few = {"images": 24, "epochs": 1, "rounds": 1, "dataset": "letters"}
    few["options"] = {"size": shape[1], "per_class": 2, "test_per_class": 1}
    return tuple(
        dataclasses.replace(step, **{n: v for n, v in few.items() if hasattr(step, n)}) for step in recipe(name, shape)
    )


@pytest.mark.parametrize("start", [name for name in STARTS if name not in ("imagenet", *named.SHIPPED)])
def test_every_start_in_a_panel(start, undrawn, monkeypatch, tmp_path):
    """Learnt once by the panel and once more by the experiment. Weights that are read are for one network each."""
    monkeypatch.setattr(named, "recipe", small_steps)
    bench = Workbench(BASE.replace(dataset="tiny digits", model="mlp"), keep=False, root=tmp_path / "one")
    pressed(bench, tmp_path / "two", start=start)
    assert bench.experiment.start == start


@pytest.mark.parametrize(
    ("start", "model"), [("imagenet", "efficientnet_lite0"), *((name, "vit") for name in named.SHIPPED)]
)
def test_weights_that_are_read_in_a_panel(start, model, undrawn):
    fitting = {"norm": "batch", "batch_norm": "average"} if start == "imagenet" else {"model_options": {"patch": 8}}
    bench = Workbench(BASE.replace(dataset="tiny scenes", model=model, **fitting), keep=False)
    pressed(bench, start=start)
    assert bench.experiment.start == start and bench.experiment.model == model


@pytest.mark.parametrize("tuning", [name for name, way in TUNINGS.items() if not way.of_clip])
def test_every_tuning(tuning):
    base = BASE.replace(model="vit")
    controls = Controls(base, lambda: None)
    controls.tuning.value = tuning
    look(controls, Trials(controls.catalog), base.replace(tuning=tuning), "tuning")


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


def test_batches_of_one_example_are_judged_anew_when_batches_change() -> None:
    trials, uneven = Trials(Catalog()), Experiment(partition="dirichlet", clients=20, model="mlp", norm="batch")
    uneven = uneven.replace(batch_size=10, batch_norm="average")
    with pytest.raises(ValueError, match="batch_size=10: .* would train on a batch of one example"):
        trials.check(uneven)
    trials.check(uneven.replace(batch_size=32))
    with pytest.raises(ValueError, match="batch_size=20"):
        trials.check(uneven.replace(batch_size=20))
    (way,) = trials.ways_out(uneven.replace(batch_norm=None), "norm")
    assert way.words == "Use batch-norm policy average and full batches only"
    trials.check(uneven.replace(**way.changes))


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
    assert way.words == "Use the model mlp, the norm batch and batch-norm policy average"


@pytest.mark.parametrize(
    ("method", "option", "words"),
    [
        ("fedavgm", "beta", "momentum; 0 with server_lr 1 is FedAvg. Accepted: a number in [0, 1)."),
        ("hbn", "step", "Accepted: a number >= 0 and <= 1."),
        ("layer_wise", "drop", "probability of leaving out each unit below the stage's new ones"),
        ("fedtan", "gradients", "exchange 3, the gradients with respect to mean and variance"),
        ("fedtan", "around_global_mean", "; off takes them around each client's own mean"),
        ("layer_wise", "objective", '"byol", squared distance to a moving average of the network'),
    ],
)
def test_a_hover_says_what_an_option_means_and_which_numbers_it_takes(method: str, option: str, words: str) -> None:
    controls = Controls(BASE.replace(method=method), lambda: None)
    assert words in controls.option("method", option).tooltip


def test_no_option_is_explained_by_names_of_code_or_not_at_all() -> None:
    catalog = Catalog()
    options = [*options_of(Settings), *(o for name in METHODS_BY_NAME for o in catalog.method_options(name))]
    options += [o for name in architectures if architectures[name].built_in for o in catalog.model_options(name)]
    options += [o for name in TUNINGS for o in catalog.tuning_options(name)]
    options += [o for name in PARTITION_LABELS for o in catalog.partition_options(name)]
    for option in options:
        assert option.words and "`" not in option.words and "False" not in option.words, option


def test_the_menu_of_methods_says_what_each_of_them_does() -> None:
    for _, name in Catalog().method_labels:
        assert len(Controls(BASE.replace(method=name), lambda: None).method.tooltip) > 30, name


def test_what_is_on_or_off_has_a_tooltip_and_a_tick() -> None:
    field = Controls(BASE, lambda: None).band
    for on in (True, False):
        field.value = on
        assert (field.icon, field.tooltip) == ("check" if on else "", define("client spread"))


def test_a_label_carries_its_tooltip_where_ipywidgets_hides_it() -> None:
    field = dropdown("Rule", ["a"], "a server's <rule>")
    label = "<span title='a server&#x27;s &lt;rule&gt;'>Rule</span>"
    assert field.description == "Rule" and field.get_state("description")["description"] == label
    field.tooltip = "b"
    assert field.get_state("description")["description"] == "<span title='b'>Rule</span>"


def test_options_of_tuning_are_fields_of_a_vit():
    controls = Controls(BASE.replace(model="vit", tuning="lora", tuning_options={"rank": 2}), lambda: None)
    assert controls.option("tuning", "rank").value == 2 and "FFA-LoRA" in controls.option("tuning", "freeze_a").tooltip
    controls.option("tuning", "freeze_a").value = True
    assert controls.experiment.tuning_options == {"rank": 2, "freeze_a": True}
    controls.tuning.value = "adapter"
    assert controls.experiment.tuning_options == {}
    controls.model.value = "2nn"
    assert controls.experiment.tuning == "full" and controls.experiment.tuning_options == {}


def test_fedtan_without_batch_norm_says_that_it_trains_as_fedavg_does_and_does():
    bench = Workbench(BASE.replace(model="mlp", epochs=2), keep=False)
    ends = []
    for method in ("fedavg", "fedtan"):
        bench.set(method=method)
        assert ("trains as FedAvg does" in bench.panel.status.value) is (method == "fedtan")
        bench.run(2, block=True)
        ends.append(bench.result.state)
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-6) for name in ends[0])
    bench.set(method="fedavg")
    assert "Ready." in bench.panel.status.value and "FedTAN" not in bench.panel.status.value


def test_the_menu_says_which_method_needs_a_model_of_ones_own():
    labels = {name: label for label, name in Workbench(BASE, keep=False).controls.method.options}
    assert [name for name, label in labels.items() if "needs" in label] == ["layer_wise"]
