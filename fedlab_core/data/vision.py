"""MNIST, Fashion-MNIST and CIFAR: found in the data root, or downloaded into it with a progress bar."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import socket
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlab_core import files
from fedlab_core.check import checked
from fedlab_core.data.checks import ELSEWHERE
from fedlab_core.data.dataset import Dataset
from fedlab_core.data.folder import image_folder
from fedlab_core.data.statistics import channel_statistics

IDX = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
# name -> (torchvision class, folder in the data root, files in it)
SOURCES = {
    "mnist": ("MNIST", "MNIST/raw", IDX),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw", IDX),
    "cifar10": ("CIFAR10", "cifar-10-batches-py", BATCHES),
    "cifar100": ("CIFAR100", "cifar-100-python", ("train", "test", "meta")),
}
MD5 = {  # of the unpacked files; torchvision knows those of CIFAR and of the compressed files
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion_mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
FULL = (60_000, 60_000, 10_000, 10_000)  # examples in the files of `IDX`
AGAIN = "delete it to download it again, or replace it"
TIMEOUT = 30  # seconds without a byte before a download counts as failed


@checked
def mnist(root: Path, download: bool = True) -> Dataset:
    """MNIST: 60,000 / 10,000 handwritten digits, 1 x 28 x 28. Errors as in `_idx`."""
    return _idx("mnist", root, download, tuple("0123456789"))


@checked
def fashion_mnist(root: Path, download: bool = True) -> Dataset:
    """Fashion-MNIST: 60,000 / 10,000 articles of clothing, 1 x 28 x 28. Errors as in `_idx`."""
    return _idx("fashion_mnist", root, download)


@checked
def cifar10(root: Path, download: bool = True) -> Dataset:
    """CIFAR-10: 50,000 / 10,000 photos of 10 classes, 3 x 32 x 32. Errors as in `_cifar` and `image_folder`.

    Where the original files are not in the data root but an image folder `cifar10/` is, that is taken, and `notes`
    begins with "CIFAR-10 (JPEG)": lossily compressed, so not the original pixels.
    """
    if _absent("cifar10", root) and not (root / "cifar-10-python.tar.gz").is_file() and (root / "cifar10").is_dir():
        dataset = image_folder(root, "cifar10", size=32, channels=3, name="cifar10")
        return dataclasses.replace(dataset, notes=f"CIFAR-10 (JPEG), {dataset.notes}")
    return _cifar("cifar10", root, download)


@checked
def cifar100(root: Path, download: bool = True) -> Dataset:
    """CIFAR-100: 50,000 / 10,000 photos of 100 fine classes, 3 x 32 x 32. Errors as in `_cifar`."""
    return _cifar("cifar100", root, download)


@checked
def missing(name: str, root: Path) -> str:
    """Empty if the data set is in the data root, else the sentence that says what goes where."""
    absent = _absent(name, root)
    if not absent or (name == "cifar10" and (root / "cifar10").is_dir()):
        return ""
    folder = root / SOURCES[name][1]
    folders = ", or an image folder with train/ and test/ at " + str(root / "cifar10") if name == "cifar10" else ""
    return (
        f"{name} is not in the data root: {folder / absent[0]} is missing; put {', '.join(SOURCES[name][2])} into "
        f"{folder}{folders} (or set $FEDLAB_DATA to the data root)"
    )


def _absent(name: str, root: Path) -> list[str]:
    return [file for file in SOURCES[name][2] if not (root / SOURCES[name][1] / file).is_file()]


def _idx(name: str, root: Path, download: bool, classes: tuple[str, ...] | None = None) -> Dataset:
    """A data set in the IDX format of MNIST, read from `raw/` and from nowhere else.

    Files with the original number of examples must be the originals, byte for byte; another number is said in `notes`.

    Raises:
        FileNotFoundError: a file is missing, and downloading is not wanted or failed.
        ValueError: a file is cut off, changed or no IDX file, or images and labels do not match.
    """
    source = _found(name, root, download)
    folder = root / SOURCES[name][1]
    arrays = [_idx_array(folder / file, 3 if "images" in file else 1) for file in IDX]
    for file, array, full, md5 in zip(IDX, arrays, FULL, MD5[name], strict=True):
        if len(array) == full and hashlib.md5((folder / file).read_bytes(), usedforsecurity=False).hexdigest() != md5:
            raise ValueError(f"{folder / file} is corrupt (its MD5 is not {md5}): {AGAIN}")
    for k in (0, 2):
        if len(arrays[k]) != len(arrays[k + 1]):
            pair = f"{IDX[k]} and {IDX[k + 1]}"
            raise ValueError(f"{pair} in {folder} differ in their number of examples: replace both")
    counts = len(arrays[0]), len(arrays[2])
    label = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}[name]
    notes = label if counts == FULL[::2] else f"{label}, not the full set: {counts[0]} / {counts[1]} examples"
    x, y, test_x, test_y = (torch.from_numpy(array) for array in arrays)
    images, labels = [x[:, None], test_x[:, None]], [y.long(), test_y.long()]
    return _dataset(name, images, labels, classes or tuple(source.classes), notes)


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes, once its length agrees with its header."""
    data = path.read_bytes()
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path} is no IDX file of {dimensions} dimensions: {AGAIN}")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    expected = start + math.prod(shape)
    if len(data) != expected:
        raise ValueError(f"{path} has {len(data):,} bytes instead of {expected:,}: {AGAIN}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def _cifar(name: str, root: Path, download: bool) -> Dataset:
    """A data set in CIFAR's Python format, whose every file torchvision holds to its MD5 before reading it.

    Raises:
        FileNotFoundError: a file is missing, and downloading is not wanted or failed.
        ValueError: a file is not the original, byte for byte.
    """
    from torchvision.datasets.utils import check_integrity

    source = _found(name, root, download)
    folder = root / SOURCES[name][1]
    for file, md5 in (*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])):
        if not check_integrity(folder / file, md5):
            raise ValueError(f"{folder / file} is corrupt (its MD5 is not {md5}): {AGAIN}")
    parts = [source(str(root), train=train) for train in (True, False)]
    images = [torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))) for part in parts]
    labels = [torch.as_tensor(part.targets, dtype=torch.int64) for part in parts]
    return _dataset(name, images, labels, tuple(parts[0].classes), name.upper().replace("CIFAR", "CIFAR-"))


