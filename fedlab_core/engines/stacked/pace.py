"""Whether the operations of a stack are spread over all cores, decided by the clock, without changing a bit."""

import time

import torch

WARM, MEASURED = 1, 2  # steps at one number of threads: the first few are not measured, the others are
SLOWER = 3.0  # a step that takes so many times longer than on one core had to wait for a core
MOST = 32  # rounds without another trial, at most


class Pace:
    """Threads of each operation, from step to step.

    The threads of one operation wait for the last of them. That pays where cores are idle and costs a multiple where
    one is taken away meanwhile. So every round tries both on its first steps, and goes back to one thread at the first
    step that had to wait; after rounds in which that was so, some go without a trial.

    Args:
        cores: threads to spread over; 1 never tries.
    """

    def __init__(self, cores: int) -> None:
        self.cores, self._pause, self._skip = cores, 0, 0

    def begin(self, clients: int) -> None:
        """A new round: to be called before its first step, in the thread that computes."""
        self._step, self._single, self._wide = 0, float("inf"), float("inf")
        self._trying = self.cores > 1 and clients > 1 and not self._skip
        self._skip = max(0, self._skip - 1)
        torch.set_num_threads(1)

    def step(self, clients: int) -> None:
        """To be called before every step.

        Args:
            clients: how many still train. A product of one client's matrices would be rounded in another way if it were
                spread; with several, every client's stays on one core.
        """
        if not self._trying:
            return
        now = time.perf_counter()
        taken = now - self._began if self._step else 0.0
        trial = WARM + MEASURED
        if WARM < self._step <= trial:
            self._single = min(self._single, taken)
        elif self._step > trial + WARM:
            self._wide = min(self._wide, taken)
        waited = self._step > trial and taken > SLOWER * self._single
        lost = self._step == 2 * trial and self._wide > self._single
        if clients < 2 or waited or lost:
            torch.set_num_threads(1)
            self._trying = False
            self._pause = min(MOST, 2 * self._pause + 1) if waited or lost else self._pause
            self._skip = self._pause if waited or lost else 0
        elif self._step == trial:
            torch.set_num_threads(self.cores)
        elif self._step == 2 * trial:
            self._pause = 0
        self._step, self._began = self._step + 1, time.perf_counter()
