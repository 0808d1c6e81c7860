"""One round from the inside: what travelled, what it cost, how the clients moved; and the record made of it."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fedlab_core.check import Natural, checked
from fedlab_core.costs import Costs
from fedlab_core.drift import Drift, drift
from fedlab_core.history import Past, Record
from fedlab_core.local.cores import single_threaded
from fedlab_core.local.work import Update
from fedlab_core.state import State, state_bytes


@checked
@dataclass(frozen=True)
class Round:
    """One round from the inside.

    Attributes:
        number: from 1.
        start: the global model before it.
        sent: what travelled to each client, model and method's own tensors.
        updates: what each client handed back, ordered by client number.
        weights: the aggregation weights, one per update.
        local_names: tensors of the clients' models that did not travel.
        non_finite: clients that handed back a loss or a weight that is not finite.
        failed: by kind of failure, the clients that it hit.
    """

    number: Natural
    start: State
    sent: State
    updates: list[Update]
    weights: list[float]
    local_names: frozenset[str]
    non_finite: list[int] = field(default_factory=list)
    failed: dict[str, list[int]] = field(default_factory=dict)

    @property
    def shares(self) -> list[float]:
        """The aggregation weights, scaled to add up to 1."""
        total = sum(self.weights) or 1.0  # no weight at all: every client was left out
        return [weight / total for weight in self.weights]

    def measures(self, names: Sequence[str]) -> tuple[dict[str, float], list[dict[str, float]]]:
        """What local training tells about the round, and about each of its clients.

        The round's measures are taken over the updates that count and are finite, or over all that count where none is
        finite; where none counts, the round has none. Every client's own are relative to the mean of those too.

        Args:
            names: of the trained parameters, over which drift is measured.
        """
        if not self.updates:
            return {}, []
        metrics: dict[str, float] = {}
        weighty = [k for k, weight in enumerate(self.weights) if weight]
        counted = [k for k in weighty if self.updates[k].client not in self.non_finite] or weighty
        finite = [k for k, u in enumerate(self.updates) if u.client not in self.non_finite or k in counted]
        sizes, cosines = ([math.nan] * len(self.updates) for _ in range(2))
        whole = sum(self.weights[k] for k in counted) or 1.0
        if counted:
            shares = {k: self.weights[k] / whole for k in counted}
            moved = self._drift(counted, list(shares.values()), names)
            metrics = {
                "train_loss": sum(share * self.updates[k].loss for k, share in shares.items()),
                "drift": moved.size,
                "relative_drift": moved.relative_size,
                "diversity": moved.diversity,
            }
            if len(counted) > 1:
                metrics["cosine"] = moved.cosine
        if len(weighty) < len(self.updates):
            in_vain = [u for u, weight in zip(self.updates, self.weights, strict=True) if not weight]
            metrics["bytes_in_vain"] = replace(self, updates=in_vain).costs.bytes
        if finite:
            if finite != counted:
                moved = self._drift(finite, [self.weights[k] / whole * (k in counted) for k in finite], names)
            for k, size, cosine in zip(finite, moved.sizes.tolist(), moved.cosine_to_mean.tolist(), strict=True):
                sizes[k], cosines[k] = size, cosine
        rows = [
            {
                "client": u.client,
                "examples": u.examples,
                "steps": u.steps,
                "loss": u.loss,
                "drift": size,
                "cosine_to_mean": cosine,
            }
            for u, size, cosine in zip(self.updates, sizes, cosines, strict=True)
        ]
        return metrics, rows

    def _drift(self, which: Sequence[int], shares: Sequence[float], names: Sequence[str]) -> Drift:
        return drift(self.start, [self.updates[k].state for k in which], shares, names)

    @functools.cached_property
    def costs(self) -> Costs:
        """What it cost, counted from what was sent."""
        names, updates, sizes = self.start.keys() - self.local_names, self.updates, self._sizes
        up = [sum(sizes[n] for n in (names if u.sent is None else names & u.sent)) for u in updates]
        skipped = [frozenset() if u.fetched is None else names - u.fetched for u in updates]
        down = [sum(sizes[n] for n in self.sent if n not in skip) for skip in skipped]
        return Costs(
            bytes_down=sum(size + u.bytes_down for size, u in zip(down, updates, strict=True)),
            bytes_up=sum(size + state_bytes(u.extra) + u.bytes_up for size, u in zip(up, updates, strict=True)),
            steps=sum(u.steps for u in updates),
            examples=sum(u.seen for u in updates),
            exchanges=bool(self.sent) + max((u.exchanges for u in updates), default=0),
        )

    @property
    def _sizes(self) -> dict[str, int]:
        """Bytes of each tensor that may be sent; a client's has the size of the global model's."""
        return {name: tensor.numel() * tensor.element_size() for name, tensor in (self.start | self.sent).items()}


@checked
def make_record(
    past: Past,
    inside: Round,
    state: State,
    names: Sequence[str],
    test: Callable[[list[State], int | None], list[dict[str, float]]],
) -> Record:
    """The record of the round that follows a past, its time and engine left out.

    Args:
        state: the global model after the round.
        names: of the trained parameters.
        test: evaluates models on so many examples of the test set; None: on all.
    """
    segment = past.segment(inside.number)
    with single_threaded():
        metrics, rows = inside.measures(names)
    personal = segment.method.personal
    if inside.number % segment.settings.evaluate_every == 0:
        metrics |= {} if personal else test([state], None)[0]
        if inside.updates and (segment.settings.evaluate_clients or personal):
            some = None if personal else segment.settings.client_examples
            results = test([update.state for update in inside.updates], some)
            for row, result in zip(rows, results, strict=True):
                row |= result
            for key in results[0]:
                pairs = [(share, result[key]) for share, result in zip(inside.shares, results, strict=True) if share]
                if pairs:
                    metrics[key if personal else f"clients_{key}"] = sum(share * value for share, value in pairs)
            if "test_examples" in results[0]:
                metrics["clients_test_examples"] = results[0]["test_examples"]
    total = past.records[-1].total + inside.costs
    lr = segment.settings.lr_at(inside.number)
    return Record(inside.number, lr, metrics, inside.costs, total, rows, inside.non_finite, inside.failed)
