"""The settings of a federated run: everything that a round depends on besides data, partition, model and method."""

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from fedlab_core import check
from fedlab_core.check import checked_methods
from fedlab_core.failures import Failures, as_failures

SCHEDULES = ("constant", "exponential", "cosine")
WEIGHTINGS = {
    "examples": "n_k / (examples of the sampled clients), the erratum's form",
    "uniform": "1 / (number of sampled clients)",
    "printed_v3": "n_k / (examples of all clients) as arXiv v3 prints it; unsampled clients count with the old model",
}

OPTIMISERS = {
    "sgd": "stochastic gradient descent, with momentum where it is not 0",
    "adam": "Adam (Kingma and Ba 2015)",
    "adamw": "Adam with decoupled weight decay (Loshchilov and Hutter 2019)",
}
NON_FINITE = {
    "raise": "stop with an error that names client, loss and learning rate; the run stands at the last finite round",
    "skip_client": "leave the client out of the average, and say so in the record",
    "keep": "go on",
}


@checked_methods
@dataclass(frozen=True)
class Settings:
    """Settings of a run (names in brackets: McMahan et al. 2017).

    Attributes:
        fraction: share of the clients sampled per round [C]; 0 samples one client, 1 all of them.
        epochs: passes over a client's data per round [E]; give either this or `steps`.
        steps: gradient steps per client and round.
        batch_size: examples per step [B]; None takes all of a client's examples.
        lr: learning rate of the clients' SGD [eta].
        lr_schedule: "constant", "exponential" (lr * lr_decay ** round) or "cosine" (towards zero over
            `schedule_rounds`).
        lr_decay: factor per round of the exponential schedule.
        schedule_rounds: length of the cosine schedule in rounds.
        optimiser: the clients' optimiser, a key of `OPTIMISERS`.
        keep_optimiser: clients keep their optimiser's moments from round to round; otherwise they start at zero in
            every round.
        momentum, weight_decay: of the clients' optimiser; momentum is SGD's.
        clip_norm: scales a client's gradient down to this Euclidean norm before each step; None never does.
        drop_last: leave out the smaller last batch of an epoch, unless a client holds less than one batch.
        cache_frozen: compute what stands before the first trained module once per example, where it is frozen; equal to
            computing it every time within rounding. Needs a model with `features` and `head`, or an `nn.Sequential`.
        non_finite: what happens when a client hands back a loss or a weight that is not finite, a key of `NON_FINITE`.
        weighting: how clients count in the average, a key of `WEIGHTINGS`.
        batch_norm: what happens to batch normalisation, a key of `state.BATCH_NORM_POLICIES`; None only without such
            layers.
        seed: root of every random draw of the run.
        evaluate_every: rounds between two evaluations of the global model; the records between have no `test_` metrics.
        evaluate_clients: also evaluate every sampled client's model, after its local training, on the global test set.
        client_examples: of the test set, on which the clients' models are evaluated, the same ones in every round and
            run; None: all. Where there is no global model, theirs are evaluated on all.
        double: compute in float64 instead of float32 (for exact identities).
        channels_last: lay images and convolutions out channel by channel within each pixel; None does so on a CPU,
            where it makes convolutions and poolings faster. It changes their rounding.
        mixed_precision: compute the products and convolutions of local training in bfloat16 (`torch.autocast`);
            weights, gradients, steps and evaluation stay float32.
        device: a torch device, "cpu" or "cuda".
        engine: where clients run, see `fedlab_core.engines`; "auto" chooses, "loop" is the reference.
        failures: how clients fail, see `failures.Failures`; None: never.
    """

    fraction: float = 0.1
    epochs: int | None = 1
    steps: int | None = None
    batch_size: int | None = 10
    lr: float = 0.1
    lr_schedule: str = "constant"
    lr_decay: float = 0.99
    schedule_rounds: int = 100
    optimiser: str = "sgd"
    keep_optimiser: bool = False
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    drop_last: bool = False
    weighting: str = "examples"
    batch_norm: str | None = None
    seed: int = 0
    evaluate_every: int = 1
    evaluate_clients: bool = False
    client_examples: int | None = None
    double: bool = False
    channels_last: bool | None = None
    mixed_precision: bool = False
    device: str = "cpu"
    engine: str = "auto"
    non_finite: str = "raise"
    cache_frozen: bool = False
    failures: Failures | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "failures", as_failures(self.failures))
        for field in fields(self):
            object.__setattr__(self, field.name, plain_value(getattr(self, field.name)))
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"epochs={self.epochs!r}, steps={self.steps!r}, accepted: exactly one of the two, the other as None"
            )
        for name in ("schedule_rounds", "evaluate_every"):
            check.whole(name, getattr(self, name), 1, check.LARGEST)
        for name in ("epochs", "steps", "batch_size", "client_examples"):
            _or_none(check.whole, name, getattr(self, name), 1, check.LARGEST)
        check.whole("seed", self.seed)
        check.number("fraction", self.fraction, 0, 1)
        check.number("lr", self.lr, above=0)
        check.number("lr_decay", self.lr_decay, most=1, above=0)
        check.number("weight_decay", self.weight_decay, 0)
        check.number("momentum", self.momentum, 0, below=1)
        for name, value in (("engine", self.engine), ("device", self.device), ("batch_norm", self.batch_norm)):
            if not (value is None and name == "batch_norm") and not (isinstance(value, str) and value):
                raise check.refuse(name, value, _NAMES[name])
        try:
            torch.device(self.device)
        except (RuntimeError, TypeError):
            raise check.refuse("device", self.device, _NAMES["device"]) from None
        _or_none(functools.partial(check.number, above=0), "clip_norm", self.clip_norm)
        for name in ("evaluate_clients", "double", "mixed_precision", "drop_last", "keep_optimiser", "cache_frozen"):
            check.flag(name, getattr(self, name))
        _or_none(check.flag, "channels_last", self.channels_last)
        if self.mixed_precision and self.double:
            raise ValueError("mixed_precision=True, double=True, accepted: one of the two")
        check.choice("lr_schedule", self.lr_schedule, SCHEDULES)
        check.choice("weighting", self.weighting, WEIGHTINGS)
        check.choice("optimiser", self.optimiser, OPTIMISERS)
        check.choice("non_finite", self.non_finite, NON_FINITE)
        if self.momentum and self.optimiser != "sgd":
            raise check.refuse("momentum", self.momentum, f"0 with optimiser={self.optimiser!r}; it is of 'sgd' only")

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of images and of convolutions' weights, from `channels_last`."""
        chosen = torch.device(self.device).type == "cpu" if self.channels_last is None else self.channels_last
        return torch.channels_last if chosen else torch.contiguous_format

    def lr_at(self, round: int) -> float:
        """Learning rate of a round (the first is 1)."""
        if self.lr_schedule == "exponential":
            return self.lr * self.lr_decay ** (round - 1)
        if self.lr_schedule == "cosine":
            progress = min(round, self.schedule_rounds) - 1  # zero itself is never reached: the last rate is kept
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress / self.schedule_rounds))
        return self.lr

    def clients_per_round(self, clients: int) -> int:
        """m = max(C K, 1), rounded to the nearest whole client."""
        return max(1, round(self.fraction * clients))

    def local_steps(self, examples: int, full: bool = False) -> int:
        """Gradient steps of a client with that many examples in one round; `full` as in `used`."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 1) * math.ceil(self.used(examples, full) / (self.batch_size or examples))

    def used(self, examples: int, full: bool = False) -> int:
        """How many of a client's examples go into an epoch: all, unless `drop_last`, or `full`, leaves the smaller last
        batch out."""
        size = self.batch_size or examples
        return examples - examples % size if (self.drop_last or full) and size < examples else examples

    def replace(self, **changes: Any) -> "Settings":
        """A copy with other values. Giving one of `epochs` and `steps` clears the other."""
        if changes.get("steps") is not None and "epochs" not in changes:
            changes["epochs"] = None
        if changes.get("epochs") is not None and "steps" not in changes:
            changes["steps"] = None
        unknown = changes.keys() - {field.name for field in fields(self)}
        if unknown:
            raise ValueError(f"unknown settings {sorted(unknown)}, accepted: {[field.name for field in fields(self)]}")
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


_NAMES = {
    "engine": "the name of an engine",
    "device": "the name of a torch device such as 'cpu' or 'cuda:0'",
    "batch_norm": "the name of a policy or None",
}


def _or_none(rule: Callable[..., Any], name: str, value: Any, *bounds: Any) -> None:
    """Check a value by a rule of `check` unless it is None."""
    if value is None:
        return
    try:
        rule(name, value, *bounds)
    except ValueError as error:
        raise ValueError(f"{error} or None") from None


def plain_value(value: Any) -> Any:
    """A scalar of NumPy or torch, or a torch device or dtype, as the plain Python value that it stands for; anything
    else as it is."""
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0):
        plain = value.item()
        short = isinstance(plain, float) and value.dtype in (np.float32, np.float16, torch.float32, torch.float16)
        return float(str(np.float32(plain))) if short else plain  # 0.05 and not 0.05000000074505806
    return value
