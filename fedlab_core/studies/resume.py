"""A run that is killed and resumed, or rewound and run again, against the one that was never interrupted."""

import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.settings import Settings

ROUNDS = 12
EXPERIMENT = Experiment(partition="shards", settings=Settings(fraction=0.25, epochs=1, engine="loop"))


def run_on(folder: Path) -> None:
    """Runs to the last round from what the folder holds, or from the beginning, saving after every round."""
    fresh = EXPERIMENT.build()
    saved = (folder / "run.json").exists()
    run = Federation.load(folder, fresh.dataset, fresh.partition, fresh.model) if saved else fresh
    for _ in run.rounds(ROUNDS - run.round, checkpoint=folder):
        pass


def killed(runs: int) -> int:
    """How many of `runs` runs, killed at random moments until they get through, end in the straight run's bits.

    Starts processes, so a script that calls it needs `if __name__ == "__main__":`.
    """
    straight = EXPERIMENT.build().run(ROUNDS)
    context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    context.set_forkserver_preload([__name__, "sklearn.datasets", "torch._dynamo"])  # so that children start at once
    draws, good = random.Random(0), 0
    with tempfile.TemporaryDirectory() as root:
        length = 0.0
        for warm_up in range(2):  # the first also starts the server of processes
            began = time.perf_counter()
            _finish(context, Path(root, f"unhurt {warm_up}"), None)
            length = time.perf_counter() - began
        for number in range(runs):
            folder = Path(root, str(number))
            while not _finish(context, folder, draws.uniform(0.3, 1.0) * length):
                pass
            fresh = EXPERIMENT.build()
            resumed = Federation.load(folder, fresh.dataset, fresh.partition, fresh.model)
            good += resumed.history == straight.history and _equal(resumed, straight)
    return good


def rewound(runs: int) -> int:
    """How many of `runs` random rewinds, each run on to the end, give the straight run's records and bits."""
    straight, run = EXPERIMENT.build().run(ROUNDS), EXPERIMENT.build().run(ROUNDS)
    draws, good = random.Random(0), 0
    for _ in range(runs):
        run.rewind(draws.randrange(ROUNDS))
        run.run(ROUNDS - run.round)
        good += run.history == straight.history and _equal(run, straight)
    return good


def _finish(context: Any, folder: Path, seconds: float | None) -> bool:
    """Runs on in a child process, killed after so many seconds; whether it got to the end."""
    child = context.Process(target=run_on, args=(folder,))
    child.start()
    child.join(seconds)
    if child.exitcode is None:
        os.kill(child.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        child.join()
        return False
    if child.exitcode:
        raise RuntimeError(f"the child process that runs on in {folder} failed, exit code {child.exitcode}")
    return True


def _equal(a: Federation, b: Federation) -> bool:
    return all(torch.equal(a.state[name], b.state[name]) for name in b.state)
