"""Data sets as experiments ask for them: a subset, scaled pixels, and one copy per process."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fedlab_core import files
from fedlab_core.check import Many, checked
from fedlab_core.data.dataset import Dataset
from fedlab_core.data.load import LOADERS, data_root, load_dataset
from fedlab_core.data.statistics import channel_statistics
from fedlab_core.data.vision import SOURCES

SCALINGS = {
    "standardised": "mean 0 and standard deviation 1 per channel, over the training images",
    "unit": "[0, 1]",
    "centred": "[-1/2, 1/2]",
}
"""Where models see the pixels."""
TICK = 2 * 10**9  # ns: a file changed this recently may change again without its times telling


@checked
def load_prepared(name: str, root: str | Path | None = None, options: Mapping[str, Any] | None = None) -> Dataset:
    """A data set by name, loaded again only if its files have changed.

    Args:
        name, root: see `load_dataset`.
        options: of the data set; besides these "scaling" is a key of `SCALINGS` ("standardise": False is how earlier
            files say "unit"), and in this order "first" takes that many training examples of each class, "tests" the
            first test examples, "pixels" averages larger images down to that height and width, "examples" takes a
            random subset of the training examples of that size, and "validation" sets that share or number of them
            aside, see `Dataset.with_validation`.

    Raises:
        ValueError: an unknown scaling, or one of a data set that has no pixels; and as `load_dataset`.
        FileNotFoundError: as `load_dataset`.
    """
    folder, text = data_root(root), json.dumps(dict(options or {}), sort_keys=True)
    stamps = tuple(sorted(_stamps(name, folder)))
    if any(max(times) > time.time_ns() - TICK for _, _, *times in stamps):
        return _prepared(name, folder, text)
    return _kept(name, LOADERS.get(name), folder, text, hash(stamps))


@lru_cache(maxsize=4)
def _kept(name: str, loader: Any, root: Path, options: str, stamp: int) -> Dataset:
    """`loader` and `stamp` only tell one state of a data set from another."""
    return _prepared(name, root, options)


def _prepared(name: str, root: Path, options: str) -> Dataset:
    chosen = json.loads(options)
    examples, aside = chosen.pop("examples", None), chosen.pop("validation", None)
    scaling, first, tests, pixels = (chosen.pop(option, None) for option in ("scaling", "first", "tests", "pixels"))
    if not chosen.pop("standardise", True):
        scaling = scaling or "unit"
    if scaling not in (None, *SCALINGS):
        raise ValueError(f"scaling={scaling!r}, accepted: {list(SCALINGS)}")
    dataset = load_dataset(name, root, **chosen)
    if first is not None:
        dataset = first_of_each_class(dataset, first)
    if tests is not None:
        dataset = replace(dataset, test_x=dataset.test_x[:tests], test_y=dataset.test_y[:tests], test_groups=None)
    if pixels is not None:
        dataset = averaged(dataset, pixels)
    if scaling in ("unit", "centred"):
        if not dataset.mean:
            raise ValueError(f"scaling={scaling!r}: {name} has no pixels, accepted: none")
        channels = len(dataset.mean)
        dataset = replace(dataset, mean=(0.5 * (scaling == "centred"),) * channels, std=(1.0,) * channels)
    dataset = dataset if examples is None else dataset.subset(examples)
    return dataset if aside is None else dataset.with_validation(aside)


@checked
def first_of_each_class(data: Dataset, count: Many) -> Dataset:
    """The data with the first `count` training examples of each class; the test set is kept."""
    chosen = torch.cat([(data.y == label).nonzero()[:count, 0] for label in range(data.num_classes)]).sort().values
    notes = f"{data.notes}; the first {count} training examples of each class"
    return replace(data, x=data.x[chosen], y=data.y[chosen], groups=None, group_names=(), notes=notes)


@checked
def averaged(data: Dataset, pixels: int) -> Dataset:
    """The data with its images averaged down over squares, and standardised anew.

    Args:
        pixels: height and width afterwards.

    Raises:
        ValueError: the images are not bytes, not squares, or no whole number of times as large.
    """
    shape = data.input_shape
    if data.x.dtype != torch.uint8 or len(shape) != 3 or pixels < 1 or shape[1] % pixels or shape[2] != shape[1]:
        raise ValueError(f"pixels={pixels}: {data.name} has inputs {tuple(shape)}, accepted: divisors of square images")
    factor = shape[1] // pixels
    x, test_x = (F.avg_pool2d(part.float(), factor).round().to(torch.uint8) for part in (data.x, data.test_x))
    mean, std = channel_statistics(x)
    notes = f"{data.notes}; averaged over {factor}x{factor} pixels"
    return replace(data, x=x, test_x=test_x, mean=mean, std=std, notes=notes)


def _stamps(name: str, root: Path) -> Iterator[tuple[str, int, int, int]]:
    """(path, bytes, time of change, time of the entry's change) of every file that the data set may be read from."""
    if name.startswith(("folder:", "text:")):
        places = [root / files.expanded("dataset", name.partition(":")[2])]
    elif name in SOURCES:
        places = [root / SOURCES[name][1], root / name]
    else:
        places = list(root.glob(f"*{name}*"))
    found = [str(place) for place in places if place.is_file()]
    found += [os.path.join(at, file) for place in places for at, _, names in os.walk(place) for file in names]
    for file in found:
        stat = os.stat(file)
        yield file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
