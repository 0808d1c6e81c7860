"""The settings of a federated run: everything that a round depends on besides data, partition, model and method."""

import math
import sys
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch

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
        weighting: "examples" (default), "uniform" or "printed_v3", see `WEIGHTINGS`.
        batch_norm: what happens to batch normalisation, a key of `state.BATCH_NORM_POLICIES`; None only without such
            layers.
        seed: root of every random draw of the run.
        evaluate_every: rounds between two evaluations of the global model.
        evaluate_clients: also evaluate every sampled client's model, after its local training, on the global test set.
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
                f"epochs={self.epochs!r}, steps={self.steps!r}: give exactly one of the two, the other as None"
            )
        for name in ("epochs", "steps", "batch_size", "schedule_rounds", "evaluate_every"):
            value = getattr(self, name)
            optional = name in ("epochs", "steps", "batch_size")
            if not (value is None and optional) and not (_whole(value) and 1 <= value <= MOST):
                most = f" and <= {MOST}" if _whole(value) and value > MOST else ""
                raise ValueError(f"{name}={value!r}, accepted: a whole number >= 1{most}{' or None' * optional}")
        if not _whole(self.seed):
            raise ValueError(f"seed={self.seed!r}, accepted: a whole number")
        for name, (low, high, accepted) in _LIMITS.items():
            value = getattr(self, name)
            if value is None and name == "clip_norm":
                continue
            real = isinstance(value, float) or (_whole(value) and value <= MOST)
            if not real or not low <= value <= high:
                raise ValueError(f"{name}={value!r}, accepted: {accepted}")
        for name in ("evaluate_clients", "double", "mixed_precision", "drop_last", "keep_optimiser", "cache_frozen"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}, accepted: True or False")
        if not (self.channels_last is None or isinstance(self.channels_last, bool)):
            raise ValueError(f"channels_last={self.channels_last!r}, accepted: True, False or None")
        if self.mixed_precision and self.double:
            raise ValueError("mixed_precision=True, double=True: accepted is one of the two")
        if self.momentum and self.optimiser != "sgd":
            raise ValueError(f"momentum={self.momentum}, optimiser={self.optimiser!r}: momentum is of 'sgd' only")
        choices = {
            "lr_schedule": SCHEDULES,
            "weighting": WEIGHTINGS,
            "optimiser": OPTIMISERS,
            "non_finite": NON_FINITE,
        }
        for name, known in choices.items():
            if getattr(self, name) not in list(known):
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown, accepted: {list(known)}")
        for name, accepted in {
            "engine": "the name of an engine",
            "device": "the name of a torch device such as 'cuda:0'",
            "batch_norm": "the name of a policy, or None",
        }.items():
            value = getattr(self, name)
            if not ((isinstance(value, str) and value) or (value is None and name == "batch_norm")):
                raise ValueError(f"{name}={value!r}, accepted: {accepted}")
        try:
            torch.device(self.device)
        except (RuntimeError, TypeError):
            raise ValueError(f"device={self.device!r}, accepted: a torch device such as 'cpu' or 'cuda:0'") from None

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


MOST = 2**63 - 1
TINY, LARGEST = sys.float_info.min, sys.float_info.max
_LIMITS = {
    "fraction": (0, 1, "0 (one client) to 1 (all clients)"),
    "lr": (TINY, LARGEST, "a number > 0"),
    "lr_decay": (TINY, 1, "a number in (0, 1]"),
    "momentum": (0, 1 - 2**-53, "a number in [0, 1)"),
    "weight_decay": (0, LARGEST, "a number >= 0"),
    "clip_norm": (TINY, LARGEST, "a number > 0 or None"),
}


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


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
