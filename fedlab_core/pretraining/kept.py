"""A start as a value, and the cache of the data root that keeps it under its recipe."""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from fedlab_core import files
from fedlab_core.check import Natural, checked
from fedlab_core.data import data_root
from fedlab_core.data.cache import cache_folders
from fedlab_core.memory import packed
from fedlab_core.state import State


@checked
@dataclass(frozen=True, eq=False)
class Start:
    """Initial weights for everything but the classifier.

    Attributes:
        name: what it is called in legends.
        state: tensors by name, without the classifier's; empty for the random start.
        recipe: how it was made, plain data.
        rounds, bytes: communication it took, by decentralised steps.
    """

    name: str
    state: State
    recipe: dict[str, Any]
    rounds: Natural = 0
    bytes: Natural = 0

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of names and values."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state.items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


@checked
def from_cache(recipe: Mapping[str, Any], name: str, root: str | Path | None = None) -> Start | None:
    """The start that was made by this recipe and kept, see `read`; None where there is none.

    Args:
        name: what it is called now.
        root: the data root; the cache lies in its `.cache/starts`.
    """
    found = (read(folder / _key(recipe), name) for folder in _folders(root))
    return next((start for start in found if start is not None), None)


@checked
def into_cache(start: Start, root: str | Path | None = None) -> None:
    """Keep a start for whoever asks for its recipe, see `write`."""
    write(_folders(root), _key(start.recipe), start)


def _key(recipe: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def _folders(root: str | Path | None) -> list[Path]:
    return [folder / "starts" for folder in cache_folders(data_root(root))]


@checked
def write(folders: Sequence[Path], key: str, start: Start) -> None:
    """Keep a start in the first of the folders that can be written to."""
    about = {"recipe": start.recipe, "rounds": start.rounds, "bytes": start.bytes, "fingerprint": start.fingerprint}
    for folder in folders:
        with contextlib.suppress(OSError):  # an unwritable cache only costs time
            folder.mkdir(parents=True, exist_ok=True)
            plain = {name: tensor.contiguous() for name, tensor in start.state.items()}
            files.write(folder / f"{key}.safetensors", packed(plain))
            files.write(folder / f"{key}.json", files.seal(about))  # last: a start with it is complete
            return


@checked
def read(path: Path, name: str) -> Start | None:
    """The start that `write` kept, its key the path's name; None where there is none.

    None also, with a warning that names the file, where one is not what was written: it is then learnt again.
    """
    about_file, state_file = path.with_suffix(".json"), path.with_suffix(".safetensors")
    if not about_file.exists():  # it is written last: without it there is no start yet
        return None
    file = about_file
    try:
        about = files.unseal(files.read(about_file), about_file)
        file = state_file
        state = safetensors.torch.load(files.read(state_file))
        start = Start(name, dict(sorted(state.items())), about["recipe"], about["rounds"], about["bytes"])
        if start.fingerprint == about["fingerprint"]:
            return start
        why = "its content is not what was written"
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        why = str(error)
    warnings.warn(f"{file}: damaged ({why}); the start {name!r} is learnt again", RuntimeWarning, stacklevel=2)
    return None
