"""Arguments of data sets and partitions: plain values of one type and range, or an error that says what is accepted."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlab_core import check

MOST_CLIENTS = 10_000_000  # more are refused: a list of their sizes alone would fill the memory
MOST_EXAMPLES = 100_000_000
MOST_CELLS = 50_000_000  # of a table of clients and classes


@check.checked
def check_clients(n: Any, clients: Any, least: Any = 1, name: str = "min_size") -> tuple[int, int]:
    """Plain `n` and `clients`, if `n` examples are enough for `clients` with `least` each, and memory is too.

    Raises:
        ValueError: they are not; says what is possible.
    """
    n, clients, least = check.whole("n", n), check.whole("clients", clients), check.whole(name, least)
    if least < 0:
        raise ValueError(f"{name}={least}: expected 0 or more")
    if clients < 1:
        raise ValueError(f"clients={clients}: expected 1 or more")
    if n < 1:
        raise ValueError(f"n={n}: expected at least one example")
    if clients * least > n:
        condition = "" if least == 1 else f" with {name}={least}"
        other = f", or {name} at most {n // clients}" if least > 1 and clients <= n else ""
        raise ValueError(f"clients={clients}: {n} examples make at most {n // least} clients{condition}{other}")
    for argument, value, most in (("clients", clients, MOST_CLIENTS), ("n", n, MOST_EXAMPLES)):
        if value > most:
            raise ValueError(f"{argument}={value}, accepted: at most {most}")
    return n, clients


@check.checked
def check_generator(generator: Any) -> None:
    """Refuse what cannot be drawn from.

    Raises:
        ValueError: no `torch.Generator`.
    """
    accepted = "a torch.Generator, such as randomness.generator(seed, 'partition')"
    check.instance("generator", generator, torch.Generator, accepted)


@check.checked
def check_cells(clients: check.Natural, num_classes: check.Natural) -> None:
    """Refuse a table of clients and classes that would fill the memory.

    Raises:
        ValueError: says how many clients are possible.
    """
    if clients * num_classes > MOST_CELLS:
        raise ValueError(
            f"clients={clients}: a table of {clients} clients and num_classes={num_classes} is too large, "
            f"accepted: at most {max(1, MOST_CELLS // num_classes)} clients"
        )


@check.checked
def part_of(name: str, size: Any, n: check.Natural) -> int:
    """How many of `n` training examples a share or a number of them is: at least one, and not all.

    Raises:
        ValueError: neither of these.
    """
    share = isinstance(size, Real) and 0 < float(size) < 1
    count: Any = round(float(size) * n) if share else size
    if isinstance(size, bool) or not (isinstance(count, Integral) and 1 <= int(count) < n):
        raise ValueError(f"{name}={size!r}, accepted: a share of 0 to 1, or 1 to {n - 1} of {n} training examples")
    return int(count)


@check.checked
def labels_of(labels: Any, name: str = "labels") -> Tensor:
    """One whole number per example, int64 (n,).

    Raises:
        ValueError: another type or shape, or no example.
    """
    if not isinstance(labels, Tensor):
        labels = whole_numbers(name, labels)
    if labels.ndim != 1 or labels.dtype != torch.int64 or not len(labels):
        shape = f"{tuple(labels.shape)} of {str(labels.dtype).removeprefix('torch.')}"
        raise ValueError(f"{name}: got {shape}, expected one int64 per example, (n,) with n at least 1")
    return labels


@check.checked
def whole_numbers(name: str, values: Any) -> Tensor:
    """int64 (n,) on the CPU from a tensor, an array or a list.

    Raises:
        ValueError: anything but whole numbers in one dimension.
    """
    try:
        tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:  # words, or lists of different lengths
        raise ValueError(f"{name}: {error}, accepted: whole numbers (n,)") from error
    if not tensor.numel() and tensor.ndim == 1:
        return torch.empty(0, dtype=torch.int64)
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} is {describe(tensor)}, accepted: whole numbers (n,)")
    return tensor.to("cpu", torch.int64)


@check.checked
def describe(tensor: Tensor) -> str:
    """Type and shape, as in "float32 (60, 8)"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
