"""`build_model`: a network by name, its weights drawn from the caller's generator."""

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from fedlab_core.check import Size, checked, choice
from fedlab_core.memory import fits
from fedlab_core.models.convnets import CNN, MLP, SmallCNN
from fedlab_core.models.layers import NORMS, initialise
from fedlab_core.models.lstm import CharLSTM
from fedlab_core.models.resnet import ResNet
from fedlab_core.models.vit import ViT
from fedlab_core.models.weights.efficientnet_lite import EfficientNetLite0
from fedlab_core.randomness import torch_draws_from

GIVEN = ("input_shape", "num_classes", "norm")  # what `build_model` passes on to a model that asks for it


@checked
@dataclass(frozen=True)
class ModelInfo:
    """What a model accepts, for menus and checks.

    Attributes:
        kind: the kind of data set it reads, as in `Dataset.kind`; "any" for a model of one's own.
        norms: accepted values of `norm`.
        make: its class, with fixed arguments filled in.
        built_in: whether `initialise` draws its weights; otherwise its own code does.
        needs: an optional package that it is made of.
    """

    kind: str
    norms: tuple[str, ...]
    make: Callable[..., nn.Module]
    built_in: bool = True
    needs: str | None = None

    @property
    def installed(self) -> bool:
        """Whether the optional package is there, so that a menu may offer the model."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None

    @property
    def options(self) -> dict[str, Any]:
        """Further keyword arguments of `build_model` for this model, with their defaults."""
        fixed = {*GIVEN, *getattr(self.make, "keywords", {})}
        found = {k: p.default for k, p in _parameters(self.make).items() if k not in fixed and p.kind not in _VARIADIC}
        return found | ({"gamma_init": "ones"} if getattr(self.make, "func", None) is ResNet else {})

    @property
    def takes_anything(self) -> bool:
        """Whether the model has a `**options`, so that no option can be called unknown."""
        return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in _parameters(self.make).values())


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _parameters(make: Callable[..., nn.Module]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(make).parameters


def own_model(make: Callable[..., nn.Module]) -> ModelInfo:
    """A class or function of one's own as an entry of `MODELS`.

    Args:
        make: returns an `nn.Module`. Of `input_shape`, `num_classes` and `norm` it gets those that its signature names;
            its other parameters are the model's options and need defaults.

    Raises:
        ValueError: it cannot be called, or a parameter has neither a known name nor a default.
    """
    if not callable(make):
        raise ValueError(f"model={make!r}, accepted: a class derived from nn.Module, or a function that returns one")
    for name, parameter in _parameters(make).items():
        if parameter.kind in _VARIADIC or name in GIVEN:
            continue
        if parameter.default is inspect.Parameter.empty or parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise ValueError(
                f"parameter {name!r} of {getattr(make, '__name__', make)} has no default, accepted without one: "
                f"{', '.join(GIVEN)}; wrap it in a function of these"
            )
    norms = NORMS if "norm" in _parameters(make) else ("none",)
    return ModelInfo("any", norms, make, built_in=False)


MODELS: dict[str, ModelInfo] = {
    "2nn": ModelInfo("image", ("none",), partial(MLP, hidden=(200, 200), groups=2)),
    "cnn": ModelInfo("image", ("none",), CNN),
    "mlp": ModelInfo("image", NORMS, MLP),
    "small_cnn": ModelInfo("image", NORMS, SmallCNN),
    "resnet8": ModelInfo("image", NORMS, partial(ResNet, blocks=1)),
    "resnet20": ModelInfo("image", NORMS, partial(ResNet, blocks=3)),
    "lstm": ModelInfo("text", ("none",), CharLSTM),
    "vit": ModelInfo("image", ("none",), ViT),  # its LayerNorms are part of it
    "efficientnet_lite0": ModelInfo("image", ("batch", "group"), EfficientNetLite0, built_in=False, needs="timm"),
}


@checked
def build_model(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: Size,
    generator: torch.Generator,
    *,
    norm: str = "none",
    **options: Any,
) -> nn.Module:
    """A freshly initialised network on the CPU, float32, in train mode.

    Equal arguments and equal generators give equal weights. Global random state is neither read nor changed: a built-in
    model is laid out on the meta device, then every module is initialised from `generator` (see `initialise`); a
    registered one draws its weights as its own code does, from torch's global generator, which is seeded from
    `generator` for it and put back afterwards.

    Args:
        name: a key of `MODELS`: "2nn", "cnn" (both McMahan et al. 2017), "mlp", "small_cnn", "resnet8", "resnet20",
            "lstm", "vit", "efficientnet_lite0" (needs timm), or a name registered by `registry.register("model", ...)`.
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
    choice("model", name, MODELS)
    info = MODELS[name]
    if norm not in info.norms:
        raise ValueError(f"norm={norm!r}: {name} accepts {', '.join(map(repr, info.norms))}")
    if unknown := set() if info.takes_anything else options.keys() - info.options.keys():
        accepted = ", ".join(info.options) or "no options"
        raise ValueError(f"{sorted(unknown)[0]}={options[sorted(unknown)[0]]!r}: {name} accepts {accepted}")
    if not info.built_in:
        return _built_by_own_code(
            name, info, generator, options, input_shape=tuple(input_shape), num_classes=num_classes, norm=norm
        )
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
    with fits(model=name, **options):
        model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype))  # to_empty would import sympy: 60 MiB and a second
        initialise(model, generator, weights="kaiming" if isinstance(model, ResNet) else "uniform", gamma=gamma)
    return model


def _built_by_own_code(
    name: str, info: ModelInfo, draws: torch.Generator, options: Mapping[str, Any], **given: Any
) -> nn.Module:
    asked = {key: value for key, value in given.items() if key in _parameters(info.make)}
    with fits(model=name, **options), torch_draws_from(draws):
        model = info.make(**asked, **options)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r} made a {type(model).__name__}, accepted: an nn.Module")
    return model.train()


@checked
@dataclass(frozen=True)
class Architecture:
    """A network without its weights: everything `build_model` needs besides the shapes and the draws.

    Attributes:
        name, norm, options: arguments of `build_model`.
    """

    name: str
    norm: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, input_shape: tuple[int, ...], num_classes: int, draws: torch.Generator) -> nn.Module:
        """The network with weights drawn from `draws`, see `build_model`."""
        return build_model(self.name, input_shape, num_classes, draws, norm=self.norm, **self.options)


@checked
def parameter_count(model: nn.Module) -> int:
    """Number of parameters; running statistics are buffers and do not count."""
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
