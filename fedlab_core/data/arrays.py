"""The tensors of a data set from numpy arrays, lists and data frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlab_core.check import checked
from fedlab_core.data.arguments import describe
from fedlab_core.data.checks import check_kind, check_tensor
from fedlab_core.data.measures import IGNORE
from fedlab_core.data.statistics import statistics

MOST_CLASSES = 1_000_000  # more than that are no class indices but a mistake


@checked
def as_tensor(argument: str, values: Any) -> Tensor:
    """A dense tensor of uint8, int64, float32 or float64; arrays and lists are copied, tensors are shared.

    Raises:
        ValueError: values that are not numbers, of different lengths, masked, complex or beyond int64.
    """
    if isinstance(values, (list, tuple)) and values and isinstance(values[0], Tensor):
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise ValueError(f"{argument} has tensors of the shapes {_some(shapes)}, accepted: all of one shape")
        values = torch.stack(list(values))
    if not isinstance(values, Tensor):
        values = _from_numpy(argument, _array(argument, values))
    values = values.detach()
    check_tensor(argument, values)
    if values.is_complex():
        raise ValueError(f"{argument} is {describe(values)}, accepted: real numbers; give its parts as two features")
    if values.is_floating_point():
        return values if values.dtype == torch.float64 else values.float()
    return values if values.dtype == torch.uint8 else values.long()


def _array(argument: str, values: Any) -> np.ndarray:
    if np.ma.is_masked(values):
        raise ValueError(f"{argument} is a masked array with masked values: fill them, or leave out those examples")
    try:
        return np.asarray(values)
    except ValueError as error:  # numpy's word for lists of different lengths
        raise ValueError(f"{argument} is no array: {error}; accepted: examples of one shape") from error


def _from_numpy(argument: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "biuf":
        names = {"O": "Python objects", "U": "strings", "S": "bytes", "c": "complex numbers", "M": "dates"}
        found = names.get(array.dtype.kind, str(array.dtype))
        raise ValueError(f"{argument} holds {found} (shape {array.shape}), accepted: numbers")
    if array.dtype.kind == "f":
        array = array.astype(np.float64 if array.dtype.itemsize >= 8 else np.float32)
    elif array.dtype != np.uint8:
        if array.size and array.dtype.kind == "u" and int(array.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"{argument} has the value {array.max()}, accepted: up to 2**63 - 1")
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, order="C"))


@checked
def infer_kind(x: Tensor, y: Tensor, kind: str | None) -> str:
    """The kind of a data set, from the type and shape of its inputs if it is not given.

    Raises:
        ValueError: an unknown kind, or inputs that could be of several kinds.
    """
    if kind is not None:
        check_kind(kind)
        return kind
    if x.ndim == 4 or (x.ndim == 3 and x.dtype == torch.uint8):
        return "image"
    if x.ndim in (1, 2) and x.is_floating_point():
        return "table"
    if x.dtype == torch.int64 and x.ndim == 2 and y.shape == x.shape:
        return "text"
    raise ValueError(f"kind=None: x={describe(x)} could be several things; give kind='image', 'text' or 'table'")


@checked
def as_inputs(argument: str, x: Tensor, kind: str) -> Tensor:
    """Inputs in the type and layout of a kind: images get a channel dimension in front of height and width, tables of
    whole numbers become float32, a vector becomes a table of one feature.

    Raises:
        ValueError: an image of whole numbers outside 0 to 255.
    """
    if kind == "table":
        x = x if x.is_floating_point() else x.float()
        return x[:, None] if x.ndim == 1 else x
    if kind == "text":
        return x.long() if x.dtype == torch.uint8 else x
    if x.dtype == torch.int64 and x.numel():
        low, high = int(x.min()), int(x.max())
        if not 0 <= low <= high <= 255:
            raise ValueError(
                f"{argument} has whole numbers from {low} to {high}, accepted for images: 0 to 255, or floats"
            )
        x = x.to(torch.uint8)
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[1] not in (1, 3, 4) and x.shape[3] in (1, 3, 4):
        return x.permute(0, 3, 1, 2).contiguous()  # height, width, channels: numpy's and Pillow's order
    return x


@checked
def as_targets(
    parts: Mapping[str, Any], classes: Sequence[str] | None
) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Targets by argument, and the class names if labels are words, which then become their numbers.

    Raises:
        ValueError: a word that is no class.
    """
    arrays = {name: part if isinstance(part, Tensor) else _numbers_or_words(name, part) for name, part in parts.items()}
    if not any(isinstance(a, np.ndarray) and a.dtype.kind in "US" for a in arrays.values()):
        tensors = {name: as_tensor(name, array) for name, array in arrays.items()}
        return {name: t.float() if t.is_floating_point() else t.long() for name, t in tensors.items()}, None
    words = {name: np.asarray(array).astype(str) for name, array in arrays.items()}
    found = np.unique(np.concatenate([array.ravel() for array in words.values()])).tolist()
    names = tuple(classes or found)
    if unknown := sorted(set(found) - set(names)):
        argument = next(argument for argument, array in words.items() if unknown[0] in array)
        raise ValueError(f"{argument} has the label {unknown[0]!r}, accepted: {_some(names)}")
    place = {name: i for i, name in enumerate(names)}
    numbers = {argument: [place[word] for word in array.ravel().tolist()] for argument, array in words.items()}
    return {argument: torch.tensor(number).view(words[argument].shape) for argument, number in numbers.items()}, names


