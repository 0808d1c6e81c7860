"""Networks that the package has never seen, from torchvision, timm and transformers, on every engine alike."""

from collections.abc import Callable

import pytest
import torch
from small import equal
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

from fedlab_core.data import Dataset
from fedlab_core.federation import Federation
from fedlab_core.partition import Partition
from fedlab_core.settings import Settings


def photos(side: int = 32, n: int = 12) -> Dataset:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n + 4, 3, side, side), generator=g).to(torch.uint8)
    y = torch.arange(n + 4) % 3
    return Dataset("photos", "image", x[:n], y[:n], x[n:], y[n:], ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)


def timm_classifier() -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model("mobilevit_xxs", num_classes=3, drop_rate=0.2, drop_path_rate=0.1)


def transformers_classifier() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=3, hidden_dropout_prob=0.1)
    return transformers.ViTForImageClassification(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: resnet18(num_classes=3),
    "mobilenet_v3": lambda: mobilenet_v3_small(num_classes=3),
    "timm": timm_classifier,
    "transformers": transformers_classifier,
}


def run(model: nn.Module, engine: str, data: Dataset) -> Federation:
    batch_norm = "average" if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()) else None
    partition = Partition(torch.arange(12), torch.tensor([0, 4, 12]), "blocks")
    settings = Settings(1.0, batch_size=4, lr=0.01, batch_norm=batch_norm, engine=engine)
    return Federation(data, partition, model, settings).run(1)


@pytest.mark.parametrize("name", MODELS)
def test_a_stranger_trains_on_every_engine_alike_and_comes_back_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    model, data = MODELS[name](), photos()
    loop = run(model, "loop", data)
    for engine in ("threads", "auto"):
        other = run(model, engine, data)
        assert equal(other.state, loop.state) and other.history == loop.history
    assert "threads" in other.history[1].engine
    trained = loop.trained_model()
    assert type(trained) is type(model) and all(tensor.isfinite().all() for tensor in loop.state.values())
    answer = trained(data.prepare(data.test_x))
    logits = getattr(answer, "logits", answer)
    accuracy = (logits.argmax(1) == data.test_y).double().mean().item()
    assert accuracy == pytest.approx(loop.history[1].metrics["test_accuracy"])


def test_the_trained_model_leaves_as_onnx(tmp_path) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    data = photos()
    model = run(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 3)), "loop", data
    ).trained_model()
    x = data.prepare(data.test_x)
    file = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), str(file), input_names=["x"])
    (found,) = onnxruntime.InferenceSession(str(file)).run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(found), model(x), atol=1e-4)
