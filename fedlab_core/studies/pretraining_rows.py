"""Rows of runs: learning rates searched on held-out examples, and what is compared between starts."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
RATES = ("lr", "server_lr")
"""What is searched for, as far as a method has it."""


def climb(score: Callable[[tuple[int, ...]], float], sizes: Sequence[int]) -> dict[tuple[int, ...], float]:
    """From the middle of a grid to a point that no neighbour along an axis beats; all of those have been tried.

    So the best point lies at an edge only where the grid itself ends. Of equal scores the smaller coordinates count as
    better.

    Args:
        score: of a point, larger is better; asked once per point.
        sizes: points along each axis.

    Returns:
        The score of every point tried.
    """
    tried: dict[tuple[int, ...], float] = {}
    at, before = tuple(size // 2 for size in sizes), None
    while at != before:
        steps = [(axis, step) for axis in range(len(sizes)) for step in (-1, 1)]
        around = [(*at[:axis], at[axis] + step, *at[axis + 1 :]) for axis, step in steps]
        for point in (at, *around):
            if point not in tried and all(0 <= i < size for i, size in zip(point, sizes, strict=True)):
                tried[point] = score(point)
        at, before = max(tried, key=lambda p: (tried[p], [-i for i in p])), at
    return tried


def tuned(
    run: Callable[[int, Mapping[str, float]], dict[str, Any]],
    ladders: Mapping[str, Sequence[float]],
    seeds: Sequence[int],
    searched: Sequence[int],
) -> list[dict[str, Any]]:
    """The runs of a search for the best rates (see `climb`), and those of the other seeds at the best.

    Args:
        run: makes the row of a seed at the rates given, "held_out" in it.
        ladders: ascending values by name, keys of `RATES`.
        seeds: that the best rates are run with.
        searched: the seeds among them whose mean held-out accuracy decides.
    """
    rows: list[dict[str, Any]] = []

    def rates(point: tuple[int, ...]) -> dict[str, float]:
        return {name: ladder[i] for (name, ladder), i in zip(ladders.items(), point, strict=True)}

    def score(point: tuple[int, ...]) -> float:
        found = [{"seed": seed} | rates(point) | run(seed, rates(point)) for seed in searched]
        rows.extend(found)
        return statistics.fmean(row["held_out"] for row in found)

    tried = climb(score, [len(ladder) for ladder in ladders.values()])
    best_rates = rates(max(tried, key=lambda p: (tried[p], [-i for i in p])))
    more = [seed for seed in seeds if seed not in searched]
    return rows + [{"seed": seed} | best_rates | run(seed, best_rates) for seed in more]


def best(rows: Sequence[Row], **where: Any) -> list[Row]:
    """The rows that match, at the rates with the best mean held-out accuracy, in the order of their seeds.

    Where not all rates were run with all seeds, those with most seeds are the ones that the search chose.

    Raises:
        ValueError: no row matches.
    """
    found = [row for row in rows if all(row[key] == value for key, value in where.items())]
    if not found:
        raise ValueError(f"no run has {where}")
    groups: dict[tuple[float, ...], list[Row]] = {}
    for row in found:
        groups.setdefault(tuple(row[name] for name in RATES if name in row), []).append(row)

    def rank(rates: tuple[float, ...]) -> tuple[Any, ...]:
        group = groups[rates]
        return len(group), statistics.fmean(row["held_out"] for row in group), [-rate for rate in rates]

    return sorted(groups[max(groups, key=rank)], key=lambda row: row["seed"])


def chosen_lr(rows: Sequence[Row], **where: Any) -> float:
    """The learning rate of `best`."""
    return best(rows, **where)[0]["lr"]


def finals(rows: Sequence[Row], **where: Any) -> list[float]:
    """Final test accuracy of each seed at the rates chosen on held-out examples."""
    return [row["test"] for row in best(rows, **where)]


def gaps(rows: Sequence[Row], start: str, skew: str) -> list[float]:
    """Centralised minus federated accuracy of each seed."""
    central, fed = (finals(rows, start=start, skew=where, method="fedavg") for where in ("pooled", skew))
    return [c - f for c, f in zip(central, fed, strict=True)]
