"""Layer-wise, progressive and end-to-end federated self-supervised learning as methods of the one round loop."""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedlab_core.check import checked, choice
from fedlab_core.data import Dataset
from fedlab_core.layerwise.network import StagedModel
from fedlab_core.layerwise.stages import Schedule, Stage, payload
from fedlab_core.local.work import Context, Engine, Task, Update, Work
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.partition import Partition
from fedlab_core.selfsupervised import (
    CHARACTERS,
    Augmentation,
    augment,
    byol_loss,
    info_nce,
    move_target,
    nt_xent,
    simsiam_loss,
)
from fedlab_core.settings import Settings
from fedlab_core.state import State, get_state, mean_state, set_state

OBJECTIVES = {
    "simclr": "NT-Xent between two views (Chen et al. 2020)",
    "simsiam": "cosine of prediction and projection, without gradient through the latter (Chen and He 2021)",
    "byol": "squared distance to a moving average of the network (Grill et al. 2020)",
    "moco_v3": "InfoNCE against a moving average of the network (Chen, Xie and He 2021)",
}
OPTIMISERS = {"adamw": 2, "sgd": 1}  # values kept per weight, with momentum
NEW_UNITS = ("copy", "fresh")
AUGMENTATIONS = {"characters": CHARACTERS, "photographs": Augmentation()}
HELD = "layerwise.held"


