"""How many processor cores a piece of work may use."""

import contextlib
import ctypes
import os
import sys
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


def release_threads() -> None:
    """End the threads that OpenMP keeps for the operations of the calling thread; the next one starts them again.

    To be called by a thread that hands its work to another one. OpenMP counts all the threads that it keeps in a
    process, and where they are more than the cores it puts them to sleep between two operations: small ones, such as a
    step of a stack, then take longer on two cores than on one. Does nothing where OpenMP is not GNU's (on Linux).
    """
    if sys.platform == "linux":
        pause = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)  # the OpenMP that PyTorch has loaded
        if pause is not None:
            pause(1)  # softly: what was set stays
