"""Recorded runs: JSON in `figures/`, and finished units in `runs/`."""

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
