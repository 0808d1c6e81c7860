"""Recorded runs: JSON in `figures/`, and finished runs kept so that a killed study goes on where it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedlab_core import files
from fedlab_core.about import INSTALLED, ROOT

FIGURES = ROOT / "figures"
RUNS = Path("runs").absolute() if INSTALLED else ROOT / "runs"


class Stopped(Exception):
    """A run was asked to end before it was done."""


def recorded(name: str, folder: Path = FIGURES) -> Any:
    """What `figures/NAME.json` holds; None if there is no such file.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / f"{name}.json"
    try:
        return files.parse_any(files.read(path), path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{error}; record it again") from error


def once(key: str, make: Callable[[], dict[str, Any]], folder: Path | None) -> dict[str, Any]:
    """The result of `make()`, computed once per key and kept in a file of the folder; without a folder, just computed.

    The file is complete or absent, and a changed byte in it is an error.
    """
    if folder is None:
        return make()
    if (known := recorded(key, folder)) is not None:
        return known
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / f"{key}.json", files.seal(make()))
    return recorded(key, folder) or {}
