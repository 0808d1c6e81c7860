"""Small pre-trained networks that come with the package: `python -m fedlab_core.models.weights.shipped NAME ...` makes
them again.

The weights of a backbone are NAME.safetensors in the folder `backbones`; NAME.json beside them says how they were made
and what they should hash to.
"""

import argparse
import copy
import dataclasses
import functools
import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core import files
from fedlab_core.check import checked, choice
from fedlab_core.data import Dataset, load_dataset
from fedlab_core.data.scenes import COLOURS, SHAPES, TEXTURES, class_names, split_scenes
from fedlab_core.memory import packed
from fedlab_core.models import build_model
from fedlab_core.models.clip import CLIP, Vocabulary, clip_loss, small_clip, zero_shot_weights
from fedlab_core.models.vit import ViT
from fedlab_core.randomness import generator

FOLDER = Path(__file__).with_suffix("")
SHAPE = (3, 32, 32)
NETWORK = {"patch": 8, "dim": 64, "depth": 4, "heads": 4}
PROMPT = 16  # learnt tokens that a text has room for
VOCABULARY = Vocabulary(("a", *COLOURS, *TEXTURES, *SHAPES), length=6 + PROMPT)
CAPTIONS = tuple(f"a {colour} {{}}" for colour in COLOURS)
"""Templates of the classes' captions, for the zero-shot classifier."""
LIKE_CIFAR10 = (
    *("airplanes", "helicopter", "car_side", "Motorbikes"),
    *("ketch", "schooner", "ferry"),
    *("Leopards", "wild_cat", "cougar_body", "cougar_face", "dalmatian", "snoopy", "garfield"),
    *("emu", "flamingo", "flamingo_head", "ibis", "pigeon", "rooster"),
    *("gerenuk", "okapi", "llama"),
)
"""Classes of Caltech-101 that are left out because they are, or look like, one of CIFAR-10: aircraft, cars and bikes,
ships, cats, dogs, birds, and hoofed animals."""


@checked
@dataclass(frozen=True)
class Recipe:
    """How a backbone is made: AdamW without weight decay on a fixed set of pictures; the rate rises over the first
    twentieth of the steps and falls along a cosine.

    Attributes:
        kind: "vit", trained with the classes' labels, or "clip", with captions.
        dataset: "scenes" (its pre-training split), or "caltech101" without `LIKE_CIFAR10`.
        epochs: passes over the pictures.
        per_class: training pictures of each class; of "scenes".
        flip: mirror every second picture.
    """

    kind: str = "vit"
    dataset: str = "scenes"
    epochs: int = 1
    per_class: int = 1250
    batch_size: int = 128
    lr: float = 2e-3
    seed: int = 0
    flip: bool = False


RECIPES = {
    "vit_weak": Recipe(epochs=1),
    "vit_strong": Recipe(epochs=16),
    "clip_tiny": Recipe("clip", epochs=12),
    "vit_caltech": Recipe(dataset="caltech101", epochs=20, flip=True),
}
"""Every backbone, by name."""


@checked
@dataclass(frozen=True, eq=False)
class Backbone:
    """A pre-trained network with what is needed to use it.

    Attributes:
        name: a key of `RECIPES`.
        model: a `ViT` with the classifier of its own classes, or a `CLIP`.
        about: what its JSON says.
    """

    name: str
    model: ViT | CLIP
    about: Mapping[str, Any]

    def reads(self, dataset: Dataset) -> Dataset:
        """The data set with pictures standardised as those that the backbone learnt from."""
        return dataclasses.replace(dataset, mean=tuple(self.about["mean"]), std=tuple(self.about["std"]))


@checked
def load_backbone(name: str, folder: Path = FOLDER) -> Backbone:
    """A backbone of the package, its weights compared with their checksum; the model is the caller's own.

    Raises:
        ValueError: an unknown name, or weights that are not those that were made.
        FileNotFoundError: its files are missing.
    """
    known = _load(name, folder)
    return Backbone(name, copy.deepcopy(known.model), known.about)


@functools.lru_cache(maxsize=8)
def _load(name: str, folder: Path) -> Backbone:
    choice("name", name, RECIPES)
    path = folder / f"{name}.safetensors"
    command = f"python -m fedlab_core.models.weights.shipped {name}"
    if not (path.is_file() and path.with_suffix(".json").is_file()):
        raise FileNotFoundError(f"backbone {name!r} needs {path} and the JSON beside it; make them with: {command}")
    content, about = path.read_bytes(), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if (found := hashlib.sha256(content).hexdigest()) != about["sha256"]:
        raise ValueError(f"{path} has the checksum {found}, its JSON says {about['sha256']}; make it with: {command}")
    model = blank(name, len(about["classes"]), 0)
    model.load_state_dict(safetensors.torch.load(content))
    return Backbone(name, model, about)


@checked
def blank(name: str, num_classes: int, seed: int) -> ViT | CLIP:
    """The network of a backbone with random weights: the control of what pre-training gives."""
    draws = generator(seed, "backbone")
    if RECIPES[name].kind == "clip":
        return small_clip(SHAPE, VOCABULARY, draws, NETWORK["dim"], **NETWORK)
    options: dict[str, Any] = dict(NETWORK)
    model = build_model("vit", SHAPE, num_classes, draws, **options)
    assert isinstance(model, ViT)
    return model


