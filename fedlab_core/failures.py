"""Clients that fail: out of reach, cut off, late, behind the times, or lying. Every draw has an address, so a run fails
in the same way on every engine and when it is replayed."""

from dataclasses import dataclass, fields

import torch

from fedlab_core import check
from fedlab_core.randomness import generator
from fedlab_core.state import State

LIES = {
    "nan": "every parameter is not a number",
    "inf": "every parameter is infinite",
    "scaled": "the update, `scale` times as large",
    "sign_flipped": "the update's opposite, `scale` times as large",
    "noise": "Gaussian noise of standard deviation `scale` instead of the update",
    "labels_flipped": "an honest update on wrong labels: class c is taken for the class (classes - 1 - c)",
}
"""What a lying client hands back."""


@dataclass(frozen=True)
class Failures:
    """How clients fail. All but `liars` are probabilities, drawn anew for every sampled client in every round.

    Attributes:
        unavailable: cannot be reached before the round: gets nothing, computes nothing.
        lost: is cut off after its training: what it received and computed was in vain; it keeps no memory of it.
        late: is slow, and sends at the deadline what it has: a uniformly drawn number of its local steps, at least one
            and fewer than all (Li et al. 2020, section 5.2).
        stale: trains the model that it received when it last took part, if it ever did.
        liars: share of all clients that lie whenever they take part: always the same ones.
        lie: what they hand back, a key of `LIES`.
        scale: of the lies that have one.
    """

    unavailable: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    stale: float = 0.0
    liars: float = 0.0
    lie: str = "sign_flipped"
    scale: float = 10.0

    def __post_init__(self) -> None:
        for name in ("unavailable", "lost", "late", "stale", "liars"):
            check.number(f"failures.{name}", getattr(self, name), 0, 1)
        check.choice("failures.lie", self.lie, LIES)
        check.number("failures.scale", self.scale, 0)

    def strikes(self, kind: str, clients: list[int], seed: int, round: int) -> list[int]:
        """Which of the clients fail in one way in a round.

        Args:
            kind: "unavailable", "lost", "late" or "stale".
        """
        probability = getattr(self, kind)
        return [c for c in clients if probability and _uniform(seed, kind, round, c) < probability]

    def draw(self, sampled: list[int], clients: int, seed: int, round: int) -> dict[str, list[int]]:
        """Who of the sampled clients fails in a round, by kind; who is "unavailable" fails in no other way.

        Args:
            clients: number of all.
        """
        failed = {"unavailable": self.strikes("unavailable", sampled, seed, round)}
        reached = [client for client in sampled if client not in failed["unavailable"]]
        failed |= {kind: self.strikes(kind, reached, seed, round) for kind in ("lost", "late", "stale")}
        return failed | {"lied": sorted(self.lying(clients, seed).intersection(reached))}

    def steps(self, client: int, steps: int, seed: int, round: int) -> int:
        """How many of its local steps a late client has done at the deadline."""
        return 1 + int(_uniform(seed, "late steps", round, client) * (steps - 1))

    def lying(self, clients: int, seed: int) -> frozenset[int]:
        """Which of all clients lie."""
        count = round(self.liars * clients)
        return (
            frozenset(torch.randperm(clients, generator=generator(seed, "liars"))[:count].tolist())
            if count
            else frozenset()
        )

    def garbage(self, state: State, start: State, seed: int, round: int, client: int) -> State:
        """What a liar hands back in the place of its model.

        Args:
            state: the parameters that it trained.
            start: those that it received.
        """
        if self.lie == "labels_flipped":
            return state
        if self.lie in ("nan", "inf"):
            return {name: torch.full_like(tensor, float(self.lie)) for name, tensor in state.items()}
        if self.lie == "noise":
            draws = generator(seed, "lie", round, client)
            noise = {name: torch.randn(t.shape, generator=draws, dtype=torch.float64) for name, t in state.items()}
            return {name: start[name] + self.scale * noise[name].to(t) for name, t in state.items()}
        factor = self.scale if self.lie == "scaled" else -self.scale
        return {name: start[name] + factor * (tensor - start[name]) for name, tensor in state.items()}


def as_failures(value: object) -> Failures | None:
    """Failures, or None where nothing ever fails; a dictionary, as files have it, becomes one.

    Raises:
        ValueError: neither of these.
    """
    if isinstance(value, dict):
        if unknown := sorted(value.keys() - {field.name for field in fields(Failures)}):
            raise ValueError(f"failures: {unknown} are unknown, accepted: {[field.name for field in fields(Failures)]}")
        return Failures(**value)
    if not (value is None or isinstance(value, Failures)):
        raise check.refuse("failures", value, "Failures(...) or None")
    return value


def _uniform(seed: int, kind: str, *address: int) -> float:
    return float(torch.rand((), generator=generator(seed, kind, *address), dtype=torch.float64))
