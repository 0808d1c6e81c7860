"""Starting points by name, so that an experiment as plain data can say where it begins."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from fedlab_core.data import Dataset
from fedlab_core.models.weights.torchvision_resnet import fit_imagenet, imagenet_weights
from fedlab_core.pretraining.starts import Decentralised, Fractals, Start, Step, Supervised, body, make_start

if TYPE_CHECKING:
    from fedlab_core.experiment import Experiment

STARTS = {
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
}
"""What `recipe` accepts, and what a model has then seen."""
SHIPPED = ("vit_weak", "vit_strong")


def recipe(name: str, input_shape: tuple[int, ...]) -> tuple[Step, ...]:
    """The steps of a start for models that read inputs of that shape; none for a random one and for shipped weights.

    Raises:
        ValueError: an unknown name, or a source whose images do not have that shape.
    """
    if name not in STARTS:
        raise ValueError(f"start={name!r} is unknown, accepted: {list(STARTS)}")
    if name == "random":
        return ()
    if len(input_shape) != 3:
        raise ValueError(f"start={name!r} is learnt from images, the model reads {input_shape}, accepted: 'random'")
    channels, height, width = input_shape
    if name == "letters" and (channels != 1 or height != width or not 4 <= height <= 64):
        raise ValueError(f"start='letters' has square grey images of 4 to 64 pixels, the model reads {input_shape}")
    if name == "caltech101" and (channels not in (1, 3) or height != width):
        raise ValueError(f"start='caltech101' has square images of 1 or 3 channels, the model reads {input_shape}")
    if name in SHIPPED:
        if input_shape != (3, 32, 32):
            raise ValueError(f"start={name!r} has colour images of 32 x 32 pixels, the model reads {input_shape}")
        return ()
    pairs, own = Fractals("pairs", images=3000, epochs=5), Decentralised(rounds=5)
    return {
        "letters": (Supervised("letters", {"size": height, "per_class": 150}, epochs=8, lr=0.05),),
        "caltech101": (Supervised("caltech101", {"size": height, "channels": channels}, epochs=8, lr=0.05),),
        "fractal pairs": (pairs,),
        "fractal labels": (Fractals("labels", codes=32, images=3000, epochs=8, lr=0.3),),
        "fractal twins": (Fractals("twins", images=3000, epochs=5),),
        "noise": (Fractals("noise", images=3000, epochs=5),),
        "decentralised": (own,),
        "pairs, decentralised": (pairs, own),
    }[name]


def named_start(
    experiment: "Experiment",
    *,
    data: Dataset | None = None,
    root: str | Path | None = None,
    stop: threading.Event | None = None,
) -> Start:
    """The start that an experiment names, made or read from the cache, see `make_start`."""
    data = data or experiment.load_data(root)
    steps = recipe(experiment.start, data.input_shape)
    if experiment.start in SHIPPED:
        from fedlab_core.models.weights.shipped import load_backbone  # it reads checkpoints as this package does

        known = load_backbone(experiment.start)
        return Start(known.name, body(known.model.state_dict()), dict(known.about))
    return make_start(experiment, steps, name=experiment.start, data=data, root=root, stop=stop)


def imagenet_start(model: nn.Module, name: str = "resnet18", *, file: str | Path | None = None) -> Start:
    """The start from torchvision's ImageNet weights for a `torchvision_resnet` of that architecture; `transfer` its
    state into the model. See `imagenet_weights` and `fit_imagenet` for the arguments and for what is raised."""
    recipe = {"kind": "ImageNet", "architecture": name, "file": None if file is None else Path(file).name}
    return Start("ImageNet", fit_imagenet(imagenet_weights(name, file=file), model), recipe)
