"""Synthetic images as data sets, ready for the round loop."""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab_core.check import Many, checked, choice
from fedlab_core.data.dataset import Dataset
from fedlab_core.data.measures import Measure
from fedlab_core.data.statistics import channel_statistics
from fedlab_core.pretraining.pairs import (
    Renders,
    fitted,
    fractal_pairs,
    fractal_twins,
    make_renders,
    multi_label,
    noise_images,
)
from fedlab_core.randomness import generator

TASKS = ("pairs", "twins", "noise")
_EACH = 32  # renders per code, as in the released code's cache at 32 x 32


@functools.lru_cache(maxsize=2)
def _renders(codes: int, seed: int) -> Renders:
    return make_renders(codes, _EACH, seed)


@checked
def fractal_views(task: str, input_shape: tuple[int, ...], codes: Many, images: Many, seed: int) -> Dataset:
    """Pairs of images as one data set with twice the channels: the first view's, then the second's.

    Args:
        task: "pairs" (same codes, drawn twice), "twins" (the same image twice) or "noise" (the same noise twice).
        input_shape: what the model reads; the images are composed at 32 x 32 and then made to fit.
        codes: size of the pool that the codes of a pair are taken from.
        images: pairs.

    Raises:
        ValueError: an unknown task.
    """
    choice("task", task, TASKS)
    draws = generator(seed, "fractal views", TASKS.index(task))
    parts = []
    for part in torch.arange(images).split(1024):
        if task == "noise":
            image = fitted(noise_images(len(part), 32, draws), input_shape)
            views = [image, image]
        else:
            make = fractal_pairs if task == "pairs" else fractal_twins
            views = [fitted(view, input_shape) for view in make(_renders(codes, seed), len(part), draws)]
        parts.append(_bytes(torch.cat(views, 1)))
    x = torch.cat(parts)
    return _dataset(f"fractal {task}" if task != "noise" else "noise", x, torch.zeros(images, dtype=torch.int64), 1)


@checked
def fractal_labels(input_shape: tuple[int, ...], codes: Many, images: Many, seed: int) -> Dataset:
    """Images of 1 to 5 codes; a target (codes,) is 1 where the image holds the code and 0 elsewhere.

    Raises:
        ValueError: no code.
    """
    if codes < 1:
        raise ValueError(f"codes={codes}, accepted: a whole number >= 1")
    draws = generator(seed, "fractal labels")
    parts, labels = [], []
    for part in torch.arange(images).split(1024):
        image, label = multi_label(_renders(codes, seed), len(part), draws)
        parts.append(_bytes(fitted(image, input_shape)))
        labels.append(label.float())
    return _dataset("fractal labels", torch.cat(parts), torch.cat(labels), codes, logistic_loss)


@checked
def logistic_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the codes of one logistic loss each (Anderson and Farrell 2022): (n, codes) twice to (n,)."""
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").mean(1)


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def _dataset(name: str, x: Tensor, y: Tensor, classes: int, loss: Measure | None = None) -> Dataset:
    """A tenth is kept for testing."""
    cut = max(1, len(x) // 10)
    mean, std = channel_statistics(x[cut:])
    names = tuple(map(str, range(classes)))
    parts = x[cut:], y[cut:], x[:cut], y[:cut]
    return Dataset(name, "image", *parts, names, mean, std, notes="composed of fractals", loss=loss)