def _found(name: str, root: Path, download: bool) -> Any:
    """torchvision's class for the data set, once all its files are in the data root."""
    for file in SOURCES[name][2]:
        files.inside(root / SOURCES[name][1] / file, root, ELSEWHERE)
    sentence = missing(name, root)
    if sentence and not download:
        raise FileNotFoundError(sentence)
    from torchvision import datasets

    source = getattr(datasets, SOURCES[name][0])
    if sentence:
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none: a silent connection would hang for ever
        try:
            source(str(root), download=True)
        except Exception as error:  # no network, a full disk, an error page: the files are not there
            raise FileNotFoundError(f"{sentence}. Downloading it failed: {error}") from error
        finally:
            socket.setdefaulttimeout(timeout)
    return source


def _dataset(name: str, images: list[Tensor], labels: list[Tensor], classes: tuple[str, ...], notes: str) -> Dataset:
    """A data set from images, uint8 (n, channels, height, width), and labels, int64 (n,), of both parts."""
    (x, test_x), (y, test_y) = images, labels
    for part in labels:
        if len(part) and not 0 <= int(part.min()) <= int(part.max()) < len(classes):
            raise ValueError(f"{name} has labels outside 0..{len(classes) - 1}: replace its files")
    mean, std = channel_statistics(x)
    return Dataset(
        name=name,
        kind="image",
        x=x,
        y=y,
        test_x=test_x,
        test_y=test_y,
        classes=classes,
        mean=mean,
        std=std,
        notes=notes,
    )
