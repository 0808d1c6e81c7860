"""Decoded images on disk: one memory-mapped file per content, whole or absent, never half."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedlab_core.data.statistics import channel_statistics

MAGIC = b"fedlab images 1\n"
HEADER = 4096  # bytes before the pixels: one page, so that the mapping starts on a page
STALE = 24 * 3600  # seconds after which another process's unfinished file counts as abandoned

Images = tuple[Tensor, tuple[float, ...], tuple[float, ...]]  # pixels, mean and std of the training part


def cache_folders(root: Path) -> tuple[Path, ...]:
    """Where caches are looked for and written: `.cache` of the data root, then the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return root / ".cache", Path(user) / "fedlab"


def open_images(folders: Iterable[Path], key: str) -> Images | None:
    """Map the finished file of that key, or None if there is none, or none whose checksums are right.

    The pixels are mapped copy-on-write: uint8 (n, channels, height, width); writing to them changes no file.
    """
    for folder in folders:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return _open(folder / f"{key}.images")
    return None


def _open(path: Path) -> Images:
    with path.open("rb") as file:
        header = file.read(HEADER)
    magic, digest, text = header[: len(MAGIC)], header[len(MAGIC) :][:64], header[len(MAGIC) + 64 :].rstrip(b"\0")
    if magic != MAGIC or digest != hashlib.sha256(text).hexdigest().encode():
        raise ValueError(f"{path} has no valid header")
    entries = json.loads(text)
    shape = tuple(entries["shape"])
    if path.stat().st_size != HEADER + int(np.prod(shape)):
        raise ValueError(f"{path} is cut off")
    pixels = np.memmap(path, np.uint8, mode="c", offset=HEADER, shape=shape)
    if zlib.crc32(pixels.data) != entries["crc32"]:
        raise ValueError(f"{path} has changed")
    return torch.from_numpy(pixels), tuple(entries["mean"]), tuple(entries["std"])


def write_images(folders: Iterable[Path], key: str, images: Iterable[np.ndarray], train: int) -> Images:
    """Write images as they come, then publish the file in one step; any number of processes may do so at once.

    Args:
        folders: candidates; the first that can be written to is taken.
        key: names the content.
        images: uint8 (channels, height, width), all of one shape, the training images first.
        train: how many of them are for training: mean and std are theirs.

    Raises:
        OSError: none of the folders can be written to, or the disk is full.
    """
    folder = _writable(folders)
    with _published(folder / f"{key}.images") as temporary:
        with temporary.open("w+b") as file:
            file.seek(HEADER)
            crc, n, shape = 0, 0, ()
            for image in images:
                data = image.tobytes()
                crc, n, shape = zlib.crc32(data, crc), n + 1, image.shape
                file.write(data)
            file.flush()
            mean, std = channel_statistics(
                torch.from_numpy(np.memmap(temporary, np.uint8, mode="c", offset=HEADER, shape=(train, *shape)))
            )
            text = json.dumps({"shape": (n, *shape), "crc32": crc, "mean": mean, "std": std}).encode()
            file.seek(0)
            file.write(MAGIC + hashlib.sha256(text).hexdigest().encode() + text)
            file.flush()
            os.fsync(file.fileno())
    return _open(folder / f"{key}.images")


def read_index(folders: Iterable[Path], key: str) -> str | None:
    """The content key noted under a listing's key, or None."""
    for folder in folders:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads((folder / f"{key}.json").read_text())["content"])
    return None


def write_index(folders: Iterable[Path], key: str, content: str) -> None:
    """Note which content a listing has. An unwritable cache only costs time: the content is then read again."""
    with contextlib.suppress(OSError):
        with _published(_writable(folders) / f"{key}.json") as temporary:
            temporary.write_text(json.dumps({"content": content}))


def _writable(folders: Iterable[Path]) -> Path:
    folders = list(folders)
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    raise OSError(f"no room for decoded images: none of {', '.join(map(str, folders))} can be written to")


@contextlib.contextmanager
def _published(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and vanishes when it does not."""
    for old in path.parent.glob("*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > STALE:
                old.unlink()
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
