"""Searches for a learning rate.

`climb` finds the best rate of an endless grid; `tune` finds the rate with the fewest rounds to a target, as McMahan et
al. (2017, section 3) measure them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedlab_core.check import checked
from fedlab_core.experiment import Experiment
from fedlab_core.history import Record, rounds_to_target
from fedlab_core.round import while_finite
from fedlab_core.studies.units import Results, Stop, Unit, full, heeding

GRID = (0.0464, 0.1, 0.215, 0.464, 1.0, 2.15)
"""Learning rates a factor 10^(1/3) apart, the paper's coarser grid (section 3)."""


@checked
def climb(
    start: int, unit: Callable[[int, float], Unit], score: Callable[[Mapping[str, Any]], float], done: Results
) -> tuple[list[Unit], int | None]:
    """A search for the best learning rate on an endless grid, as far as it has come: from its start to a rate that
    neither neighbour beats.

    Args:
        start: exponent of the first rate.
        unit: the run at an exponent; it is told the best score so far.
        score: of a result, larger is better.

    Returns:
        The units of the search, and the exponent of the best rate once it is found.
    """
    units, at = [unit(start, -math.inf)], start
    if units[0].key not in done:
        return units, None
    best = score(done[units[0].key])
    for step in (-1, 1):
        while True:
            units.append(unit(at + step, best))
            if units[-1].key not in done:
                return units, None
            found = score(done[units[-1].key])
            if found <= best:
                break
            best, at = found, at + step
        if at < start:  # it got better that way, and the other neighbour of the best is the one before it
            break
    return units, at


@checked
@dataclass(frozen=True)
class Tuned:
    """Rounds to a target at the best learning rate of a grid.

    Attributes:
        rounds: mean over the seeds at the best rate; infinity if no rate reached the target with every seed.
        lr: the best rate, None if none reached it.
        per_seed: the rounds of each seed at that rate.
        at_edge: whether the best rate is the smallest or largest of the grid, so that a better one may lie outside.
        grid, seeds: what was tried.
        most: rounds after which a run counts as not reaching the target.
    """

    rounds: float
    lr: float | None
    per_seed: tuple[float, ...]
    at_edge: bool
    grid: tuple[float, ...]
    seeds: tuple[int, ...]
    most: int


@checked
def negated(history: Sequence[Record], metric: str) -> list[Record]:
    """The records with the metric's sign changed, so that lower values count as better."""
    return [replace(r, metrics={metric: -r.metrics[metric]} if metric in r.metrics else {}) for r in history]


@checked
def run(
    experiment: Experiment, target: float, most: int, metric: str = "test_accuracy", stop: Stop = lambda: False
) -> dict[str, Any]:
    """One run until the target is reached, `most` rounds are done, or the loss is not finite.

    Args:
        metric: "test_accuracy", or "test_loss", which falls to its target.
        stop: asked after every round.

    Returns:
        Plain data: rounds to the target (null if not reached), rounds done, and per evaluated round the metric.

    Raises:
        Stopped: it was asked to stop.
    """
    federation, lower = experiment.build(), metric == "test_loss"
    for record in heeding(while_finite(federation.rounds(most)), stop):
        value = record.metrics.get(metric, math.nan)
        if value <= target if lower else value >= target:
            break
    history = federation.history
    reached = rounds_to_target(negated(history, metric) if lower else history, -target if lower else target, metric)
    values = {r.round: r.metrics[metric] for r in history if math.isfinite(r.metrics.get(metric, math.nan))}
    return {
        "reached": reached if math.isfinite(reached) else None,
        "done": federation.round,
        "round": list(values),
        metric: [round(value, 5) for value in values.values()],
    }


@checked
def make(settings: Mapping[str, Any], stop: Stop, device: str) -> dict[str, Any]:
    """A unit of a record, see `run`."""
    one = full(settings["experiment"]).replace(device=device)
    return run(one, settings["target"], settings["rounds"], settings["metric"], stop)


@checked
def tune(
    experiment: Experiment,
    target: float | Mapping[int, float],
    most: int,
    *,
    grid: Sequence[float] = GRID,
    seeds: Sequence[int] = (0, 1, 2),
    metric: str = "test_accuracy",
) -> tuple[Tuned, list[dict[str, Any]]]:
    """The learning rate with the fewest rounds to a target, averaged over the seeds, by an exact race.

    Rates are tried from the middle of the grid outwards, and a rate is given up as soon as its rounds add up to more
    than the best rate needed for all its seeds, or once a seed does not reach the target: it can no longer win.

    Args:
        experiment: the setting; its learning rate and seed are replaced.
        target, most: see `run`; the target may differ between seeds.
        grid: learning rates, ascending.
        seeds: of partition, initial weights, sampling and batches.

    Returns:
        The result, and the runs (see `run`) of the best rate.
    """
    if not grid or list(grid) != sorted(set(grid)):
        raise ValueError(f"grid={tuple(grid)}, expected learning rates in ascending order")
    if not seeds:
        raise ValueError("seeds=(): at least one is needed")
    targets = target if isinstance(target, Mapping) else dict.fromkeys(seeds, target)
    best, winner, runs = math.inf, None, []
    for lr in sorted(grid, key=lambda rate: abs(grid.index(rate) - (len(grid) - 1) / 2)):
        tried, total = [], 0.0
        for seed in seeds:
            allowed = most if math.isinf(best) else min(most, math.ceil(best - total))
            tried.append(run(experiment.replace(lr=lr, seed=seed), targets[seed], allowed, metric))
            total += math.inf if tried[-1]["reached"] is None else tried[-1]["reached"]
            if total >= best:
                break
        else:
            best, winner, runs = total, lr, tried
    per_seed, edge = tuple(one["reached"] for one in runs), winner in (grid[0], grid[-1])
    return Tuned(best / len(seeds), winner, per_seed, edge, tuple(grid), tuple(seeds), most), runs
