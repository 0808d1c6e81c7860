"""Twin rounds: one round of a run played twice from the same model, the second time with one cause switched off."""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from fedlab_core.check import Measured, Natural, checked
from fedlab_core.federation import Federation
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.probes.cells import CAUSES, Cell
from fedlab_core.state import distance


@checked
@dataclass(frozen=True)
class Twin:
    """Two next global models from one start, the second with one cause switched off in this round.

    Attributes:
        round: the round that was played twice.
        cause: what was switched off.
        step: distance from the start to the next model with every cause on.
        apart: distance between the two next models.
        federated, healed: measures of the two, running statistics estimated anew.
    """

    round: Natural
    cause: str
    step: Measured
    apart: Measured
    federated: Mapping[str, Measured]
    healed: Mapping[str, Measured]

    @property
    def share(self) -> float:
        """The distance between the twins in lengths of the round's step."""
        return self.apart / self.step if self.step else math.nan

    def gained(self, measure: str = "test_accuracy") -> float:
        """Healed less federated."""
        return self.healed[measure] - self.federated[measure]


@checked
def twin_round(federation: Federation, round: Natural, cause: str, stop: threading.Event | None = None) -> Twin:
    """Plays a round of a run twice from the same model: with every cause on, and with one of them switched off.

    The first twin is a round of `Cell`. Where all clients take part and all batches are full, it is the run's own
    round.

    Args:
        federation: a run of FedAvg; it is left alone.
        round: from 1 on.
        stop: once set, the round is given up.

    Raises:
        ValueError: an unknown cause, or a run that the cells cannot express.
        InterruptedError: stopped.
    """
    if cause not in CAUSES:
        raise ValueError(f"cause={cause!r}, accepted: one of {list(CAUSES)}")
    if not 1 <= round <= federation.round + 1:
        raise ValueError(f"round={round}, accepted: 1 to {federation.round + 1}")
    method = federation.past.segment(round).method
    if type(method) is not FedAvg:
        raise ValueError(f"method={method.name!r}: its own rules are no part of the cells, accepted: 'FedAvg'")
    names = federation.trained_names
    twins = []
    for on in (CAUSES, tuple(c for c in CAUSES if c != cause)):
        twin = federation.fork("twin", at=round - 1, method=Cell(on), evaluate_every=1, evaluate_clients=False)
        if not list(twin.rounds(1, stop=stop)):
            raise InterruptedError
        twins.append(twin)
    start, (one, other) = federation.state_at(round - 1), [twin.state for twin in twins]
    measured = [{n: v for n, v in twin.history[-1].metrics.items() if n.startswith("test_")} for twin in twins]
    return Twin(round, cause, distance(start, one, names), distance(one, other, names), *measured)