@checked
def source(recipe: Recipe) -> Dataset:
    """What a backbone learns from; the test part only measures it.

    Raises:
        FileNotFoundError: Caltech-101 is not in the data root.
    """
    if recipe.dataset == "scenes":
        return load_dataset("scenes", split="pretraining", per_class=recipe.per_class, seed=recipe.seed)
    data = load_dataset("caltech101", size=SHAPE[1], channels=SHAPE[0])
    left_out = {name.lower() for name in LIKE_CIFAR10}
    kept = [i for i, name in enumerate(data.classes) if name.lower() not in left_out | {"background_google"}]
    place = torch.full((data.num_classes,), -1)
    place[kept] = torch.arange(len(kept))
    train, test = place[data.y] >= 0, place[data.test_y] >= 0
    return dataclasses.replace(
        data,
        x=data.x[train],
        y=place[data.y[train]],
        test_x=data.test_x[test],
        test_y=place[data.test_y[test]],
        classes=tuple(data.classes[i] for i in kept),
    )


@checked
def pretrain(name: str, recipe: Recipe, data: Dataset) -> tuple[ViT | CLIP, dict[str, Any]]:
    """A backbone made by a recipe, on the CPU.

    Returns:
        The model and what is to be said about it.
    """
    began = time.perf_counter()
    model = blank(name, data.num_classes, recipe.seed)
    texts = _captions(data, recipe) if isinstance(model, CLIP) else None
    steps = recipe.epochs * math.ceil(len(data.x) / recipe.batch_size)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, functools.partial(_rate, steps=steps))
    for epoch in range(recipe.epochs):
        losses = []
        for batch, draws in _batches(recipe, len(data.x), epoch):
            images = data.prepare(data.x[batch])
            if recipe.flip:
                mirrored = torch.rand(len(images), 1, 1, 1, generator=draws) < 0.5
                images = torch.where(mirrored, images.flip(3), images)
            if texts is None:
                loss = F.cross_entropy(model(images), data.y[batch])
            else:
                loss = clip_loss(model(images, texts[batch]), texts[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.detach())
        print(f"{name}: epoch {epoch + 1} of {recipe.epochs}, loss {torch.stack(losses).mean():.3f}", flush=True)
    about = {
        "recipe": asdict(recipe),
        "network": NETWORK,
        "classes": data.classes,
        "left_out": LIKE_CIFAR10 if recipe.dataset == "caltech101" else class_names("task"),
        "pictures": len(data.x),
        "source": data.notes,
        "source_fingerprint": data.fingerprint,
        "mean": data.mean,
        "std": data.std,
        "test_accuracy": round(_accuracy(model, data), 4),
        "final_loss": round(float(torch.stack(losses).mean()), 4),
        "seconds": round(time.perf_counter() - began, 1),
        "versions": {"python": platform.python_version(), "torch": metadata.version("torch")},
    }
    return model, about


@checked
def write(name: str, model: nn.Module, about: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Writes a backbone's weights and what is to be said about it; returns the path of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    content = packed({n: t.detach().contiguous() for n, t in model.state_dict().items()})
    path = folder / f"{name}.safetensors"
    files.write(path, content)
    said = {"name": name, **about, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    files.write(path.with_suffix(".json"), f"{json.dumps(said, indent=1)}\n".encode())
    return path


def _batches(recipe: Recipe, n: int, epoch: int) -> Iterator[tuple[Tensor, torch.Generator]]:
    draws = generator(recipe.seed, "pre-training batches", epoch)
    for batch in torch.randperm(n, generator=draws).split(recipe.batch_size):
        yield batch, draws


def _rate(step: int, steps: int) -> float:
    """What the learning rate is multiplied by."""
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _captions(data: Dataset, recipe: Recipe) -> Tensor:
    """Token ids of the caption of every training picture of the scenes, without the room for prompts."""
    drawn, _ = split_scenes("pretraining", len(data.x), generator(recipe.seed, "scenes pretraining", 0))
    assert torch.equal(drawn.x, data.x)
    return VOCABULARY.encode(drawn.captions())[:, :-PROMPT]


@torch.no_grad()
def _accuracy(model: ViT | CLIP, data: Dataset) -> float:
    """Accuracy of the classifier, or of a CLIP's zero-shot classifier, on test pictures of the classes learnt from."""
    images = [data.prepare(part) for part in data.test_x.split(512)]
    if isinstance(model, CLIP):
        weights = zero_shot_weights(model, VOCABULARY, class_names("pretraining"), CAPTIONS)
        guesses = torch.cat([(model.encode_image(part) @ weights.T).argmax(1) for part in images])
    else:
        guesses = torch.cat([model(part).argmax(1) for part in images])
    return float((guesses == data.test_y).float().mean())


@checked
def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=list(RECIPES), help="which to make")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in options.names:
        model, about = pretrain(name, RECIPES[name], source(RECIPES[name]))
        print(write(name, model, about, options.folder), about["test_accuracy"], f"{about['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
