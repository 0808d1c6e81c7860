"""Why is there a gap? The loss against centralised training, split among its causes.

A full factorial over the causes of `cells.CAUSES`, each cell a run of the round loop. The parts are Shapley values of
the game v(T) = what is measured with the causes T on; they add up to the gap v(all) - v(none). Shapley values are a
convention: a cause that does nothing alone may carry the largest part, because the others act through it. The cells
and the interactions d(T) = sum over Q in T of (-1)^(|T| - |Q|) v(Q) belong beside them; part_i is the sum of d(T) / |T|
over the sets T that i is in.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import pandas as pd
import torch
from torch import Tensor

from fedlab_core.check import Many, checked
from fedlab_core.engines.stacked.stack import obstacle
from fedlab_core.federation import Federation
from fedlab_core.intervals import half_width
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.probes.cells import CAUSES, Cell, each_once, subsets
from fedlab_core.probes.games import moebius, shapley

Curves = Mapping[str, Sequence[float]]
"""What one cell measured: "round" and, by measure, one number per evaluated round."""


class Buildable(Protocol):
    """What makes a federation from a seed: an `Experiment`, for instance."""

    def replace(self, *, seed: int) -> Self: ...
    def build(self) -> Federation: ...


@checked
@dataclass(frozen=True)
class Attribution:
    """The cells of a factorial and what follows from them.

    Attributes:
        causes: in the order of the parts.
        seeds: paired: each was used in every cell.
        rounds: (rounds,) which were evaluated.
        values: by measure, float64 (seeds, cells, rounds); the cells in the order of `cells.subsets`.
        lrs: learning rate of each cell.
    """

    causes: tuple[str, ...]
    seeds: tuple[int, ...]
    rounds: tuple[int, ...]
    values: Mapping[str, Tensor]
    lrs: tuple[float, ...]

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """Which causes are on in each cell."""
        return subsets(self.causes)

    def cell(self, on: Sequence[str], measure: str = "test_accuracy") -> Tensor:
        """(seeds, rounds) what a cell measured."""
        return self.values[measure][:, self.cells.index(tuple(c for c in self.causes if c in on))]

    def gap(self, measure: str = "test_accuracy") -> Tensor:
        """(seeds, rounds) federated less centralised."""
        return self.values[measure][:, -1] - self.values[measure][:, 0]

    def parts(self, measure: str = "test_accuracy") -> Tensor:
        """(seeds, causes, rounds) Shapley values; over the causes they add up to the gap."""
        return torch.einsum("cx,sxr->scr", shapley(self.causes), self.values[measure])

    def interactions(self, measure: str = "test_accuracy") -> Tensor:
        """(seeds, cells, rounds) d(T) of every set of causes; that of no cause is centralised training itself."""
        return torch.einsum("tx,sxr->str", moebius(self.causes), self.values[measure])

    def table(self, measure: str = "test_accuracy", round: int = -1) -> pd.DataFrame:
        """The gap and its parts with 95 % intervals over the seeds (Student's t), then cells and interactions.

        Args:
            round: position among the evaluated rounds.
        """
        parts, v, d = (f(measure)[..., round] for f in (self.parts, lambda m: self.values[m], self.interactions))
        rows = [("gap", "all", self.gap(measure)[:, round])]
        rows += [("part", cause, parts[:, i]) for i, cause in enumerate(self.causes)]
        rows += [("cell", said(cell), v[:, i]) for i, cell in enumerate(self.cells)]
        rows += [("interaction", said(cell), d[:, i]) for i, cell in enumerate(self.cells) if cell]
        columns = ["kind", "causes on", "mean", "low", "high"]
        return pd.DataFrame([(kind, name, *interval(values)) for kind, name, values in rows], columns=columns)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        values = {name: tensor.tolist() for name, tensor in self.values.items()}
        return {"causes": self.causes, "seeds": self.seeds, "rounds": self.rounds, "values": values, "lrs": self.lrs}


@checked
def attribute(
    experiment: Buildable | Callable[[int], Federation],
    rounds: Many,
    *,
    causes: Sequence[str] = CAUSES,
    seeds: Sequence[int] = (0, 1, 2),
    lr: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] | None = None,
) -> Attribution:
    """Runs every cell with every seed, and splits the gap.

    Args:
        experiment: what is asked about: an `Experiment`, or a function from a seed to a federation.
        rounds: of each run.
        causes: of the factorial, some of `cells.CAUSES`; the others stay off in all cells, so that the first cell is
            always centralised training on the unions of the clients' batches.
        seeds: of the runs.
        lr: of all cells; by default the experiment's own.
        stop: asked between rounds.
        progress: called as progress(cells done, cells) after each.

    Raises:
        ValueError: what the cells cannot express, named.
        InterruptedError: `stop()` was true.
    """
    causes, cells = tuple(c for c in CAUSES if c in each_once(causes)), subsets(each_once(causes))
    found: list[list[Curves]] = []
    for seed in seeds:
        federation = _built(experiment, seed)
        found.append([])
        for on in subsets(causes):
            found[-1].append(run_cell(federation, on, rounds, lr=lr, stop=stop))
            if progress is not None:
                progress(sum(map(len, found)), len(seeds) * len(cells))
    lr = federation.segments[0].settings.lr if lr is None else lr
    return gathered(causes, seeds, found, [lr] * len(cells))


@checked
def run_cell(
    federation: Federation,
    on: Sequence[str],
    rounds: Many,
    *,
    lr: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, list[float]]:
    """One cell as a run of its own: data, clients, initial model and settings are the federation's.

    Returns:
        "round", and by measure one number per evaluated round, that of round 0 included; those of the validation
        examples too, if the data have some.
    """
    run = cell_of(federation, on, lr=lr)
    validated = run.dataset.validation_x is not None
    held = [run.evaluate(split="validation")] if validated else []
    for record in run.rounds(rounds):
        if stop():
            raise InterruptedError(f"stopped in round {run.round} of {rounds}")
        if validated and "test_loss" in record.metrics:
            held.append(run.evaluate(split="validation"))
    return curves(run) | {name: [one[name] for one in held] for name in (held[0] if held else ())}


@checked
def curves(run: Federation) -> dict[str, list[float]]:
    """What a run has measured so far: "round", and by measure one number per evaluated round."""
    evaluated = [record for record in run.history if "test_loss" in record.metrics]
    names = [name for name in evaluated[-1].metrics if name.startswith("test_")]
    measured = {name: [record.metrics[name] for record in evaluated] for name in names}
    return {"round": [record.round for record in evaluated], **measured}


@checked
def cell_of(federation: Federation, on: Sequence[str], *, lr: float | None = None) -> Federation:
    """A federation that begins where another one began, with some causes on."""
    first = federation.segments[0]
    if type(first.method) is not FedAvg:
        raise ValueError(f"method={first.method.name!r}: its own rules are no part of the cells, accepted: 'FedAvg'")
    engine = "loop" if obstacle(federation.model) else "stacked"
    settings = first.settings.replace(engine=engine, lr=first.settings.lr if lr is None else lr)
    parts = federation.dataset, federation.partition, federation.model
    return Federation(*parts, settings, Cell(tuple(on)), name=said(on), memory_mib=16)


@checked
def cells_of(federation: Federation) -> list[Federation]:
    """All cells, in the order of `cells.subsets`, as forks of one run: the model that they begin with is examined and
    evaluated once."""
    first = cell_of(federation, ()).run(0)
    return [first.fork(said(on), at=0, method=Cell(on)) for on in subsets(CAUSES)]


@checked
def gathered(
    causes: Sequence[str], seeds: Sequence[int], found: Sequence[Sequence[Curves]], lrs: Sequence[float]
) -> Attribution:
    """An attribution from what its cells measured.

    Args:
        found: by seed and cell, in the order of `cells.subsets(causes)`.
        lrs: learning rate of each cell.
    """
    first = found[0][0]
    measures = [name for name in first if name != "round"]
    values = {m: torch.tensor([[cell[m] for cell in row] for row in found], dtype=torch.float64) for m in measures}
    return Attribution(tuple(causes), tuple(seeds), tuple(map(int, first["round"])), values, tuple(lrs))


@checked
def best_rates(tried: Sequence[Attribution], measure: str = "validation_loss") -> Attribution:
    """Each cell at the learning rate that suits it best, all having had the same rates to choose from.

    A common rate isolates the causes but may favour some cells; this answers another question: what is lost where
    everybody tunes.

    Args:
        tried: one attribution per learning rate, of the same runs on data with validation examples.
        measure: what the choice goes by, the mean over the seeds after the last round: of the validation examples, so
            that the test measures stay unbiased.

    Raises:
        ValueError: the choice would go by something that was not measured, or by the test set.
    """
    accepted = [name for name in tried[0].values if name.startswith("validation_")]
    if measure not in accepted:
        remedy = "" if accepted else ": the data have no validation examples, see Dataset.with_validation"
        raise ValueError(f"measure={measure!r}, accepted: {accepted}{remedy}")
    sign = 1.0 if measure.endswith("loss") else -1.0
    finals = torch.stack([sign * one.values[measure][..., -1].mean(0) for one in tried])
    best = finals.nan_to_num(math.inf).argmin(0).tolist()
    values = {
        name: torch.stack([tried[k].values[name][:, cell] for cell, k in enumerate(best)], 1)
        for name in tried[0].values
    }
    return replace(tried[0], values=values, lrs=tuple(tried[k].lrs[cell] for cell, k in enumerate(best)))


@checked
def interval(values: Tensor) -> tuple[float, float, float]:
    """Mean over the seeds, and the ends of its 95 % interval by Student's t; nan for a single seed."""
    mean, half = values.mean().item(), float(half_width(values.numpy()))
    return mean, mean - half, mean + half


@checked
def said(cell: Sequence[str]) -> str:
    """The causes of a cell in words."""
    return " + ".join(cell) or "none: centralised"


def _built(experiment: Buildable | Callable[[int], Federation], seed: int) -> Federation:
    return experiment(seed) if callable(experiment) else experiment.replace(seed=seed).build()
