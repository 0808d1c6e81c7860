"""A start from ImageNet for networks of any kind: they learn what an ImageNet network sees in images without labels."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlab_core.check import checked
from fedlab_core.data import Dataset
from fedlab_core.data.measures import squared_error
from fedlab_core.federation import Federation
from fedlab_core.local.cores import single_threaded
from fedlab_core.models.build import Architecture
from fedlab_core.models.weights.efficientnet_lite import fit_lite0, lite0_weights
from fedlab_core.partition import pooled
from fedlab_core.pretraining.kept import Start, from_cache, into_cache
from fedlab_core.pretraining.starts import body, transfer
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings

_TOGETHER = 250  # images that the teacher reads at once


@checked
@dataclass(frozen=True)
class Distillation:
    """How a network learns features: squared error, Adam, a learning rate that falls along a cosine.

    Attributes:
        enlarge: factor by which EfficientNet-Lite0 enlarges the images it sees.
        epochs, lr, batch_size: of the network that learns.
        seed: of its initial weights and of the order of the images.
    """

    enlarge: int = 2
    epochs: int = 8
    lr: float = 0.003
    batch_size: int = 64
    seed: int = 0


@checked
def lite0_features(images: Dataset, enlarge: int = 2) -> Tensor:
    """Features (n, 1280) that EfficientNet-Lite0 with its ImageNet weights has for the training images.

    They are centred, and divided by one number so that their mean variance is 1.

    Raises:
        ValueError: the optional packages are not there.
    """
    model = Architecture("efficientnet_lite0", "batch", {"enlarge": enlarge}).build(
        images.input_shape, 1, generator(0, "teacher")
    )
    transfer(fit_lite0(lite0_weights(), model, images.mean, images.std), model)
    see: Any = model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad(), single_threaded():
        parts = [see.features(images.prepare(x)) for x in images.x.split(_TOGETHER)]
    features = torch.cat(parts)
    features -= features.mean(0)
    return features / features.square().mean().sqrt()


@checked
def distilled(
    model: Architecture,
    images: Dataset,
    how: Distillation = Distillation(),  # noqa: B008  # frozen
    *,
    name: str = "ImageNet",
    root: str | Path | None = None,
) -> Start:
    """A start that has learnt EfficientNet-Lite0's features of the training images; their labels are not looked at.

    It is kept in the cache of the data root, as all starts are.

    Args:
        model: the network that learns.
        images: without those of the task that the start is for.
        root: the data root.

    Raises:
        ValueError: the optional packages are not there.
    """
    recipe: dict[str, Any] = {
        "kind": "distilled from EfficientNet-Lite0",
        "model": [model.name, model.norm, dict(model.options)],
        "images": [images.name, len(images.x), images.fingerprint],
        **asdict(how),
    }
    if (known := from_cache(recipe, name, root)) is not None:
        return known
    seen = lite0_features(images, how.enlarge)
    first = images.x[:1], seen[:1]  # nothing is tested
    source = Dataset(images.name, "image", images.x, seen, *first, mean=images.mean, std=images.std, loss=squared_error)
    student = model.build(images.input_shape, source.outputs, generator(how.seed, "student"))
    settings = Settings(
        fraction=1.0,
        epochs=1,
        batch_size=how.batch_size,
        lr=how.lr,
        lr_schedule="cosine",
        schedule_rounds=how.epochs,
        optimiser="adam",
        keep_optimiser=True,
        batch_norm="average" if model.norm == "batch" else None,
        seed=how.seed,
        evaluate_every=how.epochs,
        engine="loop",
    )
    federation = Federation(source, pooled(len(source.x)), student, settings, memory_mib=1)
    for _ in federation.rounds(how.epochs):
        pass
    start = Start(name, dict(sorted(body(federation.state).items())), recipe)
    into_cache(start, root)
    return start
