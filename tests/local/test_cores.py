"""Threads of operations: those that a thread keeps are let go, and come back when they are needed."""

import os
import subprocess
import sys

import pytest

RELEASED = """
import os, torch
from fedlab_core.local.cores import release_threads
threads = lambda: len(os.listdir("/proc/self/task"))
torch.set_num_threads(1)
one = torch.ones(2**20).sin()
before = threads()
torch.set_num_threads(3)
wide = torch.ones(2**20).sin()
kept = threads()
release_threads()
released = threads()
assert torch.equal(torch.ones(2**20).sin(), wide) and torch.equal(wide, one)
print(before, kept, released, threads(), torch.get_num_threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP is not GNU's there")
def test_threads_that_openmp_keeps_are_released_and_come_back() -> None:
    usual = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run([sys.executable, "-c", RELEASED], check=True, stdout=subprocess.PIPE, text=True, env=usual)
    before, kept, released, again, wide = map(int, done.stdout.split())
    assert (kept, released, again, wide) == (before + 2, before, before + 2, 3)
