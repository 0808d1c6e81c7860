"""What does each policy for batch normalisation do to one run? All of them side by side, on anybody's model.

A policy that changes nothing but running statistics leaves the trained weights alone, bit for bit, because training
never reads them: such rows tell what an evaluation would have shown, and say so.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import nn

from fedlab_core.batchnorm.fedtan import FedTAN
from fedlab_core.batchnorm.hybrid import FBN, HBN, replaced
from fedlab_core.batchnorm.neighbours import fixbn, reestimate
from fedlab_core.check import Many, checked
from fedlab_core.federation import Federation
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.models.layers import WSConv2d, WSLinear
from fedlab_core.state import State, batch_norms, statistics_names

FIXBN_FACTOR = 0.3  # of the learning rate, once FixBN freezes the statistics


@checked
@dataclass(frozen=True)
class Row:
    """One policy.

    Attributes:
        policy: what it is called.
        who: where it is found.
        accuracy, loss: of the one global model on the test set; where clients keep tensors, with the mean of those.
        clients: mean accuracy of the clients' models after their local training, on the same test set; None where the
            policy only reads the weights of another one. HBN's have the participants' merged statistics in them.
        kilobytes: sent and received by a client per round, on average.
        exchanges: times per round that a client waits for the server.
        same_weights: whether the trained weights are those of averaging everything, bit for bit.
        note: why a policy cannot be used with this model, or what is special.
    """

    policy: str
    who: str
    accuracy: float | None = None
    loss: float | None = None
    clients: float | None = None
    kilobytes: float | None = None
    exchanges: float | None = None
    same_weights: bool = False
    note: str = ""


@checked
@dataclass(frozen=True)
class Audit:
    """The rows, in the order of `POLICIES`."""

    rows: tuple[Row, ...]

    def __getitem__(self, policy: str) -> Row:
        return next(row for row in self.rows if row.policy == policy)

    def table(self) -> pd.DataFrame:
        """One line per policy."""
        return pd.DataFrame([vars(row) for row in self.rows]).set_index("policy")


@checked
def audit(federation: Federation, rounds: Many = 10) -> Audit:
    """Runs every policy for buffers and affine parameters from where a federation began; it is left alone.

    A policy that a model does not go with, FedTAN and a model that cannot be traced for instance, has a row that says
    so.

    Args:
        federation: data, clients, model with batch norms, and settings; its method is replaced.
        rounds: of every run.

    Raises:
        ValueError: the model has no batch normalisation.
    """
    if not batch_norms(federation.model):
        raise ValueError("model: has no batch normalisation, accepted: one that has")
    first = federation.segments[0].settings
    settings = first.replace(evaluate_every=rounds, evaluate_clients=True, batch_norm="average", engine="threads")

    def begin(method: FedAvg | None = None, model: nn.Module | None = None, **changes: Any) -> Federation:
        model = federation.trained_model(0) if model is None else model
        parts = federation.dataset, federation.partition, model, settings.replace(**changes)
        return Federation(*parts, method, memory_mib=64)

    base = begin().run(rounds)
    rows = [measured("average all", "Flower, NIID-Bench, FedLab", base, base)]
    silo = begin(batch_norm="local_statistics").run(rounds)  # the weights of `base`, and buffers that never travelled
    note = "buffers of the first client, which nobody ever sent it"
    rows.append(evaluated(base, "parameters only", "PFLlib's server object", lambda _: first_clients(silo), note))
    rows += [evaluated(base, *entry) for entry in READINGS]

    def attempt(policy: str, who: str, run: Callable[[], Federation], note: str = "") -> None:
        try:
            rows.append(replace(measured(policy, who, run(), base), note=note))
        except (ValueError, ArithmeticError) as error:
            rows.append(Row(policy, who, note=f"refused: {error}"))

    def global_norms(method: FBN) -> Federation:
        return begin(method, method.fitted(federation.trained_model(0)), batch_norm=None)

    standard, converted = with_standardised_weights(federation.trained_model(0))
    mine = "own statistics at every client"
    attempt("total variance", "law of total variance", lambda: begin(batch_norm="total_variance").run(rounds))
    attempt("SiloBN", "Andreux 2020", lambda: silo, mine)
    attempt("FedBN", "Li 2021", lambda: begin(batch_norm="local").run(rounds), f"{mine}, and scale and offset")
    if rounds > 1:
        half, lr = rounds // 2, first.lr * FIXBN_FACTOR
        attempt("FixBN", "Zhong 2023", lambda: fixbn(begin(), rounds, half, lr), f"frozen after {half} rounds")
    attempt("FedTAN", "Wang 2023", lambda: begin(FedTAN()).run(rounds), "step 1 of each round is synchronised")
    attempt("HBN", "Chen 2025", lambda: global_norms(HBN()).run(rounds), "global and batch statistics, mixed")
    attempt("FBN", "Guerraoui 2024", lambda: global_norms(FBN()).run(rounds), "global statistics, as constants")
    note = f"no normalisation; {converted} layers with standardised weights"
    attempt("weight standardisation", "FedWon", lambda: begin(model=standard, batch_norm=None).run(rounds), note)
    return Audit(tuple(rows))


@checked
def measured(policy: str, who: str, run: Federation, base: Federation) -> Row:
    """The row of a finished run."""
    last, costs = run.history[-1], run.history[-1].total
    visits = sum(len(record.clients) for record in run.history)
    names = base.trained_names
    alike = names == run.trained_names and all(run.state[n].equal(base.state[n]) for n in names)
    return Row(
        policy,
        who,
        accuracy=last.metrics["test_accuracy"],
        loss=last.metrics["test_loss"],
        clients=last.metrics.get("clients_test_accuracy"),
        kilobytes=(costs.bytes_up + costs.bytes_down) / visits / 1e3,
        exchanges=costs.exchanges / run.round,
        same_weights=alike,
    )


@checked
def first_clients(run: Federation) -> State:
    """The global parameters with the running statistics of the first client of the last round.

    What a server object holds that averages `parameters()` only and was copied from a client (reported for PFLlib,
    issue 260): as nothing but parameters is ever sent, these are the statistics of this client's data alone.

    Args:
        run: one whose running statistics stay at the clients, `batch_norm="local_statistics"`.
    """
    own = run.client_state(int(run.history[-1].clients[0]["client"]))
    return run.state | {name: own[name] for name in statistics_names(run.model)}


@checked
def reset(run: Federation) -> State:
    """The global parameters with running means 0 and variances 1: buffers that were dropped on the way."""
    model = run.trained_model()
    for layer in batch_norms(model).values():
        layer.reset_running_stats()
    fresh = model.state_dict()
    return run.state | {name: fresh[name].to(run.state[name].device) for name in statistics_names(run.model)}


READINGS: tuple[tuple[str, str, Callable[[Federation], State], str], ...] = (
    ("drop", "FL-bench's drop", reset, "buffers reset to 0 and 1"),
    ("re-estimate", "update_bn", reestimate, "buffers from pooled training data"),
)
"""Policies that read the weights of averaging everything with other buffers."""


@checked
def evaluated(base: Federation, policy: str, who: str, read: Callable[[Federation], State], note: str) -> Row:
    """The row of a policy with the weights of another run."""
    found = base.evaluate(read(base))
    whole, names = measured(policy, who, base, base), statistics_names(base.model)
    buffers = 2 * sum(base.state[name].numel() * base.state[name].element_size() for name in names) / 1e3
    return replace(
        whole, accuracy=found["test_accuracy"], loss=found["test_loss"], clients=None, note=note,
        kilobytes=(whole.kilobytes or 0.0) - buffers,
    )  # fmt: skip


@checked
def with_standardised_weights(model: nn.Module) -> tuple[nn.Module, int]:
    """A copy without batch norms, whose convolutions and dense layers before them have standardised weights.

    Returns:
        The model, and how many layers are standardised: those that are registered right before a batch norm.
    """
    model = copy.deepcopy(model)
    leaves = [module for module in model.modules() if not list(module.children())]
    norms = set(batch_norms(model).values())
    kinds: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: WSConv2d, nn.Linear: WSLinear}
    count = 0
    for before, after in zip(leaves, leaves[1:], strict=False):
        if after in norms and type(before) in kinds:
            weight: Any = before.weight
            before.__class__ = kinds[type(before)]
            before.gain = nn.Parameter(torch.ones(len(weight), dtype=weight.dtype))
            if before.bias is None:  # the offset that the batch norm had
                before.bias = nn.Parameter(torch.zeros(len(weight), dtype=weight.dtype))
            count += 1
    return replaced(model, lambda layer: nn.Identity()), count
