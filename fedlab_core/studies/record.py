"""Recorded runs: JSON in `figures/`, and finished runs kept so that a killed study goes on where it was."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).resolve().parents[2] / "figures"
RUNS = FIGURES.parent / "runs"


def recorded(name: str, folder: Path = FIGURES) -> Any:
    """What `figures/NAME.json` holds; None if there is no such file.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); record it again") from error


def once(key: str, make: Callable[[], dict[str, Any]], folder: Path | None) -> dict[str, Any]:
    """The result of `make()`, computed once per key and kept in a file of the folder; without a folder, just computed.

    The file is complete or absent: it is written under another name and renamed.
    """
    if folder is None:
        return make()
    if (known := recorded(key, folder)) is not None:
        return known
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{key}.{os.getpid()}.part"
    part.write_text(json.dumps(make(), allow_nan=False), encoding="utf-8")
    part.replace(folder / f"{key}.json")
    return recorded(key, folder) or {}
