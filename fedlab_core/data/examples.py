"""Examples of map-style data sets: torch's, torchvision's and those of Hugging Face's `datasets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedlab_core.check import checked

INPUTS = ("x", "image", "img", "pixel_values", "features", "input_ids", "inputs", "input")
TARGETS = ("y", "label", "labels", "fine_label", "target", "targets")

Columns = tuple[str | Sequence[str], str]


@checked
def read_examples(
    argument: str, source: Any, columns: Columns | None = None
) -> tuple[Any, Any, tuple[str, ...] | None]:
    """Inputs, targets and, if the data set knows them, the names of its classes.

    Raises:
        ValueError: no map-style data set, an empty one, or items that are not an input and a target each.
    """
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__") or isinstance(source, (str, bytes)):
        raise ValueError(f"{argument} is a {type(source).__name__}, accepted: a data set with a length and items")
    if isinstance(source, Mapping):
        raise ValueError(f"{argument} is a dictionary of {', '.join(map(str, source))}, accepted: one of its data sets")
    if not len(source):
        raise ValueError(f"{argument} is empty, accepted: at least one example")
    if hasattr(source, "column_names") and hasattr(source, "features"):
        return _from_columns(argument, source, columns)
    tensors = getattr(source, "tensors", None)
    if isinstance(tensors, tuple) and len(tensors) == 2:
        return tensors[0], tensors[1], None
    x, y = [], []
    for i in range(len(source)):
        inputs, target = _pair(f"{argument}[{i}]", source[i], columns)
        x.append(inputs)
        y.append(target)
    return stack(argument, x), y, _class_names(source)


@checked
def stack(argument: str, items: Sequence[Any]) -> Any:
    """Items as one array or tensor, Pillow's images as uint8 (n, channels, height, width).

    Raises:
        ValueError: items of different sizes or types.
    """
    kinds = {Image.Image if isinstance(item, Image.Image) else type(item) for item in items}
    if len(kinds) > 1 and kinds & {Image.Image, Tensor, np.ndarray}:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"{argument} has inputs of the types {found}, accepted: one type")
    if kinds == {Image.Image}:
        grey = all(item.mode in ("1", "L") for item in items)
        items = [np.asarray(item.convert("L" if grey else "RGB")) for item in items]
    elif not kinds <= {Tensor, np.ndarray}:
        return items
    shapes = [tuple(item.shape) for item in items]
    if len(set(shapes)) > 1:
        other = next(i for i, shape in enumerate(shapes) if shape != shapes[0])
        raise ValueError(
            f"{argument}[{other}] has the shape {shapes[other]}, {argument}[0] has {shapes[0]}, accepted: one shape; "
            "resize the images, for instance by a transform"
        )
    if isinstance(items[0], Tensor):
        return torch.stack(list(items))
    array = np.stack(items)
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 and array.shape[3] == 3 and array.dtype == np.uint8 else array


def _pair(place: str, item: Any, columns: Columns | None) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        inputs, target = _chosen(place, list(item), columns)
        if isinstance(inputs, str):
            return item[inputs], item[target]
        return torch.tensor([float(item[name]) for name in inputs], dtype=torch.float64), item[target]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        found = f"{len(item)} values" if isinstance(item, (tuple, list)) else type(item).__name__
        raise ValueError(f"{place} is {found}, accepted: a pair (input, target)")
    return item[0], item[1]


def _from_columns(argument: str, source: Any, columns: Columns | None) -> tuple[Any, Any, tuple[str, ...] | None]:
    """A Hugging Face data set, column by column."""
    inputs, target = _chosen(argument, source.column_names, columns)
    names = getattr(source.features[target], "names", None)
    y = list(source[target])
    classes = tuple(names) if names else None
    if isinstance(inputs, str):
        return stack(argument, list(source[inputs])), y, classes
    return np.stack([np.asarray(list(source[name]), dtype=np.float64) for name in inputs], 1), y, classes


def _chosen(place: str, names: Sequence[str], columns: Columns | None) -> Columns:
    """The columns of input and target: those asked for, or the ones of common names."""
    if columns is not None:
        if not isinstance(columns, (tuple, list)) or len(columns) != 2:
            raise ValueError(f"columns={columns!r}, accepted: the names of input and target, as in ('image', 'label')")
        wanted = [columns[0]] if isinstance(columns[0], str) else [*columns[0]]
        for name in (*wanted, columns[1]):
            if name not in names:
                raise ValueError(
                    f"columns={columns!r}: {place} has no {name!r}, accepted: {', '.join(map(str, names))}"
                )
        return columns[0], columns[1]
    target = [name for name in names if name in TARGETS]
    inputs = [name for name in names if name in INPUTS]
    if len(names) == 2 and len(target) == 1:
        inputs = [name for name in names if name not in target]
    if len(target) != 1 or len(inputs) != 1:
        raise ValueError(f"columns=None: {place} has {', '.join(map(str, names))}; name input and target by columns")
    return inputs[0], target[0]


def _class_names(source: Any) -> tuple[str, ...] | None:
    """The names a data set of torchvision knows, also inside torch's Subset."""
    while not hasattr(source, "classes") and hasattr(source, "dataset"):
        source = source.dataset
    classes = getattr(source, "classes", None)
    return tuple(map(str, classes)) if isinstance(classes, (tuple, list)) else None
