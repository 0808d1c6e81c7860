"""Loading a `Dataset` by its name."""

from __future__ import annotations

import inspect
import os
from functools import partial
from pathlib import Path
from typing import Any

from fedlab_core import check, files
from fedlab_core.about import INSTALLED, ROOT
from fedlab_core.data import builtin, text, vision
from fedlab_core.data.dataset import Dataset
from fedlab_core.data.folder import image_folder
from fedlab_core.data.scenes import scenes
from fedlab_core.memory import fits

LOADERS = {
    "digits": builtin.digits,
    "letters": builtin.letters,
    "scenes": scenes,
    "python_docs": text.python_docs,
    "mnist": vision.mnist,
    "fashion_mnist": vision.fashion_mnist,
    "cifar10": vision.cifar10,
    "cifar100": vision.cifar100,
    "shakespeare": text.shakespeare,
    "caltech101": partial(image_folder, path="caltech101", size=64, name="caltech101"),
}


@check.checked
def data_root(root: str | Path | None = None) -> Path:
    """Where data sets are looked for: the argument, else $FEDLAB_DATA, else `data/` of the clone; absolute.

    Without a clone, where the package was installed from a wheel, it is `~/.cache/fedlab_core`.
    """
    if root is None:
        root = os.environ.get("FEDLAB_DATA") or ("~/.cache/fedlab_core" if INSTALLED else ROOT / "data")
    return files.expanded("root", root).absolute()


def dataset_names() -> tuple[str, ...]:
    """The names `load_dataset` knows; any image folder is `folder:PATH` and any text file `text:PATH` besides."""
    return tuple(LOADERS)


@check.checked
def missing_data(name: str, root: str | Path | None = None) -> str:
    """What a data set lacks before it loads without a download: "" for nothing, else a sentence saying what goes where.

    Only looks whether the files are there, so it is quick; reading them is `load_dataset`'s work.

    Raises:
        ValueError: an unknown name.
    """
    loader, path = _loader(name), data_root(root)
    if name in vision.SOURCES:
        return vision.missing(name, path)
    if name == "shakespeare":
        return text.missing_shakespeare(path)
    if name.startswith("text:"):
        return text.missing_text(path, name.removeprefix("text:"))
    if isinstance(loader, partial):
        folder = path / files.expanded("path", loader.keywords["path"])
        return "" if folder.is_dir() else f"{name} needs the image folder {folder} (or set $FEDLAB_DATA to its parent)"
    return ""


@check.checked
def load_dataset(name: str, root: str | Path | None = None, **options: Any) -> Dataset:
    """Load a data set by name.

    No download: "digits"; "letters" (options `size`, `per_class`, `test_per_class`, `seed`); "scenes" (`split`,
    `per_class`, `test_per_class`, `seed`); "python_docs" (`length`).
    From the data root, else downloaded unless `download=False`: "mnist", "fashion_mnist", "cifar10", "cifar100".
    From the data root: "shakespeare" (`length`); "caltech101" and any image folder "folder:PATH", PATH absolute or
    relative to the data root, "~" for the home folder (`size`, `channels`, `seed`); any text file "text:PATH"
    (`length`, `clients`).

    Args:
        name: one of `dataset_names()`, "folder:PATH" or "text:PATH".
        root: data root, see `data_root`.
        options: of the data set; the loaders' docstrings say what they mean.

    Raises:
        ValueError: an unknown name or option, or a corrupt file, which is named.
        FileNotFoundError: missing data; the message says which file goes where.
    """
    loader = _loader(name)
    parameters = inspect.signature(loader).parameters
    known = [option for option in parameters if option not in ("root", "path", "name")]
    for option in options:
        if option not in known:
            own = ", ".join(known) or "none"
            raise ValueError(
                f"{name} has no option {option!r}; it takes {own}, in an experiment also examples, validation, scaling"
            )
    if "root" in parameters:
        options["root"] = data_root(root)
    with fits(dataset=name, **options):
        dataset: Dataset = loader(**options)  # a partial's own keywords give way
        dataset.check()
    return dataset


def _loader(name: str) -> Any:
    check.text("name", name)
    if name.startswith("text:"):
        return partial(text.text_file, path=name.removeprefix("text:"))
    if name.startswith("folder:"):
        return partial(image_folder, path=name.removeprefix("folder:"))
    if name not in LOADERS:
        raise ValueError(f"dataset={name!r}, accepted: {', '.join(dataset_names())}, folder:PATH or text:PATH")
    return LOADERS[name]
