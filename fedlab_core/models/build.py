"""`build_model`: a network by name, its weights drawn from the caller's generator."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from fedlab_core.models.convnets import CNN, MLP, SmallCNN
from fedlab_core.models.layers import NORMS, initialise
from fedlab_core.models.lstm import CharLSTM
from fedlab_core.models.resnet import ResNet
from fedlab_core.models.vit import ViT


class ModelInfo(NamedTuple):
    """What a model accepts, for menus and checks.

    Attributes:
        kind: the kind of data set it reads, as in `Dataset.kind`.
        norms: accepted values of `norm`.
        make: its class, with fixed arguments filled in.
    """

    kind: Literal["image", "text"]
    norms: tuple[str, ...]
    make: Callable[..., nn.Module]

    @property
    def options(self) -> dict[str, Any]:
        """Further keyword arguments of `build_model` for this model, with their defaults."""
        fixed = {"input_shape", "num_classes", "norm", *getattr(self.make, "keywords", {})}
        found = {k: p.default for k, p in inspect.signature(self.make).parameters.items() if k not in fixed}
        return found | ({"gamma_init": "ones"} if getattr(self.make, "func", None) is ResNet else {})


MODELS: dict[str, ModelInfo] = {
    "2nn": ModelInfo("image", ("none",), partial(MLP, hidden=(200, 200), groups=2)),
    "cnn": ModelInfo("image", ("none",), CNN),
    "mlp": ModelInfo("image", NORMS, MLP),
    "small_cnn": ModelInfo("image", NORMS, SmallCNN),
    "resnet8": ModelInfo("image", NORMS, partial(ResNet, blocks=1)),
    "resnet20": ModelInfo("image", NORMS, partial(ResNet, blocks=3)),
    "lstm": ModelInfo("text", ("none",), CharLSTM),
    "vit": ModelInfo("image", ("none",), ViT),  # its LayerNorms are part of it
}


def build_model(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    generator: torch.Generator,
    *,
    norm: str = "none",
    **options: Any,
) -> nn.Module:
    """A freshly initialised network on the CPU, float32, in train mode.

    Equal arguments and equal generators give equal weights. Global random state is neither read nor changed: the model
    is laid out on the meta device, then every module is initialised from `generator` (see `initialise`).

    Args:
        name: a key of `MODELS`: "2nn", "cnn" (both McMahan et al. 2017), "mlp", "small_cnn", "resnet8", "resnet20",
            "lstm" or "vit".
        input_shape: (channels, height, width) of an image, (T,) of a text.
        num_classes: number of logits; for text the size of the vocabulary.
        generator: source of every draw.
        norm: "batch", "group" (2 groups, option `groups`), "layer", "weight" (weight standardisation) or "none", where
            the model takes one (`MODELS[name].norms`).
        options: further arguments of the model (`MODELS[name].options` lists them with their defaults), such as
            hidden=(64, 64), channels=(8, 16, 16), gamma_init="uniform" or patch=4.

    Raises:
        ValueError: unknown name, norm or option; a shape or an option that does not fit the model.
    """
    if name not in MODELS:
        raise ValueError(f"name={name!r}: expected one of {', '.join(MODELS)}")
    info = MODELS[name]
    if norm not in info.norms:
        raise ValueError(f"norm={norm!r}: {name} accepts {', '.join(map(repr, info.norms))}")
    if unknown := options.keys() - info.options.keys():
        accepted = ", ".join(info.options) or "no options"
        raise ValueError(f"{sorted(unknown)[0]}={options[sorted(unknown)[0]]!r}: {name} accepts {accepted}")
    dimensions = {"image": ("(channels, height, width)", 3), "text": ("(T,)", 1)}[info.kind]
    if len(input_shape) != dimensions[1] or min(input_shape) < 1:
        raise ValueError(f"input_shape={tuple(input_shape)}: {name} expects {dimensions[0]}, all positive")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: expected 1 or more")
    _check_options(options)
    gamma = options.pop("gamma_init", "ones")
    if gamma == "uniform" and norm in ("none", "weight"):
        raise ValueError(f"gamma_init='uniform': norm={norm!r} has no gains; expected norm batch, group or layer")
    if len(info.norms) > 1 or name == "2nn":
        options["norm"] = norm
    with torch.device("meta"):
        model = info.make(tuple(input_shape), num_classes, **options)
    model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype))  # to_empty would import sympy: 60 MiB and a second
    initialise(model, generator, weights="kaiming" if isinstance(model, ResNet) else "uniform", gamma=gamma)
    return model


def parameter_count(model: nn.Module) -> int:
    """Number of parameters (learnt numbers; running statistics are buffers and do not count)."""
    return sum(p.numel() for p in model.parameters())


def _check_options(options: dict[str, Any]) -> None:
    for key, value in options.items():
        if key == "gamma_init":
            if value not in ("ones", "uniform"):
                raise ValueError(f"gamma_init={value!r}: expected 'ones' or 'uniform'")
        elif key == "fused":
            if not isinstance(value, bool):
                raise ValueError(f"fused={value!r}: expected True or False")
        elif key in ("hidden", "channels") and isinstance(value, list | tuple):
            if not all(isinstance(v, int) and v > 0 for v in value) or (key == "channels" and not value):
                raise ValueError(f"{key}={value!r}: expected positive integers")
        elif not isinstance(value, int) or value < 1:
            raise ValueError(f"{key}={value!r}: expected a positive integer")
