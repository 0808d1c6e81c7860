"""What every data set must fulfil. Each check raises a ValueError that names the argument, its value and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedlab_core import check
from fedlab_core.check import Natural
from fedlab_core.data.arguments import describe
from fedlab_core.data.measures import IGNORE

KINDS = ("image", "text", "table")
ELSEWHERE = "put the files themselves there, or set $FEDLAB_DATA to the folder that holds them"
"""What to do about a link out of the data root."""
FLOATS = (torch.float32, torch.float64)
INPUTS = {
    "image": "uint8, float32 or float64 of shape (n, channels, height, width)",
    "text": "int64 of shape (n, T)",
    "table": "float32 or float64 of shape (n, features), with any further dimensions between the two",
}


@check.checked
def check_kind(kind: object) -> None:
    """A known kind of data."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")


@check.checked
def check_tensor(argument: str, value: object) -> None:
    """An ordinary tensor: dense, and no part of a computation that autograd follows."""
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise ValueError(
            f"{argument} is a {kind}, accepted: a torch.Tensor; Dataset.from_arrays takes numpy arrays and lists"
        )
    if value.layout != torch.strided or value.requires_grad:
        what = "requires_grad=True" if value.requires_grad else f"layout={value.layout}"
        raise ValueError(f"{argument} has {what}, accepted: a dense tensor without gradient, as from .detach()")


@check.checked
def check_part(data: Any, before: str, part: str, x: Any, y: Any, groups: Any) -> None:
    """Everything about a part: "training" (its arguments begin with ""), "validation" or "test".

    Args:
        data: the `Dataset` it belongs to.

    Raises:
        ValueError: the first thing that is wrong.
    """
    given = [("x", x), ("y", y)]
    for argument, value in reversed(given) if x is None else given:  # the one that is there is judged first
        check_tensor(f"{before}{argument}", value)
    check_inputs(f"{before}x", part, x, data.kind, data.x)
    check_targets(f"{before}y", part, y, x, data.kind, data.classes, data.loss is not None)
    if y.dtype != data.y.dtype or y.shape[1:] != data.y.shape[1:]:
        raise ValueError(f"{part} y must be like y={describe(data.y)}, got {before}y={describe(y)}")
    if groups is not None:
        check_tensor(f"{before}groups", groups)
        if groups.dtype != torch.int64 or groups.shape != x.shape[:1]:
            raise ValueError(f"{part} groups must be int64 of shape ({len(x)},), got {before}groups={describe(groups)}")


@check.checked
def check_values(data: Any, before: str, part: str, x: Tensor, y: Tensor, groups: Tensor | None) -> None:
    """The values of a part whose types and shapes are right, see `check_part`.

    Raises:
        ValueError: the first value that is wrong.
    """
    for argument, values in (("x", x), ("y", y)):
        if values.is_floating_point():
            check_finite(f"{before}{argument}", part, values)
    if data.classes and not y.is_floating_point():
        check_labels(f"{before}y", part, y, data.classes)
        if data.kind == "text" and y.ndim == 2 and data.loss is None:  # next characters: one vocabulary for both
            check_labels(f"{before}x", part, x, data.classes)
    if groups is not None and data.group_names:
        check_groups(f"{before}groups", part, groups, data.group_names)


@check.checked
def check_inputs(argument: str, part: str, x: Tensor, kind: str, like: Tensor) -> None:
    """Type, shape and values of the inputs of a part ("training", "test" or "validation").

    Args:
        like: the training inputs, whose type and example shape all parts share.
    """
    dtypes = {"image": (torch.uint8, *FLOATS), "text": (torch.int64,), "table": FLOATS}[kind]
    shaped = x.ndim >= 2 if kind == "table" else x.ndim == {"image": 4, "text": 2}[kind]
    if x.dtype not in dtypes or not shaped or 0 in x.shape[1:]:
        raise ValueError(f"{part} x must be {INPUTS[kind]} for kind={kind!r}, got {argument}={describe(x)}")
    if x.dtype != like.dtype:
        raise ValueError(f"{part} and training x must be of one type, got {argument}={describe(x)}, x={describe(like)}")
    if x.shape[1:] != like.shape[1:]:
        shape = f"(n, {', '.join(map(str, like.shape[1:]))}) as in training"
        raise ValueError(f"{part} x must be of shape {shape}, got {argument}={describe(x)}")
    if not len(x) and part != "validation":
        raise ValueError(f"{part} x must have at least one example, got {argument}={describe(x)}")