def _numbers_or_words(argument: str, values: Any) -> Any:
    if isinstance(values, (list, tuple)) and values and isinstance(values[0], Tensor):
        return values
    array = _array(argument, values)
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array.ravel()):
        return array.astype(str)
    return array


@checked
def numbered_classes(tensors: Sequence[Tensor], first: int | None = 0) -> tuple[str, ...]:
    """Names "0", "1", ... for labels without names.

    Args:
        first: the label that must occur, so that labels from 1 to n are noticed; None for any.

    Raises:
        ValueError: labels that do not start there, or far too many.
    """
    labels = torch.cat([tensor[tensor != IGNORE].flatten() for tensor in tensors])
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if first is not None and low > first:
        raise ValueError(f"classes=None: labels from {low} to {high}, accepted: from 0; subtract {low} or give classes")
    if high >= MOST_CLASSES:
        raise ValueError(f"classes=None: labels up to {high}, accepted: below {MOST_CLASSES}; number them 0, 1, ...")
    return tuple(map(str, range(high + 1)))


@checked
def as_groups(parts: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Numbers 0, 1, ... for natural clients that are named by whole numbers or words, and their names in order."""
    arrays = {argument: _numbers_or_words(argument, part) for argument, part in parts.items() if part is not None}
    arrays = {argument: np.asarray(array) for argument, array in arrays.items()}
    for argument, array in arrays.items():
        if array.dtype.kind not in "iuUS" or array.ndim != 1:
            found = f"{array.dtype} {array.shape}"
            raise ValueError(f"{argument} is {found}, accepted: one whole number or word per example")
    if not arrays:
        return {}, ()
    names, numbers = np.unique(np.concatenate(list(arrays.values())), return_inverse=True)
    split = np.split(numbers.astype(np.int64), np.cumsum([len(array) for array in arrays.values()])[:-1])
    return {a: torch.from_numpy(part) for a, part in zip(arrays, split, strict=True)}, tuple(map(str, names.tolist()))


@checked
def fields(
    parts: Mapping[str, Sequence[Any]],
    classes: Sequence[str] | None,
    kind: str | None,
    standardise: bool | None,
    groups: Mapping[str, Any],
    own_loss: bool,
) -> dict[str, Any]:
    """What `Dataset` is made of, from the inputs and targets of its parts.

    Args:
        parts: by the beginning of their arguments' names: "", "test_" and perhaps "validation_".
    """
    if isinstance(classes, (str, bytes)):
        raise ValueError(f"classes={classes!r}, accepted: a list of names, such as {list(str(classes)[:3])}")
    for before, pair in parts.items():
        if len(pair) != 2:
            raise ValueError(f"{before.strip('_')} has {len(pair)} entries, accepted: inputs and targets, or a share")
    inputs = {f"{before}x": as_tensor(f"{before}x", x) for before, (x, _) in parts.items()}
    targets, names = as_targets({f"{before}y": y for before, (_, y) in parts.items()}, classes)
    kind = infer_kind(inputs["x"], targets["y"], kind)
    inputs = {argument: as_inputs(argument, x, kind) for argument, x in inputs.items()}
    if classes is not None:
        names = tuple(map(str, classes))
    elif names is None and not own_loss and not targets["y"].is_floating_point():
        next_characters = kind == "text" and targets["y"].ndim == 2
        labels = [*targets.values(), *inputs.values()] if next_characters else list(targets.values())
        names = numbered_classes(labels, None if next_characters else 0)
    mean, std = statistics(inputs["x"], kind, standardise)
    numbers, group_names = as_groups(groups)
    known = {"kind": kind, "classes": names or (), "mean": mean, "std": std, "group_names": group_names}
    return known | inputs | targets | numbers


def _some(names: Any, most: int = 8) -> str:
    names = sorted(map(str, names))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
