"""Which units a round trains, freezes, drops and sends: the schedule as plain arithmetic, without any training."""

from dataclasses import dataclass

import torch

from fedlab_core.check import Natural, checked, choice
from fedlab_core.layerwise.network import StagedModel
from fedlab_core.randomness import generator
from fedlab_core.state import State

SCHEMES = {
    "end_to_end": "all units are trained in every round (conventional federated self-supervised learning)",
    "layer_wise": "each stage trains new units on top of frozen ones (Guo et al., arXiv 2309.05213; LW-FedSSL)",
    "progressive": "each stage adds new units, and all earlier ones go on being trained (Prog-FedSSL)",
}
MASKS = {
    "step": "the client draws a new mask for every step: less compute, nothing else changes",
    "client": "drawn for each client and round before the download: dropped units need not be sent or held either",
    "server": "drawn once per round for all clients: as for a client, and all clients train on the same network",
}


@checked
@dataclass(frozen=True)
class Stage:
    """A stage of training.

    Attributes:
        number: from 0.
        depth: units the network has in it.
        new: the lowest unit that was added for it; units below it can be dropped.
        frozen: units that are only run forward, the lowest ones; the stem is frozen with them.
    """

    number: Natural
    depth: Natural
    new: Natural
    frozen: Natural


@checked
@dataclass(frozen=True)
class Schedule:
    """Which stage a round belongs to, and what may be dropped in it.

    Args:
        scheme: a key of `SCHEMES`.
        rounds_per_stage: rounds of every stage but the last, which goes on as long as the run does.
        units_per_stage: units that a stage adds.
        drop: probability of leaving out each unit below the stage's new ones (federated depth dropout).
        mask: who draws what is dropped, a key of `MASKS`.

    Raises:
        ValueError: an argument out of range, or depth dropout without stages.
    """

    scheme: str = "layer_wise"
    rounds_per_stage: int = 1
    units_per_stage: int = 1
    drop: float = 0.0
    mask: str = "client"

    def __post_init__(self) -> None:
        for name, accepted in (("scheme", SCHEMES), ("mask", MASKS)):
            choice(name, getattr(self, name), accepted)
        for name in ("rounds_per_stage", "units_per_stage"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}, accepted: a whole number >= 1")
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop={self.drop!r}, accepted: a probability, 0 to 1")
        if self.drop and self.scheme == "end_to_end":
            raise ValueError(f"drop={self.drop!r}: end-to-end training has no frozen units, accepted: 0")

    def stages(self, units: int) -> int:
        """Number of stages of a network with that many units."""
        return 1 if self.scheme == "end_to_end" else -(-units // self.units_per_stage)

    def stage(self, rounds: int, units: int) -> Stage:
        """The stage of the round that follows `rounds` finished ones."""
        if self.scheme == "end_to_end":
            return Stage(0, units, 0, 0)
        number = min(rounds // self.rounds_per_stage, self.stages(units) - 1)
        new = number * self.units_per_stage
        return Stage(number, min(new + self.units_per_stage, units), new, new if self.scheme == "layer_wise" else 0)

    def first_round(self, rounds: int, units: int) -> bool:
        """Whether the round that follows `rounds` finished ones is the first of its stage."""
        return rounds == 0 or self.stage(rounds, units) != self.stage(rounds - 1, units)

    def kept(self, stage: Stage, seed: int, round: int, client: int, step: int) -> tuple[bool, ...]:
        """(depth,) which units take part in one local step; the stage's new ones always do.

        Args:
            stage: of the round.
            seed, round, client, step: where the step is; the mask depends on those that its policy names.
        """
        address = {"server": (round,), "client": (round, client), "step": (round, client, step)}[self.mask]
        draws = torch.rand(stage.new, generator=generator(seed, f"depth dropout by {self.mask}", *address))
        return (*(draws >= self.drop).tolist(), *[True] * (stage.depth - stage.new))

    def masked_download(self, stage: Stage, seed: int, round: int, client: int) -> tuple[bool, ...]:
        """(depth,) which units a client needs at all in a round: all, if it draws its masks only later."""
        if self.mask == "step":
            return (True,) * stage.depth
        return self.kept(stage, seed, round, client, 0)


@checked
@dataclass(frozen=True)
class Payload:
    """Names of the tensors of one client and round.

    Attributes:
        trained: those that local training may change.
        fetched: those that it downloads.
        sent: those that it uploads.
        held: units whose final weights it has after the round; -1 stands for the stem.
    """

    trained: frozenset[str]
    fetched: frozenset[str]
    sent: frozenset[str]
    held: frozenset[int]


@checked
def payload(
    model: StagedModel,
    stage: Stage,
    kept: tuple[bool, ...],
    held: frozenset[int] = frozenset(),
    state: State | None = None,
) -> Payload:
    """What one client downloads, trains and uploads in a round.

    Args:
        model: says which names belong to which part.
        stage: of the round.
        kept: (depth,) units the client needs, see `Schedule.masked_download`.
        held: frozen units that it has kept from earlier rounds and need not download (-1: the stem); empty for a
            stateless or new client.
        state: the server's model. New units that equal the last frozen one, of which they are copies, are not sent
            if the client has that one anyway.
    """
    parts = model.parts()
    units, stem = parts["units"], parts["stem"][0]
    own = frozenset().union(*parts["heads"], parts["adapters"][stage.depth - 1])
    trained = own.union(*(units[i] for i in range(stage.frozen, stage.depth) if kept[i]), () if stage.frozen else stem)
    needed = {i for i in range(stage.frozen) if kept[i]} | ({-1} if stage.frozen else set())
    fetched = trained.union(*(stem if i < 0 else units[i] for i in needed - held))
    last = stage.frozen - 1
    if state is not None and last in needed:
        for i in range(stage.new, stage.depth):
            if same(state, units[last], units[i]):
                fetched -= units[i]
    return Payload(trained, fetched, trained, held | needed)


@checked
def same(state: State, unit: frozenset[str], other: frozenset[str]) -> bool:
    """Whether the tensors of two units are equal, shapes and values."""
    pairs = list(zip(sorted(unit), sorted(other), strict=False))
    return len(unit) == len(other) and all(
        state[a].shape == state[b].shape and torch.equal(state[a], state[b]) for a, b in pairs
    )
