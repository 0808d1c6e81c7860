"""The settings of a federated run: everything that a round depends on besides data, partition, model and method."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

SCHEDULES = ("constant", "exponential", "cosine")
WEIGHTINGS = {
    "examples": "n_k / (examples of the sampled clients), the erratum's form",
    "uniform": "1 / (number of sampled clients)",
    "printed_v3": "n_k / (examples of all clients) as arXiv v3 prints it; unsampled clients count with the old model",
}


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
        momentum, weight_decay: of the clients' SGD; momentum starts at zero in every round.
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
        engine: where clients run, see `fedlab_core.engines`.
    """

    fraction: float = 0.1
    epochs: int | None = 1
    steps: int | None = None
    batch_size: int | None = 10
    lr: float = 0.1
    lr_schedule: str = "constant"
    lr_decay: float = 0.99
    schedule_rounds: int = 100
    momentum: float = 0.0
    weight_decay: float = 0.0
    weighting: str = "examples"
    batch_norm: str | None = None
    seed: int = 0
    evaluate_every: int = 1
    evaluate_clients: bool = False
    double: bool = False
    channels_last: bool | None = None
    mixed_precision: bool = False
    device: str = "cpu"
    engine: str = "loop"

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"epochs={self.epochs!r}, steps={self.steps!r}: give exactly one of the two, the other as None"
            )
        for name in ("epochs", "steps", "batch_size", "schedule_rounds", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}, accepted: a whole number >= 1")
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction!r}, accepted: 0 (one client) to 1 (all clients)")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr={self.lr!r}, accepted: a number > 0")
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"lr_decay={self.lr_decay!r}, accepted: a number in (0, 1]")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum!r}, accepted: a number in [0, 1)")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay={self.weight_decay!r}, accepted: a number >= 0")
        if self.mixed_precision and self.double:
            raise ValueError("mixed_precision=True, double=True: accepted is one of the two")
        for name, accepted in (("lr_schedule", SCHEDULES), ("weighting", tuple(WEIGHTINGS))):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown, accepted: {list(accepted)}")

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

    def local_steps(self, examples: int) -> int:
        """Gradient steps of a client with that many examples in one round."""
        if self.steps is not None:
            return self.steps
        return self.epochs * math.ceil(examples / (self.batch_size or examples))

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
