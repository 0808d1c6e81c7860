"""Decoded images on disk: one safetensors file per content, whole or absent, read into memory and checked."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from fedlab_core import files
from fedlab_core.check import checked
from fedlab_core.memory import packed

STALE = 24 * 3600  # seconds after which another process's unfinished file counts as abandoned

Images = tuple[Tensor, tuple[float, ...], tuple[float, ...]]  # pixels, mean and std of the training part


@checked
def cache_folders(root: Path) -> tuple[Path, ...]:
    """Where caches are looked for and written: `.cache` of the data root, then the user's cache folder if there is one.

    The second needs $XDG_CACHE_HOME or a home folder.
    """
    with contextlib.suppress(RuntimeError):  # there is no home
        user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return root / ".cache", Path(user) / "fedlab"
    return (root / ".cache",)


@checked
def read_images(folders: Iterable[Path], key: str) -> Images | None:
    """The images of that key, uint8 (n, channels, height, width), or None if there is no file whose checksum is right.

    They are copied into memory: a file that is cut off or changed later changes nothing and harms no reader.
    """
    for folder in folders:
        with contextlib.suppress(OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError):
            found = safetensors.torch.load(files.read(folder / f"{key}.safetensors"))
            if torch.equal(found["checksum"], _checksum(key, found)) and found["pixels"].dtype == torch.uint8:
                return found["pixels"], tuple(found["mean"].tolist()), tuple(found["std"].tolist())
    return None


@checked
def write_images(folders: Iterable[Path], key: str, images: Images) -> None:
    """Keep images for the next time. A cache that cannot be written to only costs time: the reason is warned of."""
    pixels, mean, std = images
    tensors = {"pixels": pixels.contiguous()}
    tensors |= {name: torch.tensor(values, dtype=torch.float64) for name, values in (("mean", mean), ("std", std))}
    _write(folders, f"{key}.safetensors", packed(tensors | {"checksum": _checksum(key, tensors)}))


def _checksum(key: str, tensors: dict[str, Tensor]) -> Tensor:
    """CRC-32 of everything that is kept, the key and the shape of the images included, as int64 (1,)."""
    crc = zlib.crc32(repr((key, tuple(tensors["pixels"].shape))).encode())
    for name in ("mean", "std", "pixels"):
        crc = zlib.crc32(np.ascontiguousarray(tensors[name].numpy()).data, crc)
    return torch.tensor([crc])


@checked
def read_index(folders: Iterable[Path], key: str) -> str | None:
    """The content key noted under a listing's key, or None."""
    for folder in folders:
        path = folder / f"{key}.json"
        with contextlib.suppress(OSError, ValueError, KeyError):
            noted = files.unseal(files.read(path, 10_000), path)
            if noted["listing"] == key:
                return str(noted["content"])
    return None


@checked
def write_index(folders: Iterable[Path], key: str, content: str) -> None:
    """Note which content a listing has, where that can be written."""
    _write(folders, f"{key}.json", files.seal({"listing": key, "content": content}))


def _write(folders: Iterable[Path], name: str, content: bytes) -> None:
    """Write a file into the first folder that takes it."""
    errors = []
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _clear(folder)
            return files.write(folder / name, content)
        except OSError as error:
            errors.append(str(error))
    warnings.warn(f"decoded images are not kept, so the next time takes as long: {'; '.join(errors)}", stacklevel=4)


def _clear(folder: Path) -> None:
    """Remove what other processes left unfinished long ago."""
    for pattern in ("*.tmp", ".*.part"):
        for old in folder.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > STALE:
                    old.unlink()
