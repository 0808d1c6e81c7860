"""ImageNet weights of torchvision's residual networks, made to fit small and grey images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.check import Size, checked, choice
from fedlab_core.data import data_root
from fedlab_core.models.layers import initialise
from fedlab_core.state import State

ARCHITECTURES = ("resnet18", "resnet34", "resnet50")
SMALL = 64  # pixels: smaller images get a 3 x 3 stem with stride 1 and no pooling


class _Features(nn.Module):
    """A torchvision network whose classifier is called `head` and whose features can be asked for."""

    def __init__(self, inner: Any, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = input_shape
        if (channels, min(height, width) < SMALL) != (3, False):
            kernel, stride, padding = (3, 1, 1) if min(height, width) < SMALL else (7, 2, 3)
            inner.conv1 = nn.Conv2d(channels, inner.conv1.out_channels, kernel, stride, padding, bias=False)
        if min(height, width) < SMALL:
            inner.maxpool = nn.Identity()
        self.head = nn.Linear(inner.fc.in_features, num_classes)
        inner.fc = nn.Identity()
        self.body = inner

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@checked
def torchvision_resnet(name: str, input_shape: tuple[int, ...], num_classes: Size, draws: torch.Generator) -> nn.Module:
    """A torchvision ResNet for any image size and number of channels, drawn from the generator, with batch norm.

    Raises:
        ValueError: another architecture.
    """
    choice("name", name, ARCHITECTURES)
    import torchvision  # here and below: it takes a second, and most runs need none of it

    with torch.device("meta"):
        inner = getattr(torchvision.models, name)(weights=None)
        model = _Features(inner, num_classes, input_shape)
    model.to_empty(device="cpu")
    initialise(model, draws, weights="kaiming")
    return model


@checked
def imagenet_weights(name: str = "resnet18", *, file: str | Path | None = None) -> State:
    """torchvision's weights by the names of its own state dict.

    Args:
        name: the architecture.
        file: a `.safetensors` or `.pth` file that holds them (nothing in it is run); without it they are looked for as
            `NAME.safetensors` and `NAME.pth` in the data root, and then downloaded.

    Raises:
        ValueError: another architecture, or a file that is no such state dict.
        FileNotFoundError: no file, and no network to get one from.
    """
    choice("name", name, ARCHITECTURES)
    candidates = [Path(file)] if file else [data_root() / f"{name}{end}" for end in (".safetensors", ".pth")]
    found = next((path for path in candidates if path.is_file()), None)
    if found is not None:
        return read_state(found)
    if file is not None:
        raise FileNotFoundError(f"{file} is not there")
    import torchvision

    address = torchvision.models.get_model_weights(name).DEFAULT.url
    return downloaded(address, candidates[1])


@checked
def downloaded(address: str, place: Path, fetch: Callable[[str], State] | None = None) -> State:
    """The weights at an address of torchvision's.

    Args:
        place: where the file is looked for before it is downloaded.
        fetch: downloads them, given the address; torch.hub's by default.

    Raises:
        FileNotFoundError: there is no network to get them from.
    """
    fetch = fetch or (lambda url: torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True))
    try:
        return fetch(address)
    except OSError as error:
        raise FileNotFoundError(f"{address} could not be downloaded ({error}). Put its file at {place}") from error


@checked
def read_state(file: Path) -> State:
    """The state dict in a `.safetensors` or `.pth` file; nothing in it is run.

    Raises:
        ValueError: it holds no such thing.
    """
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load(file.read_bytes())  # mapped, a file that is cut off would end the process
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise ValueError(f"{file} holds no weights that can be read ({type(error).__name__}: {error})") from error
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise ValueError(f"{file} holds {type(loaded).__name__}, accepted: a state dict")
    return loaded


@checked
def fit_imagenet(weights: State, model: nn.Module) -> State:
    """ImageNet weights as a start for a `torchvision_resnet`: the classifier is left out, the stem made to fit.

    A 3 x 3 stem gets the 7 x 7 kernels averaged over areas and scaled so that a constant image gives the same values;
    fewer channels get the sum over the colours, shared out equally.

    Raises:
        ValueError: a tensor that the model lacks or has in another shape.
    """
    own, result = model.state_dict(), {}
    for name, tensor in weights.items():
        if name.startswith("fc."):
            continue
        key = f"body.{name}"
        if key not in own:
            raise ValueError(f"the weights have {name!r}, which the model lacks")
        if name == "conv1.weight":
            tensor = resized_stem(tensor.float(), own[key].shape)
        if tensor.shape != own[key].shape:
            raise ValueError(f"{name!r} has shape {tuple(tensor.shape)}, the model's is {tuple(own[key].shape)}")
        result[key] = tensor
    if missing := {key for key in own if key.startswith("body.")} - result.keys():
        raise ValueError(f"the weights lack {sorted(missing)[0].removeprefix('body.')!r} and {len(missing) - 1} more")
    return result


@checked
def resized_stem(kernel: Tensor, shape: torch.Size) -> Tensor:
    """(out, channels, k, k) -> shape, with the sum over channels and positions kept."""
    if kernel.shape[1] != shape[1]:
        kernel = kernel.sum(1, keepdim=True).expand(-1, shape[1], -1, -1) / shape[1]
    if kernel.shape[2:] != shape[2:]:
        small = F.adaptive_avg_pool2d(kernel, (shape[2], shape[3]))
        total = small.sum((2, 3), keepdim=True)
        wanted = kernel.sum((2, 3), keepdim=True)
        kernel = small + (wanted - total) / (shape[2] * shape[3])
    return kernel
