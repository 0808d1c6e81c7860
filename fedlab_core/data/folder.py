"""Any folder of images, one directory per class, as a data set."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps

from fedlab_core import check, files
from fedlab_core.data import cache
from fedlab_core.data.checks import ELSEWHERE
from fedlab_core.data.dataset import Dataset
from fedlab_core.data.statistics import channel_statistics, stratified_split
from fedlab_core.randomness import generator

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
MIXED = 64  # pixels: height and width when the images differ in size and none is asked for
LARGEST = 2048  # pixels: height and width of what is kept in memory
PIXELS = 89_478_485  # of one file: more are taken for a decompression bomb, as Pillow does
THEMSELVES = "put the images themselves there"
LAYOUT = "one directory of images per class, in train/ and test/ or directly in it"
PARTS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}

T = TypeVar("T")
R = TypeVar("R")
Entry = tuple[Path, tuple[int, int, int], int]  # file, (size, mtime, ctime), label


@check.checked
@dataclass(frozen=True)
class Listing:
    """What lies in an image folder: training files first, then those for validation, then those for testing.

    Attributes:
        stats: (size, mtime, ctime) per file.
        train, validation: how many files are for what.
        notes: what is used as what, and what is ignored.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    stats: tuple[tuple[int, int, int], ...]
    train: int
    validation: int
    classes: tuple[str, ...]
    notes: str


