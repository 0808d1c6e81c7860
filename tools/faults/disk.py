"""A disk that is full, and folders that cannot be written to: an error names the file, and nothing is lost."""

import errno
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from tools.faults.small import load, same, small_run
from tools.faults.table import Table


@contextmanager
def full_after(calls: int) -> Iterator[list[int]]:
    """The system has no space left from the given call on that makes content durable."""
    left, fsync = [calls], os.fsync

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with mock.patch.object(os, "fsync", full):
        yield left


def disk(count: int, seed: int = 0) -> Table:
    """Saves that fail half-way: what was saved before is still there, and the next save is whole."""
    table, draws = Table(), random.Random(seed)
    for _ in range(count):
        with tempfile.TemporaryDirectory() as root:
            folder, federation = Path(root, "run"), small_run().run(1)
            federation.save(folder)
            before, names = load(folder), {file.name for file in folder.iterdir()}
            federation.run(draws.randrange(1, 3))
            with full_after(draws.randrange(8)):
                outcome = _attempt(lambda federation=federation, folder=folder: federation.save(folder), folder)
            if outcome == "clear" and (not same(load(folder), before) or _half_written(folder, names)):
                outcome = "silent"
            federation.save(folder)
            if not same(load(folder), federation):
                outcome = "silent"
            table.add("save on a full disk", outcome)
    return table


def _attempt(save: Callable[[], None], folder: Path) -> str:
    try:
        save()
    except OSError as error:
        return "clear" if str(folder) in str(error) else "unclear"
    return "sound"


def _half_written(folder: Path, names: set[str]) -> bool:
    return any(file.suffix == ".part" for file in folder.iterdir() if file.name not in names)
