"""Starting points by name, so that an experiment as plain data can say where it begins."""

import importlib.util
import inspect
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedlab_core.check import checked, choice
from fedlab_core.models.weights.efficientnet_lite import PACKAGE, fit_lite0, lite0_weights
from fedlab_core.models.weights.torchvision_resnet import fit_imagenet, imagenet_weights
from fedlab_core.pretraining.kept import Start
from fedlab_core.pretraining.starts import (
    Beginning,
    Decentralised,
    Fractals,
    Step,
    Supervised,
    body,
    make_start,
)
from fedlab_core.randomness import generator
from fedlab_core.state import State

STARTS: dict[str, str] = {
    "random": "no training at all",
    "letters": "labelled letters rendered from fonts; for square grey images",
    "caltech101": "labelled photographs of objects, from the data root; for square images",
    "fractal pairs": "fractal pair similarity",
    "fractal labels": "which fractals are in the image",
    "fractal twins": "control: the same fractal image twice",
    "noise": "control: images without structure",
    "decentralised": "the clients' own images without their labels, 5 rounds",
    "pairs, decentralised": "fractal pairs, then the clients' own images",
    "vit_weak": "generated scenes, a little: weights that come with the package, for its vision transformer",
    "vit_strong": "generated scenes, a lot: likewise",
    "imagenet": "photographs of 1,000 classes (ImageNet): weights from an optional package, for efficientnet_lite0",
}
"""Every start, and what a model has then seen."""
SHIPPED = ("vit_weak", "vit_strong")
READ = (*SHIPPED, "imagenet")  # starts that are read, not learnt here
OWN: dict[str, State | Callable[..., State]] = {}
"""Registered starts: tensors by name, or a function that returns them; see `registry.register`."""
GIVEN = ("model", "data", "partition", "seed")  # what a registered start may ask for


@checked
def installed(name: str) -> bool:
    """Whether the optional package that a start is read from is there, so that a menu may offer it."""
    return name != "imagenet" or importlib.util.find_spec(PACKAGE) is not None


@checked
def recipe(name: str, input_shape: tuple[int, ...]) -> tuple[Step, ...]:
    """The steps of a start for models that read inputs of that shape; none for a random one, shipped weights and
    registered starts.

    Raises:
        ValueError: an unknown name, or a source whose images do not have that shape.
    """
    choice("start", name, STARTS)
    if name == "random" or name in OWN:
        return ()
    if len(input_shape) != 3:
        raise ValueError(f"start={name!r} is learnt from images, the model reads {input_shape}, accepted: 'random'")
    channels, height, width = input_shape
    if name == "letters" and (channels != 1 or height != width or not 4 <= height <= 64):
        raise ValueError(f"start='letters' has square grey images of 4 to 64 pixels, the model reads {input_shape}")
    if name == "caltech101" and (channels not in (1, 3) or height != width):
        raise ValueError(f"start='caltech101' has square images of 1 or 3 channels, the model reads {input_shape}")
    if name in SHIPPED and input_shape != (3, 32, 32):
        raise ValueError(f"start={name!r} has colour images of 32 x 32 pixels, the model reads {input_shape}")
    if name in READ:
        return ()
    pairs, own = Fractals("pairs", images=3000, epochs=5), Decentralised(rounds=5)
    recipes: dict[str, tuple[Step, ...]] = {
        "letters": (Supervised("letters", {"size": height, "per_class": 150}, epochs=8, lr=0.05),),
        "caltech101": (Supervised("caltech101", {"size": height, "channels": channels}, epochs=8, lr=0.05),),
        "fractal pairs": (pairs,),
        "fractal labels": (Fractals("labels", codes=32, images=3000, epochs=8, lr=0.3),),
        "fractal twins": (Fractals("twins", images=3000, epochs=5),),
        "noise": (Fractals("noise", images=3000, epochs=5),),
        "decentralised": (own,),
        "pairs, decentralised": (pairs, own),
    }
    return recipes[name]


@checked
def named_start(
    name: str,
    beginning: Beginning,
    *,
    root: str | Path | None = None,
    stop: threading.Event | None = None,
) -> Start:
    """The start of that name, made or read from the cache, see `make_start`."""
    steps = recipe(name, beginning.data.input_shape)
    if name in SHIPPED:
        from fedlab_core.models.weights.shipped import load_backbone  # here, as that module is a program as well

        known = load_backbone(name)
        return Start(known.name, body(known.model.state_dict()), dict(known.about))
    if name == "imagenet":
        return _imagenet(beginning)
    if name in OWN:
        state = body(_own_state(name, beginning))
        return Start(name, dict(sorted(state.items())), {"kind": "registered", "name": name})
    return make_start(beginning, steps, name=name, root=root, stop=stop)


def _imagenet(beginning: Beginning) -> Start:
    if beginning.model.name != "efficientnet_lite0":
        raise ValueError(f"start='imagenet' has weights of 'efficientnet_lite0', the model is {beginning.model.name!r}")
    data, draws = beginning.data, generator(beginning.seed, "start", 0)
    model = beginning.model.build(data.input_shape, data.num_classes, draws)
    recipe = {"kind": "ImageNet", "architecture": beginning.model.name}
    return Start("ImageNet", fit_lite0(lite0_weights(), model, data.mean, data.std), recipe)


def _own_state(name: str, beginning: Beginning) -> State:
    """The tensors of a registered start; a function gets the arguments among `GIVEN` that its signature names."""
    made: Any = OWN[name]
    if callable(made):
        data, asked = beginning.data, inspect.signature(made).parameters
        given: dict[str, Any] = {"data": data, "partition": beginning.partition, "seed": beginning.seed}
        if "model" in asked:
            draws = generator(beginning.seed, "start", 0)
            given["model"] = beginning.model.build(data.input_shape, data.outputs, draws)
        made = made(**{key: value for key, value in given.items() if key in asked})
    if not isinstance(made, Mapping) or not all(isinstance(tensor, Tensor) for tensor in made.values()):
        raise ValueError(f"start {name!r} made a {type(made).__name__}, accepted: tensors by name, as a state_dict()")
    return {key: tensor.detach().to("cpu", copy=True) for key, tensor in made.items()}


@checked
def imagenet_start(model: nn.Module, name: str = "resnet18", *, file: str | Path | None = None) -> Start:
    """The start from torchvision's ImageNet weights for a `torchvision_resnet` of that architecture; `transfer` its
    state into the model. See `imagenet_weights` and `fit_imagenet` for the arguments and for what is raised."""
    recipe = {"kind": "ImageNet", "architecture": name, "file": None if file is None else Path(file).name}
    return Start("ImageNet", fit_imagenet(imagenet_weights(name, file=file), model), recipe)