@checked
@dataclass(frozen=True)
class LayerWise(FedAvg):
    """Federated self-supervised learning of a `StagedModel`, stage by stage or end to end.

    What the paper (Guo et al., arXiv 2309.05213) leaves open follows LW-FedSSL (Tun et al., arXiv 2401.11647): the
    stem is trained in the first stage, heads are initialised once and go from stage to stage, clients average what
    they trained and nothing else. Optimiser state is new in every round. Settings: a constant learning rate.

    Args:
        scheme, rounds_per_stage, units_per_stage, drop, mask: see `Schedule`.
        new_units: "copy" starts a stage's units as copies of the last one before, where shapes allow; "fresh" leaves
            them as initialised.
        stateful: whether clients keep frozen units from round to round; else they download all of them every time.
        objective: a key of `OBJECTIVES`.
        temperature: of "simclr" and "moco_v3".
        momentum: of the moving average of "byol" and "moco_v3", which starts at the received model in every round.
        optimiser_name: a key of `OPTIMISERS`.
        warm_up: rounds at the beginning of each stage over which the learning rate rises.
        views: a key of `AUGMENTATIONS`.

    Raises:
        ValueError: an argument that is not accepted.
    """

    scheme: str = "layer_wise"
    rounds_per_stage: int = 1
    units_per_stage: int = 1
    drop: float = 0.0
    mask: str = "client"
    new_units: str = "copy"
    stateful: bool = True
    objective: str = "simclr"
    temperature: float = 0.2
    momentum: float = 0.99
    optimiser_name: str = "adamw"
    warm_up: int = 1
    views: str = "characters"
    name = "layer-wise"

    def __post_init__(self) -> None:
        choices: dict[str, Collection[str]] = {
            "objective": OBJECTIVES,
            "optimiser_name": OPTIMISERS,
            "new_units": NEW_UNITS,
            "views": AUGMENTATIONS,
        }
        for option, accepted in choices.items():
            choice(option, getattr(self, option), accepted)
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature!r}, accepted: a number > 0")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum!r}, accepted: a number in [0, 1]")
        if self.warm_up < 0:
            raise ValueError(f"warm_up={self.warm_up!r}, accepted: a whole number >= 0")
        _ = self.schedule  # raises where its part does not fit

    @property
    def schedule(self) -> Schedule:
        """The part that decides about units."""
        return Schedule(self.scheme, self.rounds_per_stage, self.units_per_stage, self.drop, self.mask)

    def local_settings(self, settings: Settings) -> Settings:
        """Refuses batch-norm policies under which the server would have to change or to guess frozen tensors."""
        if settings.batch_norm not in (None, "average", "frozen"):
            raise ValueError(f"batch_norm={settings.batch_norm!r}, accepted by {self.name}: 'average', 'frozen'")
        return settings

    def warm_up_factor(self, rounds: int, stage: Stage) -> float:
        """Share of the learning rate in the round of a stage that follows `rounds` finished ones."""
        return min(1.0, (rounds - stage.number * self.rounds_per_stage + 1) / (self.warm_up + 1))

    def train(self, engine: Engine, work: Work, tasks: Sequence[Task], stop: Callable[[], bool]) -> Iterator[Update]:
        model, settings, state = _staged(work.model), work.settings, tasks[0].state
        rounds = work.round - 1
        stage = self.schedule.stage(rounds, len(model.units))
        payloads = []
        for task in tasks:
            held = frozenset(task.memory[HELD].tolist()) if self.stateful and HELD in task.memory else frozenset()
            kept = self.schedule.masked_download(stage, settings.seed, work.round, task.client)
            payloads.append(payload(model, stage, kept, held, state))
        settings = settings.replace(lr=settings.lr * self.warm_up_factor(rounds, stage))
        bare = [replace(task, memory={}) for task in tasks]
        updates = engine.train(replace(work, settings=settings), bare, LocalStage(self, stage), stop)
        for update, p in zip(updates, payloads, strict=False):  # fewer updates than tasks if stopped
            memory = {HELD: torch.tensor(sorted(p.held))} if self.stateful and p.held else {}
            yield replace(update, memory=memory, sent=p.sent, fetched=p.fetched)

    def check(self, model: nn.Module, dataset: Dataset, partition: Partition, settings: Settings) -> None:
        """Refuse models without stages."""
        _staged(model)

    def evaluate(self, engine: Engine, work: Work, states: Sequence[State], split: str) -> list[dict[str, float]]:
        """Accuracy of a nearest-neighbour classifier on the frozen features, all units trained by then present."""
        from fedlab_core.layerwise.evaluation import features, knn_accuracy

        found, data, model = [], work.dataset, _staged(work.model)
        for state in states:
            depth = self.depth(work.round - 1, len(model.units))
            bank = features(model, data, state, depth)
            x, y = (bank.test_x, data.test_y) if split == "test" else (bank.x, data.y)
            if split == "test" and work.tested is not None:
                rows = work.evaluated_rows(split).to(y.device)
                x, y = x[rows], y[rows]
            found.append({"accuracy": knn_accuracy(bank.x, data.y, x, y, leave_one_out=split == "train")})
        return found

    def depth(self, rounds: int, units: int) -> int:
        """How many units are trained once `rounds` rounds are done; the first stage's before any."""
        return self.schedule.stage(max(0, rounds - 1), units).depth

    def aggregate(
        self, start: State, updates: Sequence[Update], weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        """Averages each tensor over the clients that sent it; what nobody sent stays, bit for bit.

        At the end of a stage the next one's units become copies of the last one, if asked to.
        """
        state, rest = dict(start), 1.0 - sum(weights)
        for name in start:
            pairs = [(u.state[name], w) for u, w in zip(updates, weights, strict=True) if name in (u.sent or ())]
            if pairs:
                pairs += [(start[name], rest)] if rest > 1e-9 else []
                total = sum(w for _, w in pairs)
                state |= mean_state([{name: tensor} for tensor, _ in pairs], [w / total for _, w in pairs])
        rounds, units = updates[0].round, unit_names(state)
        after = self.schedule.stage(rounds, len(units))
        if self.new_units == "copy" and after.new and self.schedule.first_round(rounds, len(units)):
            source = units[after.new - 1]
            for number in range(after.new, after.depth):
                same = list(zip(source, units[number], strict=False))
                if len(source) == len(units[number]) and all(state[a].shape == state[b].shape for a, b in same):
                    state |= {b: state[a].clone() for a, b in same}
        return state, server


@checked
@dataclass(frozen=True)
class LocalStage(FedAvg):
    """What clients do in one round of `LayerWise`.

    Attributes:
        rule: the method.
        stage: of the round.
    """

    rule: LayerWise = LayerWise()
    stage: Stage = Stage(0, 1, 0, 0)
    name = "layer-wise"
    full_batches = True  # a smaller batch has fewer negatives

    def optimiser(self, parameters: Sequence[nn.Parameter], context: Context) -> torch.optim.Optimizer:
        """AdamW, or SGD with the settings' momentum; weights without a gradient are not touched by either."""
        if self.rule.optimiser_name == "sgd":
            return super().optimiser(parameters, context)
        return torch.optim.AdamW(parameters, context.lr, weight_decay=context.settings.weight_decay, foreach=True)

    def begin(self, context: Context) -> None:
        """Freeze statistics below the stage, and copy the network where its moving average is compared with it."""
        freeze_statistics(_staged(context.model), self.stage)
        averaged = self.rule.objective in ("byol", "moco_v3")
        context.scratch = copy.deepcopy(context.model) if averaged else None

    def loss(self, context: Context, x: Tensor, y: Tensor) -> Tensor:
        model, target = context.model, context.scratch
        if target is not None and context.step:
            set_state(target, move_target(get_state(target), get_state(model), self.rule.momentum))
        kept = self.rule.schedule.kept(self.stage, context.settings.seed, context.round, context.client, context.step)
        recipe, data = AUGMENTATIONS[self.rule.views], context.dataset
        views = torch.cat([augment(x, context.draws, recipe, data.mean, data.std) for _ in range(2)])
        return staged_loss(_staged(model), views, self.rule, self.stage, kept, target)


@checked
def staged_loss(
    model: StagedModel,
    views: Tensor,
    rule: LayerWise,
    stage: Stage,
    kept: Sequence[bool] | None = None,
    target: StagedModel | None = None,
) -> Tensor:
    """The self-supervised loss of two views, with stem and units below `stage.frozen` run without gradient.

    They run under `torch.no_grad`, because switching off only their own gradients would keep their activations as long
    as anything below them, such as the positions, still asked for one.

    Args:
        views: (2n, C, H, W), the first and then the second view of n images.
        kept: (depth,) units that take part; all by default.
        target: the other branch of "byol" and "moco_v3".
    """
    with torch.set_grad_enabled(stage.frozen == 0 and torch.is_grad_enabled()):
        below = model.run(model.stem(views), 0, stage.frozen, kept)
    z1, z2 = _halves(model.project(model.run(below, stage.frozen, stage.depth, kept), stage.depth))
    if rule.objective == "simclr":
        return nt_xent(z1, z2, rule.temperature)
    p1, p2 = model.predictor(z1), model.predictor(z2)
    if rule.objective == "simsiam":
        return simsiam_loss(p1, p2, z1, z2)
    assert target is not None, f"{rule.objective} compares with a target"
    with torch.no_grad():
        if not stage.frozen:  # else both branches share what is frozen
            below = target.run(target.stem(views), 0, stage.frozen, kept)
        t1, t2 = _halves(target.project(target.run(below, stage.frozen, stage.depth, kept), stage.depth))
    if rule.objective == "byol":
        return byol_loss(p1, p2, t1, t2)
    return info_nce(p1, t2, rule.temperature) + info_nce(p2, t1, rule.temperature)


@checked
def freeze_statistics(model: StagedModel, stage: Stage) -> None:
    """Puts what is frozen in evaluation mode, so that batch norms there keep their running statistics."""
    if stage.frozen:
        for module in (*model.stem_modules, *model.units[: stage.frozen]):
            module.eval()


@checked
def unit_names(state: State) -> list[list[str]]:
    """Names of each unit's tensors, from a `StagedModel`'s state."""
    found: dict[int, list[str]] = {}
    for name in state:
        parts = name.split(".")
        if parts[:2] in (["encoder", "blocks"], ["encoder", "stages"]):
            found.setdefault(int(parts[2]), []).append(name)
    return [found[number] for number in sorted(found)]


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[: len(x) // 2], x[len(x) // 2 :]


def _staged(model: nn.Module) -> StagedModel:
    if not isinstance(model, StagedModel):
        raise ValueError(f"model is a {type(model).__name__}, accepted: a StagedModel, whose units are trained in turn")
    return model
