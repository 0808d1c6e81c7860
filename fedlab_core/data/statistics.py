"""Mean and standard deviation of training examples, and draws that go class by class."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedlab_core.check import Many, checked


@checked
def channel_statistics(x: Tensor, chunk: Many = 1024) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of x / 255 per channel, exact integer sums, no float copy of all images.

    Args:
        x: uint8 (n, channels, height, width).
        chunk: images looked at together.

    Returns:
        mean and std, one entry per channel; the std of a constant channel is given as 1.
    """
    total = torch.zeros(x.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for part in x.split(chunk):
        values = part.cpu().to(torch.int32)
        total += values.sum((0, 2, 3))
        squares += (values * values).sum((0, 2, 3))
    count = x.shape[0] * x.shape[2] * x.shape[3]
    mean = [t / count / 255 for t in total.tolist()]
    variance = [(s * count - t * t) / count**2 / 255**2 for s, t in zip(squares.tolist(), total.tolist(), strict=True)]
    return tuple(mean), tuple(v**0.5 if v > 0 else 1.0 for v in variance)


@checked
def stratified_split(y: Tensor, per_class: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training and test indices with a given number of test examples of every class.

    Args:
        y: int64 (n,) labels.
        per_class: int64 (classes,) test examples of each class.
        draw: generator of the choice.

    Returns:
        sorted indices of the training and of the test examples.
    """
    order = torch.randperm(len(y), generator=draw)
    order = order[y[order].argsort(stable=True)]
    counts = torch.bincount(y, minlength=len(per_class))
    rank = torch.arange(len(y)) - (counts.cumsum(0) - counts)[y[order]]
    test = rank < per_class[y[order]]
    return order[~test].sort().values, order[test].sort().values


@checked
def some_of_each(labels: Tensor, count: Many, draws: torch.Generator) -> Tensor:
    """Sorted positions of at most `count` random examples of each class; those of a smaller count are among them.

    Args:
        labels: int64 (n,).
    """
    order = torch.randperm(len(labels), generator=draws)
    return torch.cat([order[labels[order] == c][:count] for c in labels.unique()]).sort().values


@checked
def feature_statistics(x: Tensor, dim: Literal[-1, 0, 1, 2, 3]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of floats for each entry of a dimension, in float64.

    Returns:
        mean and std, one entry per channel or feature; the std of a constant one is given as 1.
    """
    values = x.movedim(dim, 0).flatten(1).double()
    std = values.std(1, correction=0)
    return tuple(values.mean(1).tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())


@checked
def statistics(x: Tensor, kind: str, standardise: bool | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`Dataset.mean` and `std` of training inputs.

    Args:
        standardise: None does so for images of bytes, which are otherwise brought to 0..1; floats are then left alone.
    """
    if kind == "text":
        return (), ()
    if x.dtype == torch.uint8:
        if standardise is False or x.ndim != 4 or not len(x):
            return (0.0,) * x.shape[1], (1.0,) * x.shape[1]
        return channel_statistics(x)
    return feature_statistics(x, 1 if kind == "image" else -1) if standardise and len(x) else ((), ())
