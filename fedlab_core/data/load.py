"""From a name to a `Dataset`."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from . import builtin
from .dataset import Dataset

LOADERS = {"digits": builtin.digits}


def data_root(root: str | Path | None = None) -> Path:
    """Where data sets are looked for: the argument, else $FEDLAB_DATA, else `data/` of the repository."""
    if root is None:
        root = os.environ.get("FEDLAB_DATA") or Path(__file__).resolve().parents[2] / "data"
    return Path(root).expanduser().absolute()


def dataset_names() -> tuple[str, ...]:
    """The names `load_dataset` knows; any image folder is `folder:PATH` besides."""
    return tuple(LOADERS)


def load_dataset(name: str, root: str | Path | None = None, **options: Any) -> Dataset:
    """Load a data set by name.

    Args:
        name: one of `dataset_names()`.
        root: data root, see `data_root`.
        options: of the data set.

    Raises:
        ValueError: an unknown name or option.
    """
    if name not in LOADERS:
        raise ValueError(f"name must be one of {', '.join(dataset_names())}, got {name!r}")
    loader = LOADERS[name]
    known = [p for p in inspect.signature(loader).parameters if p != "root"]
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; it takes {', '.join(known) or 'none'}")
    return loader(**options)