@check.checked
def check_targets(
    argument: str, part: str, y: Tensor, x: Tensor, kind: str, classes: Sequence[str], own_loss: bool
) -> None:
    """Type, shape and values of the targets that belong to the inputs `x`."""
    if y.shape[:1] != x.shape[:1]:
        raise ValueError(f"{part} y must be as long as its x, {len(x)} examples, got {argument}={describe(y)}")
    if own_loss:
        if y.dtype not in (torch.int64, *FLOATS):
            raise ValueError(f"{part} y must be int64, float32 or float64, got {argument}={describe(y)}")
    else:
        if y.is_floating_point():
            raise ValueError(
                f"{part} y must be int64 class indices for cross-entropy, got {argument}={describe(y)}; "
                "for regression give loss='mse' or a function"
            )
        shapes = [tuple(x.shape[:1])] + ([tuple(x.shape)] if kind == "text" else [])
        if y.dtype != torch.int64 or tuple(y.shape) not in shapes:
            accepted = " or ".join(map(str, shapes))
            raise ValueError(f"{part} y must be int64 of shape {accepted}, got {argument}={describe(y)}")
        if not classes:
            raise ValueError("classes=(): accepted is one name per class")


@check.checked
def check_labels(argument: str, part: str, y: Tensor, classes: Sequence[str]) -> None:
    """Labels from 0 to the number of classes - 1, or -100 for targets that count nowhere."""
    if y.is_meta or not y.numel():  # without values
        return
    counted = y[y != IGNORE]
    if not len(counted):
        raise ValueError(f"{part} y must have a target that counts, got {argument} with nothing but {IGNORE}")
    low, high = int(counted.min()), int(counted.max())
    if not 0 <= low <= high < len(classes):
        hint = "; subtract 1, labels start at 0" if low == 1 and high == len(classes) else ""
        raise ValueError(
            f"{part} y must be between 0 and {len(classes) - 1} ({len(classes)} classes) or {IGNORE} (padding), "
            f"got {argument} from {low} to {high}{hint}"
        )


@check.checked
def check_finite(argument: str, part: str, values: Tensor) -> None:
    """No NaN and no infinity; the message says how many there are and where the first is."""
    for start in range(0, 0 if values.is_meta else len(values), 4096):
        bad = ~values[start : start + 4096].isfinite()
        if bool(bad.any()):
            where = bad.nonzero()[0].tolist()
            value = float(values[start + where[0]][tuple(where[1:])])
            where[0] += start
            count = int((~values.isfinite()).sum())
            name = argument.removeprefix("test_").removeprefix("validation_")
            raise ValueError(
                f"{part} {name} must be finite, got {argument}[{', '.join(map(str, where))}]={value} "
                f"and {count - 1} more like it: replace or leave out those examples"
            )


@check.checked
def check_groups(argument: str, part: str, groups: Tensor, names: Sequence[str]) -> None:
    """Natural clients that have a name."""
    if len(groups) and not groups.is_meta and not 0 <= int(groups.min()) <= int(groups.max()) < len(names):
        raise ValueError(
            f"{part} groups must be between 0 and {len(names) - 1}, the last of group_names, "
            f"got {argument} from {int(groups.min())} to {int(groups.max())}"
        )


@check.checked
def check_statistics(mean: Sequence[float], std: Sequence[float], entries: Natural, optional: bool) -> None:
    """One finite mean and one positive standard deviation for each channel or feature."""
    lengths = {entries, 0} if optional else {entries}
    if len(mean) != len(std) or len(mean) not in lengths:
        accepted = f"{entries} entries each" + (" or none" if optional and entries else "")
        raise ValueError(f"mean and std must have {accepted}, got mean={_short(mean)} and std={_short(std)}")
    if not all(abs(m) < float("inf") for m in mean) or not all(0 < s < float("inf") for s in std):
        raise ValueError(f"mean and std must be finite, std > 0, got mean={_short(mean)} and std={_short(std)}")


@check.checked
def check_names(data: Any) -> None:
    """The texts of a `Dataset`, and its tuples of names."""
    for argument in ("name", "notes"):
        check.text(argument, getattr(data, argument))
    for argument in ("classes", "group_names"):
        names = getattr(data, argument)
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise check.refuse(argument, names, "a tuple of names, such as ('cat', 'dog')")


@check.checked
def check_measures(loss: object, metrics: object) -> None:
    """Functions `(outputs, targets) -> values (n,)`."""
    if loss is not None and not callable(loss):
        raise ValueError(
            f"loss={loss!r}, accepted: None (cross-entropy), 'mse' or a function (outputs, targets) -> (n,)"
        )
    if not isinstance(metrics, Mapping) or not all(isinstance(k, str) and callable(m) for k, m in metrics.items()):
        raise ValueError(f"metrics={metrics!r}, accepted: a dict from names to functions (outputs, targets) -> (n,)")
    if taken := {"loss", "examples"} & metrics.keys():
        raise ValueError(f"metrics: the name {min(taken)!r} is taken by what is measured anyway, accepted: other names")


def _short(values: Sequence[float]) -> str:
    return str(values) if len(values) <= 8 else f"{len(values)} values from {min(values):g} to {max(values):g}"
