"""Whether the operations of a stack are spread over all cores, decided by the clock, without changing a bit."""

import time

import torch

WARM, MEASURED = 1, 2  # steps at one number of threads: the first few are not measured, the others are
TRIAL = WARM + MEASURED
SLOWER = 3.0  # a step that takes so many times longer than on one core had to wait for a core
MOST = 32  # rounds without another trial, and with fewer threads than there are cores, at most


class Pace:
    """Threads of each operation, from step to step.

    The threads of one operation wait for the last of them. That pays where cores are idle and costs a multiple where
    one is taken away meanwhile. So a round tries both on its first steps, goes on with half as many threads at the
    first step that had to wait, and at last with one; after rounds in which that was so, some go without a trial. A
    round after one that gained begins with as many threads as that one ended with.

    There are never more threads than clients: products of one client's matrices are rounded in another way if they
    are spread, and with fewer threads than clients every client's stay on one core.

    Args:
        cores: threads to spread over; 1 never tries.
    """

    def __init__(self, cores: int) -> None:
        self.cores, self._pause, self._skip = cores, 0, 0
        self._most, self._reduced = cores, 0
        self._clients, self._gained, self._single = 0, False, float("inf")

    def begin(self, clients: int) -> None:
        """A new round: to be called before its first step, in the thread that computes."""
        self._reduced = self._reduced + 1 if self._gained and self._most < self.cores else 0
        known = self._gained and clients == self._clients and self._reduced < MOST
        self._most = self._most if known else self.cores
        self._trying = self.cores > 1 and clients > 1 and not self._skip
        self._skip = max(0, self._skip - 1)
        self._clients, self._gained, self._wide = clients, False, float("inf")
        self._step = TRIAL if known else 0
        self._single = self._single if known else float("inf")
        self._began, self._threads = float("-inf"), 1
        torch.set_num_threads(1)

    def step(self, clients: int) -> None:
        """To be called before every step.

        Args:
            clients: how many still train.
        """
        if not self._trying:
            return
        taken = time.perf_counter() - self._began
        if WARM < self._step <= TRIAL:
            self._single = min(self._single, taken)
        elif self._step > TRIAL + WARM:
            self._wide = min(self._wide, taken)
        waited = self._step > TRIAL and taken > SLOWER * self._single
        lost = self._step == 2 * TRIAL and self._wide > self._single
        fewer = min(self._most, clients) // 2
        if (waited or lost) and fewer > 1:
            self._most, self._step, self._wide, waited, lost = fewer, TRIAL, float("inf"), False, False
        if waited or lost or clients == 1:
            self._trying = False
        if waited or lost:
            self._gained, self._pause = False, min(MOST, 2 * self._pause + 1)
            self._skip = self._pause
        elif self._step == 2 * TRIAL:
            self._gained, self._pause = True, 0
        threads = min(self._most, clients) if self._trying and self._step >= TRIAL else 1
        if threads != self._threads:
            torch.set_num_threads(threads)
        self._threads = threads
        self._step, self._began = self._step + 1, time.perf_counter()
