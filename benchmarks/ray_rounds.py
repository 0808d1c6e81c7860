"""python -m benchmarks.ray_rounds: what Ray adds to a round, and what a round would take with 16 workers.

A round of m clients on W workers is taken to be  a + b m + (c + t) ceil(m / W)  seconds: a for the round (its global
model is put into the object store), b for each client where the rounds are led (a task is sent, its update gathered),
c for each client where it is trained (its model is loaded), t for its training, as long as in `loop`. a, b and c come
from rounds whose clients take a single step, by least squares; how well that fits is told by rounds of whole tasks.
Results are written into figures/bench.json.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from benchmarks.__main__ import known, machine, save
from benchmarks.tasks import TASKS, BenchTask
from fedlab_core.engines.ray import connect, disconnect
from fedlab_core.federation import Federation

STEP = replace(TASKS["2nn"], examples=10)  # one step a client
SAMPLED = (1, 4, 8, 16, 32)
WHOLE = ("2nn", "cnn")
WORKERS, MANY = (1, 2), 16


def seconds(federation: Federation, rounds: int) -> float:
    """The median of some rounds."""
    federation.run(rounds)
    return statistics.median(record.seconds or 0.0 for record in federation.history[-rounds:])


def parts(sampled: int, workers: int) -> tuple[float, float, float]:
    """What a, b and c count in a round."""
    return 1.0, float(sampled), float(-(-sampled // workers))


def fit(rounds: Sequence[tuple[int, int, float]], step: float) -> tuple[float, ...]:
    """a, b and c by least squares, none of them negative.

    Args:
        rounds: clients, workers and seconds of each.
        step: t of their clients.
    """
    matrix = np.array([parts(sampled, workers) for sampled, workers, _ in rounds])
    took = np.array([seconds for *_, seconds in rounds])
    return tuple(map(float, nnls(matrix, took - step * matrix[:, 2])[0]))


def clusters() -> Iterator[int]:
    """Clusters of one worker and of two, one after the other."""
    for workers in WORKERS:
        connect(workers=workers)
        yield workers
        disconnect()


def alone(task: BenchTask, rounds: int) -> float:
    """Seconds of a client in `loop`."""
    federation = task.federation("loop")
    federation.run(1)
    return seconds(federation, rounds) / task.sampled


def measure(small: int = 9, whole: int = 3) -> dict[str, Any]:
    """All of it.

    Args:
        small, whole: rounds of one step, and of whole tasks.
    """
    step = alone(STEP, small)
    training = {name: alone(TASKS[name], whole) for name in WHOLE}
    found, more = list[tuple[int, int, float]](), list[float]()
    checks: dict[str, float] = {}
    for workers in clusters():
        for sampled in SAMPLED:
            federation = replace(STEP, sampled=sampled).federation("ray")
            federation.run(1)
            first = federation.history[-1].seconds or 0.0
            found.append((sampled, workers, seconds(federation, small)))
            more.append(first - found[-1][-1])
        if workers == WORKERS[-1]:
            for name in WHOLE:
                federation = TASKS[name].federation("ray")
                federation.run(1)
                checks[name] = seconds(federation, whole)
    a, b, c = fit(found, step)

    def predicted(name: str, sampled: int, workers: int) -> float:
        return float(np.dot(parts(sampled, workers), (a, b, c + training[name])))

    return {
        "seconds_a_round": a,
        "seconds_a_client_led": b,
        "seconds_a_client_trained": c,
        "first_round_more": statistics.median(more),
        "workers": WORKERS[-1],
        "tasks": {
            name: {
                "loop_a_client": training[name],
                "measured": checks[name],
                "predicted": predicted(name, TASKS[name].sampled, WORKERS[-1]),
                f"loop_{MANY}": MANY * training[name],
                f"predicted_{MANY}": predicted(name, MANY, MANY),
            }
            for name in WHOLE
        },
    }


if __name__ == "__main__":
    result = measure()
    for key, value in result.items():
        print(key, value)
    save(machine() | known() | {"ray": result})
