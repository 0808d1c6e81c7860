"""How many processor cores a piece of work may use."""

import contextlib
import os
from collections.abc import Iterator

import torch

from fedlab_core.check import Size, checked


def cores() -> int:
    """Cores that this process may use; `OMP_NUM_THREADS`, where set, is the limit."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, int(limit)) if limit.isdigit() and int(limit) else allowed


@checked
@contextlib.contextmanager
def intra_op_threads(count: Size) -> Iterator[None]:
    """Let each operation of this thread use `count` cores inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def single_threaded() -> contextlib.AbstractContextManager[None]:
    """Use one intra-op thread inside the block, so that results do not depend on the number of cores."""
    return intra_op_threads(1)
