"""What a checkpoint after every round costs as a run grows: the last 100 of 300 rounds against the first 100."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from fedlab_core import files
from tools.faults.small import small_run
from tools.faults.table import Table

MOST = 1.2
"""Accepted ratio of the last third to the first."""


def growth(rounds: int, seed: int = 0) -> Table:
    """Files and bytes that are written, which are exact, and seconds of the processor, which are not quite."""
    table, third = Table(), rounds // 3
    cost: list[tuple[int, int, float]] = []
    written: list[int] = []

    def counted(function: Callable[..., None], content: int) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            written.append(len(arguments[content]))
            function(*arguments)

        return call

    write = mock.patch.object(files, "write", counted(files.write, 1))
    append = mock.patch.object(files, "append", counted(files.append, 2))
    with tempfile.TemporaryDirectory() as root, write, append:
        began = time.process_time()
        for _ in small_run(evaluate_every=rounds, seed=seed).rounds(rounds, checkpoint=Path(root, "run")):
            cost.append((len(written), sum(written), time.process_time() - began))
            written.clear()
            began = time.process_time()
    for index, what in enumerate(("files", "bytes", "seconds")):
        first, last = (sum(one[index] for one in part) for part in (cost[1 : third + 1], cost[-third:]))
        ratio = last / first
        table.add(f"{what} a round", "sound" if ratio <= MOST else "silent", f"{ratio:.2f} times as many at the end")
        table.notes.append(f"{what} a round, the last {third} rounds to the first {third}: {ratio:.2f}")
    return table
