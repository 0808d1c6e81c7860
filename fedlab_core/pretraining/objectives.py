"""Objectives for pre-training as methods of the round loop, so that one client or many can pre-train alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlab_core.check import Size, checked, choice
from fedlab_core.data import Dataset
from fedlab_core.local.training import EVALUATION_BATCH, worker_copy
from fedlab_core.local.work import Context, Engine, Work
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.randomness import generator
from fedlab_core.selfsupervised import CHARACTERS, Augmentation, augment, nt_xent, predictor, projector, simsiam_loss
from fedlab_core.state import State, set_state

VIEWS = {"characters": CHARACTERS, "moco_v2": Augmentation()}
OBJECTIVES = ("simclr", "simsiam")


@checked
class Siamese(nn.Module):
    """An encoder without its classifier, a projector, and for SimSiam a predictor.

    Args:
        encoder: a model with `features` and `head`; taken over, its head becomes an Identity.
        width: of its features.
        draws: source of the heads' initial weights.
        objective: "simclr" (two layers, no predictor) or "simsiam" (three layers and a predictor).
        hidden, out: widths of the projector; the predictor's bottleneck is a quarter of `out`.
        norm: of the heads, see `selfsupervised.projector`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        width: Size,
        draws: torch.Generator,
        objective: str = "simclr",
        hidden: Size = 64,
        out: Size = 64,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        choice("objective", objective, OBJECTIVES)
        self.encoder = encoder
        self.encoder.head = nn.Identity()
        layers = 2 if objective == "simclr" else 3
        self.projector = projector(width, draws, hidden=hidden, out=out, layers=layers, norm=norm)
        self.predictor = (
            predictor(out, draws, hidden=max(1, out // 4), norm=norm) if objective == "simsiam" else nn.Identity()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projector(self.encoder(x))
        return z, self.predictor(z)


@checked
@dataclass(frozen=True)
class SelfSupervised(FedAvg):
    """Two views of every image have to be found alike by a `Siamese` model; labels are not looked at.

    Images with twice the channels that the encoder reads are pairs, one view from each half (fractal pair similarity).
    The other objective of the paper's released code, MoCo v2, is left out: it is NT-Xent with negatives from a queue of
    65,536 features and keys from a slow copy of the encoder, more negatives than there are images here.

    Args:
        objective: "simclr" or "simsiam", the model's.
        temperature: of SimCLR.
        views: a key of `VIEWS`.
    """

    objective: str = "simclr"
    temperature: float = 0.2
    views: str = "characters"
    name = "self-supervised"
    full_batches = True  # a batch of one has no negatives and no batch statistics

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES or self.views not in VIEWS or not self.temperature > 0:
            raise ValueError(
                f"objective={self.objective!r}, views={self.views!r}, temperature={self.temperature!r}, accepted: "
                f"{OBJECTIVES}, {sorted(VIEWS)}, a number > 0"
            )

    def loss(self, context: Context, x: Tensor, y: Tensor) -> Tensor:
        return self._objective(context.model, x, context.draws, context.dataset)

    def _objective(self, model: nn.Module, x: Tensor, draws: torch.Generator, data: Dataset) -> Tensor:
        halves = x.split(x.shape[1] // 2, 1) if x.shape[1] in (2, 6) else (x, x)
        mean, std = (values[: halves[0].shape[1]] for values in (data.mean, data.std))
        first, second = (augment(half, draws, VIEWS[self.views], mean, std) for half in halves)
        (z1, p1), (z2, p2) = model(first), model(second)
        return nt_xent(z1, z2, self.temperature) if self.objective == "simclr" else simsiam_loss(p1, p2, z1, z2)

    def evaluate(self, engine: Engine, work: Work, states: Sequence[State], split: str) -> list[dict[str, float]]:
        """The objective on the split's first batch, always with the same views, in evaluation mode."""
        model, data = worker_copy(work).eval(), work.dataset
        x = (data.test_x if split == "test" else data.x)[:EVALUATION_BATCH]
        results = []
        for state in states:
            set_state(model, state)
            like = next(model.parameters())
            with torch.no_grad():
                inputs = data.prepare(x).to(like.device, like.dtype)
                loss = self._objective(model, inputs, generator(0, "evaluation views"), data)
            results.append({"loss": loss.item()})
        return results


@dataclass(frozen=True)
class MultiLabel(FedAvg):
    """Which codes are in the image: one logistic loss per code (Anderson and Farrell 2022). A target (codes,) is 1
    where the image holds the code."""

    name = "multi-label"

    def loss(self, context: Context, x: Tensor, y: Tensor) -> Tensor:
        logits = context.model(x)
        return F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype))

    def evaluate(self, engine: Engine, work: Work, states: Sequence[State], split: str) -> list[dict[str, float]]:
        """Loss, and the F1 score of "logit above 0" over all images and codes."""
        model, data = worker_copy(work).eval(), work.dataset
        x, y = (data.test_x, data.test_y) if split == "test" else (data.x, data.y)
        results = []
        for state in states:
            set_state(model, state)
            like = next(model.parameters())
            with torch.no_grad():
                parts = [data.prepare(part).to(like.device, like.dtype) for part in x.split(EVALUATION_BATCH)]
                logits = torch.cat([model(part) for part in parts])
            truth = y.to(like.device) > 0.5
            hits, wrong = ((logits > 0) & truth).sum(), ((logits > 0) != truth).sum()
            loss = F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype))
            results.append({"loss": loss.item(), "f1": (2 * hits / (2 * hits + wrong).clamp(min=1)).item()})
        return results