@check.checked
def image_folder(
    root: Path,
    path: str,
    size: Annotated[int, check.Within(1, LARGEST)] | None = None,
    channels: int | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Dataset:
    """Images of one directory per class, decoded once and kept in a cache.

    `train/`, `test/` and `val/` (also `validation/` or `valid/`) are used as they are called. Without `test/`, 20 % of
    every class of the training images (at least one where there are two) are drawn for testing, and `notes` says so.
    What is transparent is drawn on white.

    The cache lies in `.cache` of the data root, or in the user's cache folder where that is read-only, and is named by
    the content of the images, so changed images are decoded again; it may be deleted at any time. Files with another
    suffix than an image's and folders within a class are ignored and counted in `notes`.

    Args:
        root: data root.
        path: of the folder, absolute, from the home folder (~) or relative to `root`.
        size: height and width in pixels: the shorter side is resized to it and the centre cut out. Default: the size of
            the images if they all have one, else 64.
        channels: 1 for grey, 3 for colour. Default: 1 if all images are grey, else 3.
        seed: of the split.
        name: of the data set, by default `folder:path`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: an option out of range; no class, a class without images, a class in test/ or val/ that train/
            lacks; an empty, corrupt, huge or 16-bit image; a link to outside of the folder. Each is named.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels!r}, accepted: 1 (grey), 3 (colour) or None")
    if not path:
        raise ValueError(f"folder: needs a path, as in folder:photos, with {LAYOUT}")
    started, folder = time.time_ns(), root / files.expanded("path", path)
    files.inside(folder, root, ELSEWHERE)
    listing = _scan(folder, check.whole("seed", seed))
    folders = cache.cache_folders(root)
    key = _digest("stat 2", size, channels, listing.train, *zip(map(str, listing.files), listing.stats, strict=True))
    content = cache.read_index(folders, key)
    images = cache.read_images(folders, content) if content else None
    if images is None:
        content, height, width, channels = _content(listing, size, channels)
        images = cache.read_images(folders, content)
        if images is None:
            pixels = np.empty((len(listing.files), channels, height, width), np.uint8)
            for i, image in enumerate(_in_threads(lambda file: _decode(file, height, width, channels), listing.files)):
                pixels[i] = image
            x = torch.from_numpy(pixels)
            images = (x, *channel_statistics(x[: listing.train]))
            cache.write_images(folders, content, images)
        # A file changed within the clock's last tick may look unchanged later: trust only times safely past.
        if max(max(stat[1:]) for stat in listing.stats) < started - 2 * 10**9:
            cache.write_index(folders, key, content)
    x, mean, std = images
    counts = [listing.train, listing.validation, len(x) - listing.train - listing.validation]
    (x, held_x, test_x), (y, held_y, test_y) = x.split(counts), torch.tensor(listing.labels).split(counts)
    return Dataset(
        name=name or f"folder:{path}",
        kind="image",
        x=x,
        y=y,
        test_x=test_x,
        test_y=test_y,
        classes=listing.classes,
        mean=mean,
        std=std,
        notes=f"image folder {folder.name}{listing.notes}",
        validation_x=held_x if len(held_x) else None,
        validation_y=held_y if len(held_x) else None,
    )


def _scan(folder: Path, seed: int) -> Listing:
    if not folder.is_dir():
        raise FileNotFoundError(f"no image folder {folder}: put there {LAYOUT}")
    found = {part: [folder / name for name in names if (folder / name).is_dir()] for part, names in PARTS.items()}
    for several in found.values():
        if len(several) > 1:
            raise ValueError(f"{folder} has {' and '.join(f'{p.name}/' for p in several)}: keep one of them")
    places = {part: several[0] for part, several in found.items() if several}
    if places and "train" not in places:
        raise ValueError(f"{folder} has {next(iter(places.values())).name}/ but no train/: put there {LAYOUT}")
    train, classes, ignored = _classes(places.get("train", folder), folder)
    parts: dict[str, list[Entry]] = {"train": train, "validation": [], "test": []}
    for part, place in places.items():
        if part == "train":
            continue
        entries, names, more = _classes(place, folder)
        ignored += more
        for extra in sorted(set(names) - set(classes)):
            raise ValueError(f"class {extra!r} is in {place} but not in train/: put images in {folder}/train/{extra}")
        parts[part] = [(file, stat, classes.index(names[label])) for file, stat, label in entries]
    if places:
        ignored += [p.name for p in folder.iterdir() if p not in places.values() and not p.name.startswith(".")]
    notes = ""
    if ignored:
        notes += f", {len(ignored)} other files ignored ({', '.join(sorted(set(ignored))[:3])})"
    if "validation" in places:
        notes += f", {places['validation'].name}/ for validation"
    if not parts["test"]:
        y = torch.tensor([label for _, _, label in train])
        counts = torch.bincount(y, minlength=len(classes))
        per_class = ((counts + 2) // 5).clamp(min=1).minimum(counts - 1)
        kept, drawn = stratified_split(y, per_class, generator(seed, "folder split"))
        if not len(drawn):
            raise ValueError(f"{folder} has one image per class and none to test on: add images, or a test/ directory")
        parts["train"], parts["test"] = ([train[i] for i in chosen.tolist()] for chosen in (kept, drawn))
        notes += f", without test/: {len(drawn)} of the training images for testing, split by seed {seed}"
    files, stats, labels = zip(*(entry for entries in parts.values() for entry in entries), strict=True)
    return Listing(files, labels, stats, len(parts["train"]), len(parts["validation"]), classes, notes)


def _classes(place: Path, folder: Path) -> tuple[list[Entry], tuple[str, ...], list[str]]:
    """Every image in order, the class names, and the names of what is ignored."""
    inside = sorted(entry for entry in place.iterdir() if not entry.name.startswith((".", "__MACOSX")))
    directories = [entry for entry in inside if entry.is_dir()]
    if not directories:
        raise ValueError(f"{place} has no class: put there one directory of images per class")
    entries, ignored = [], [entry.name for entry in inside if not entry.is_dir()]
    for label, directory in enumerate(directories):
        files.inside(directory, folder, THEMSELVES)
        found = []
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            if os.path.splitext(entry.name)[1].lower() not in SUFFIXES or entry.name.startswith("."):
                ignored += [entry.name] * (not entry.name.startswith("."))
                continue
            if entry.is_symlink():
                files.inside(Path(entry.path), folder, THEMSELVES)
            if not (os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()):
                raise ValueError(f"{entry.path} is no ordinary file: replace or delete it")
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
    probe = size is None or channels is None
    hashes, shapes = zip(*_in_threads(lambda file: _hash(file, probe), listing.files), strict=True)
    if size is not None:
        height = width = size
    else:
        sizes = {shape[:2] for shape in shapes}
        height, width = sizes.pop() if len(sizes) == 1 else (MIXED, MIXED)
        if max(height, width) > LARGEST:
            raise ValueError(
                f"size=None: the images have {height} x {width} pixels, accepted: up to {LARGEST}; give size"
            )
    if channels is None:
        channels = max(shape[2] for shape in shapes)
    rules = "images on white", PIL.__version__, height, width, channels, listing.train
    return _digest(*rules, *hashes), height, width, channels


def _hash(file: Path, probe: bool) -> tuple[str, tuple[int, int, int]]:
    """SHA-256 of a file, and (height, width, channels) as its header says if `probe`, else zeros."""
    data = file.read_bytes()
    if not probe:
        return hashlib.sha256(data).hexdigest(), (0, 0, 0)
    with _opened(io.BytesIO(data), file) as image:
        width, height = image.size[::-1] if image.getexif().get(0x0112, 1) >= 5 else image.size  # on its side
        channels = 1 if image.mode in ("1", "L", "LA") else 3
    return hashlib.sha256(data).hexdigest(), (height, width, channels)


def _decode(file: Path, height: int, width: int, channels: int) -> np.ndarray:
    """One image, uint8 (channels, height, width): upright (EXIF), on white, resized (bilinear, antialiased), cut."""
    with _opened(file, file) as image:
        image.load()
        picture = ImageOps.exif_transpose(image)
        if picture.mode.startswith(("I", "F")):
            raise ValueError("more than 8 bits per channel; save it with 8")
        if picture.has_transparency_data:
            drawn = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
        picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)


@contextlib.contextmanager
def _opened(source: Path | io.BytesIO, file: Path) -> Iterator[Image.Image]:
    """An image whose size is looked at before it is decoded; whatever goes wrong within the block names the file."""
    try:
        with Image.open(source) as image:
            if image.width * image.height > PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, accepted: at most {PIXELS}")
            yield image
    except Exception as error:  # decoders raise whatever they like on broken files
        raise _corrupt(file, error) from error


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
