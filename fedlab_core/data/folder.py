"""Any folder of images, one directory per class, as a data set."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from fedlab_core.data import cache
from fedlab_core.data.dataset import Dataset
from fedlab_core.data.statistics import stratified_split
from fedlab_core.randomness import generator

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
MIXED = 64  # pixels: height and width when the images differ in size and none is asked for
LAYOUT = "one directory of images per class, in train/ and test/ or directly in it"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Listing:
    """What lies in an image folder: training files first, `stats` = (size, mtime, ctime) per file."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    stats: tuple[tuple[int, int, int], ...]
    train: int
    classes: tuple[str, ...]
    ignored: int


def image_folder(
    root: Path, path: str, size: int | None = None, channels: int | None = None, seed: int = 0, name: str | None = None
) -> Dataset:
    """Images of one directory per class, decoded once into a memory-mapped file.

    With `train/` and `test/` both are used as they are; without `test/`, 20 % of every class (at least one image where
    there are two) are drawn for testing. The decoded file lies in `.cache` of the data root, or in the user's cache
    folder where that is read-only, and is named by the content of the images, so changed images are decoded again; it
    may be deleted at any time. Files with another suffix than an image's are ignored and counted in `notes`.

    Args:
        root: data root.
        path: of the folder, absolute or relative to `root`.
        size: height and width in pixels: the shorter side is resized to it and the centre cut out. Default: the size of
            the images if they all have one, else 64.
        channels: 1 for grey, 3 for colour. Default: 1 if all images are grey, else 3.
        seed: of the split.
        name: of the data set, by default `folder:path`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: an option out of range; no class, a class without images, a class in test/ that train/ lacks; an
            empty, corrupt or 16-bit image. Each is named.
        OSError: there is no room for the decoded images.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
    if not path:
        raise ValueError(f"folder: needs a path, as in folder:photos, with {LAYOUT}")
    started = time.time_ns()
    listing = _scan(root / path, seed)
    folders = cache.cache_folders(root)
    key = _digest("stat", size, channels, listing.train, *zip(map(str, listing.files), listing.stats, strict=True))
    content = cache.read_index(folders, key)
    images = cache.open_images(folders, content) if content else None
    if images is None:
        content, height, width, channels = _content(listing, size, channels)
        images = cache.open_images(folders, content)
        if images is None:
            decoded = _in_threads(lambda file: _decode(file, height, width, channels), listing.files)
            images = cache.write_images(folders, content, decoded, listing.train)
        # A file changed within the clock's last tick may look unchanged later: trust only times safely past.
        if max(max(stat[1:]) for stat in listing.stats) < started - 2 * 10**9:
            cache.write_index(folders, key, content)
    x, mean, std = images
    y = torch.tensor(listing.labels)
    notes = f"image folder {Path(path).name}"
    if listing.ignored:
        notes += f", {listing.ignored} other files ignored"
    if not _has_test(root / path):
        notes += f", split by seed {seed}"
    return Dataset(
        name=name or f"folder:{path}",
        kind="image",
        x=x[: listing.train],
        y=y[: listing.train],
        test_x=x[listing.train :],
        test_y=y[listing.train :],
        classes=listing.classes,
        mean=mean,
        std=std,
        notes=notes,
    )


def _has_test(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def _scan(folder: Path, seed: int) -> Listing:
    if not folder.is_dir():
        raise FileNotFoundError(f"no image folder {folder}: put there {LAYOUT}")
    if (folder / "test").is_dir() and not (folder / "train").is_dir():
        raise ValueError(f"{folder} has test/ but no train/: put there {LAYOUT}")
    train, classes, ignored = _classes(folder / "train" if (folder / "train").is_dir() else folder)
    if _has_test(folder):
        test, test_classes, more = _classes(folder / "test")
        for extra in sorted(set(test_classes) - set(classes)):
            raise ValueError(
                f"class {extra!r} is in {folder}/test but not in train/: put images in {folder}/train/{extra}"
            )
        test = [(file, stat, classes.index(test_classes[label])) for file, stat, label in test]
        entries, n_train, ignored = train + test, len(train), ignored + more
    else:
        y = torch.tensor([label for _, _, label in train])
        counts = torch.bincount(y, minlength=len(classes))
        per_class = ((counts + 2) // 5).clamp(min=1).minimum(counts - 1)
        parts = stratified_split(y, per_class, generator(seed, "folder split"))
        if not len(parts[1]):
            raise ValueError(f"{folder} has one image per class and none to test on: add images, or a test/ directory")
        entries, n_train = [train[i] for part in parts for i in part.tolist()], len(parts[0])
    files, stats, labels = zip(*entries, strict=True)
    return Listing(files, labels, stats, n_train, classes, ignored)


def _classes(folder: Path) -> tuple[list[tuple[Path, tuple[int, int, int], int]], tuple[str, ...], int]:
    """(file, stat, label) of every image in order, the class names, and the number of files ignored."""
    directories = sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith((".", "__MACOSX")))
    if not directories:
        raise ValueError(f"{folder} has no class: put there one directory of images per class")
    entries, ignored = [], 0
    for label, directory in enumerate(directories):
        found = []
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            if os.path.splitext(entry.name)[1].lower() not in SUFFIXES or entry.name.startswith("."):
                ignored += not entry.name.startswith(".")
                continue
            stat = entry.stat()
            if stat.st_size == 0:
                raise ValueError(f"{entry.path} is empty (0 bytes): replace or delete it")
            found.append((Path(entry.path), (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns), label))
        if not found:
            kinds = " ".join(sorted(SUFFIXES))
            raise ValueError(f"class {directory.name!r} has no image: put some in {directory} ({kinds})")
        entries += found
    return entries, tuple(directory.name for directory in directories), ignored


def _content(listing: Listing, size: int | None, channels: int | None) -> tuple[str, int, int, int]:
    """Key of the decoded images, from the bytes of every file; their height, width and channels."""
    import PIL

    probe = size is None or channels is None
    hashes, shapes = zip(*_in_threads(lambda file: _hash(file, probe), listing.files), strict=True)
    if size is not None:
        height = width = size
    else:
        sizes = {shape[:2] for shape in shapes}
        height, width = sizes.pop() if len(sizes) == 1 else (MIXED, MIXED)
    if channels is None:
        channels = max(shape[2] for shape in shapes)
    return _digest("images", PIL.__version__, height, width, channels, listing.train, *hashes), height, width, channels


def _hash(file: Path, probe: bool) -> tuple[str, tuple[int, int, int]]:
    """SHA-256 of a file, and (height, width, channels) as its header says if `probe`, else zeros."""
    data = file.read_bytes()
    if not probe:
        return hashlib.sha256(data).hexdigest(), (0, 0, 0)
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size[::-1] if image.getexif().get(0x0112, 1) >= 5 else image.size  # on its side
            channels = 1 if image.mode in ("1", "L") else 3
    except Exception as error:  # decoders raise whatever they like on broken files
        raise _corrupt(file, error) from error
    return hashlib.sha256(data).hexdigest(), (height, width, channels)


def _decode(file: Path, height: int, width: int, channels: int) -> np.ndarray:
    """One image, uint8 (channels, height, width): upright (EXIF), resized (bilinear, antialiased), cut."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            image.load()
            picture = ImageOps.exif_transpose(image)
            if picture.mode.startswith(("I", "F")):
                raise ValueError("more than 8 bits per channel; save it with 8")
            picture = picture.convert("L" if channels == 1 else "RGB")
    except Exception as error:
        raise _corrupt(file, error) from error
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)


def _corrupt(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} cannot be decoded ({error}): replace or delete it")


def _in_threads(function: Callable[[T], R], items: Iterable[T], chunk: int = 64) -> Iterator[R]:
    """`map` on two threads, in order, with a bounded number of results waiting."""
    items = list(items)
    chunks = [items[i : i + chunk] for i in range(0, len(items), chunk)]
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(lambda part: [function(i) for i in part], part) for part in chunks[:4]]
        for part in [*chunks[4:], *[None] * len(waiting)]:
            yield from waiting.pop(0).result()
            if part is not None:
                waiting.append(pool.submit(lambda part: [function(i) for i in part], part))


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:32]
