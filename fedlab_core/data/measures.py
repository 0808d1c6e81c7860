"""What a data set measures of a model's outputs: one value per target, so that sums and means are up to the caller."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fedlab_core.check import checked

IGNORE = -100  # target of padded positions: the default ignore_index of torch's cross-entropy

Measure = Callable[[Tensor, Tensor], Tensor]
"""`(outputs, targets) -> values (n,)`: one value per example; for text one per character that is not padding."""


@checked
def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1.0 where the largest of outputs (n, classes) is the target (n,), else 0.0.

    With outputs (n, T, classes) and targets (n, T) there is one value per position. Targets of -100 are left out.
    """
    counted = targets != IGNORE
    return (outputs.argmax(-1) == targets)[counted].to(outputs.dtype)


@checked
def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared difference of outputs and targets, averaged over the values of each example: (n,)."""
    return _difference(outputs, targets).square().flatten(1).mean(1)


@checked
def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Absolute difference of outputs and targets, averaged over the values of each example: (n,)."""
    return _difference(outputs, targets).abs().flatten(1).mean(1)


def _difference(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs (n, 1) and targets (n,) belong together; broadcasting would pair every output with every target.

    Raises:
        ValueError: a different number of values per example.
    """
    if outputs.numel() != targets.numel() or outputs.shape[:1] != targets.shape[:1]:
        raise ValueError(
            f"outputs={tuple(outputs.shape)}: accepted is the shape of the targets, {tuple(targets.shape)}"
        )
    return (outputs.reshape(len(outputs), -1) - targets.reshape(len(targets), -1)).flatten(1)


LOSSES: dict[str, Measure] = {"mse": squared_error}


@checked
@functools.lru_cache(maxsize=16)
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of a data set's mean or standard deviations, made once."""
    return torch.tensor(values, dtype=dtype, device=device)
