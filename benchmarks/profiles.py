"""Where the seconds of a round go: kinds of operations, by PyTorch's profiler, on one core."""

import multiprocessing
import os
import re

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.tasks import BenchTask

KINDS = {
    "convolutions": r"conv",
    "recurrent layers": r"lstm|rnn|gru",
    "attention": r"scaled_dot|flash",
    "products": r"(^|_)(add|bad+)?b?mm|linear|matmul",
    "normalisation": r"norm",
    "steps of SGD": r"foreach|addcmul",
    "copies and gathering": r"copy|clone|index|cat|stack|fill|zero|contiguous|_to_|gather|scatter|pad",
    "sums and softmax": r"sum|mean|max|nll|loss",
    "views": r"view|strided|slice|select|transpose|split|expand|reshape|detach|alias|empty|^t$",
    "element by element": r"relu|threshold|mul|add|sub|div|exp|clamp|gelu|sigmoid|tanh|hardtanh|sqrt|where",
}
"""Kinds of operations by what their names contain, the first that fits."""


def shares(task: BenchTask) -> dict[str, float]:
    """Shares of the time of a round's operations, by kind, on one core with `auto`; the largest first."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(_measured, [task])[0]


def _measured(task: BenchTask) -> dict[str, float]:
    os.environ["OMP_NUM_THREADS"] = "1"  # what engines go by, see `local.cores`
    torch.set_num_threads(1)
    federation = task.federation("auto").run(1)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        federation.run(1)
    found: dict[str, float] = {}
    for event in seen.key_averages():
        name = event.key.removeprefix("aten::").removeprefix("autograd::engine::evaluate_function: ")
        kind = next((kind for kind, words in KINDS.items() if re.search(words, name)), "other operations")
        found[kind] = found.get(kind, 0.0) + event.self_cpu_time_total / 1e6
    total = sum(found.values())
    return {kind: seconds / total for kind, seconds in sorted(found.items(), key=lambda item: -item[1])}
